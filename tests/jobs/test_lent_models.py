"""A loaded model that is passed to a job comes back with other weights, and otherwise as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

import proxlm
from proxlm.models.load import language_model_of
from small_models import TEXTS, WORDS, tiny_model
from test_public_api import config, lengths

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def everything(network: Any, tokenizer: Any) -> dict[str, Any]:
    """All of a model that is not its weights, by name; the gradients as values."""
    modules = {
        f"{name}.{key}": repr(value)
        for name, module in network.named_modules()
        for key, value in {"": type(module), **vars(module)}.items()
        if key not in ("_modules", "_parameters", "_buffers", "config", "generation_config")
        and not key.startswith("_flat_weight")  # of an LSTM: its parameters again
    }
    parameters = {
        name: (p.dtype, p.device, p.requires_grad, None if p.grad is None else p.grad.tolist())
        for name, p in network.named_parameters()
    }
    return {
        **modules,
        **parameters,
        "children": [name for name, _ in network.named_modules()],
        "buffers": [name for name, _ in network.named_buffers()],
        "config": network.config.to_dict(),
        "attention": network.config._attn_implementation,
        "generation": network.generation_config.to_dict(),
        "template": tokenizer.chat_template,
        "tokenizer": repr(tokenizer),
    }


def weights(network: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def passed(tokenizer: Any, family: str = "llama") -> tuple[Any, Any]:
    """A transformers model in training mode, of which one part does not learn and another has a gradient."""
    network = tiny_model(tokenizer, family).network.train()
    first, second = list(network.parameters())[1:3]
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    return network, copy.deepcopy(tokenizer)


def ppo_settings(tmp_path: Any, model: dict[str, Any], **ppo: Any) -> proxlm.PPOConfig:
    made = config(tmp_path, **{"kl_coef": 0.01, **ppo})
    optimiser = proxlm.OptimiserSettings(lr=1e-2)
    return replace(
        made,
        model=proxlm.ModelSettings(device="cpu", **model),
        optim=proxlm.OptimisersSettings(policy=optimiser, critic=optimiser),
    )


LORA = proxlm.LoraSettings(rank=2)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("llama", {}),
    "shared critic": ("llama", {"critic": "shared"}),
    "top block": ("llama", {"train_layers": 1}),
    "frozen by name": ("gpt2", {"freeze": ["*wte*", "*.h.0.*"]}),
    "adapters": ("llama", {"lora": LORA}),
    "adapters of a critic": ("llama", {"lora": LORA, "critic": "adapter"}),
    "dora": ("llama", {"lora": proxlm.LoraSettings(rank=2, variant="dora")}),
    "adapters on Conv1D": ("gpt2", {"lora": LORA, "train_layers": 1}),
    "checkpointing": ("llama", {"activation_checkpointing": True}),
    "packed, bfloat16": ("llama", {"packed": True, "precision": "bfloat16"}),
    "encoder–decoder": ("t5", {}),
    "encoder–decoder with adapters": ("t5", {"lora": LORA}),
    "recurrent": ("lstm", {}),
}


@pytest.mark.parametrize("case", MODELS)
def test_ppo_changes_weights_and_nothing_else(tokenizer, tmp_path, case) -> None:
    family, settings = MODELS[case]
    network, own_tokenizer = passed(tokenizer, family)
    before, old = everything(network, own_tokenizer), weights(network)
    run = proxlm.PPOTrainer(
        network, lengths, WORDS[:6], ppo_settings(tmp_path, settings), tokenizer=own_tokenizer
    ).train()
    assert everything(network, own_tokenizer) == before
    new = weights(network)
    assert new.keys() == old.keys()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved
    if case == "top block":
        assert all("layers.1." in name for name in moved)
    # And the weights are those of the run, adapters included.
    saved = proxlm.load_model(run.model, proxlm.ModelSettings(device="cpu")).network
    for name, p in saved.named_parameters():
        torch.testing.assert_close(p.detach(), new[name], rtol=0, atol=1e-6 if "lora" in settings else 0)


def test_a_second_run_learns_what_the_first_one_froze(tokenizer, tmp_path) -> None:
    network, own_tokenizer = passed(tokenizer)
    for number, settings in enumerate(({"train_layers": 1}, {})):
        old = weights(network)
        proxlm.PPOTrainer(
            network,
            lengths,
            WORDS[:6],
            ppo_settings(tmp_path / str(number), settings),
            tokenizer=own_tokenizer,
        ).train()
        moved = [
            not torch.equal(p, old[name]) for name, p in network.named_parameters() if "layers.0." in name
        ]
        assert any(moved) == (number == 1)


class Ends(proxlm.Callback):
    def on_step(self, step, metrics):
        raise KeyError(step)


@pytest.mark.parametrize("settings", [{"lora": LORA, "critic": "adapter"}, {"train_layers": 1}])
def test_an_error_in_a_run_leaves_no_more(tokenizer, tmp_path, settings) -> None:
    network, own_tokenizer = passed(tokenizer)
    before, old = everything(network, own_tokenizer), weights(network)
    made = ppo_settings(tmp_path, settings)
    made = replace(made, data=replace(made.data, chat=True, chat_template=str(tmp_path / "template.jinja")))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    trainer = proxlm.PPOTrainer(
        network, lengths, WORDS[:6], made, tokenizer=own_tokenizer, callbacks=[Ends()]
    )
    with pytest.raises(KeyError):
        trainer.train()
    assert everything(network, own_tokenizer) == before
    assert any(not torch.equal(old[name], p) for name, p in network.named_parameters())


@pytest.mark.parametrize(
    "settings", [{"lora": proxlm.LoraSettings(rank=2, targets=["nothing"])}, {"freeze": ["x"]}]
)
def test_a_model_that_is_refused_stays_as_it_is(tokenizer, tmp_path, settings) -> None:
    network, own_tokenizer = passed(tokenizer)
    before, old = everything(network, own_tokenizer), weights(network)
    with pytest.raises(proxlm.ConfigError):
        proxlm.PPOTrainer(
            network, lengths, WORDS[:6], ppo_settings(tmp_path, settings), tokenizer=own_tokenizer
        ).train()
    with pytest.raises(proxlm.ConfigError):
        proxlm.load_model(network, proxlm.ModelSettings(device="cpu", **settings), tokenizer=own_tokenizer)
    assert everything(network, own_tokenizer) == before
    assert all(torch.equal(old[name], p) for name, p in network.named_parameters())


@pytest.mark.parametrize("critic", ["separate", "adapter"])
def test_the_adapters_of_a_language_model_stay_and_a_critics_go(tokenizer, tmp_path, critic) -> None:
    network, own_tokenizer = passed(tokenizer)
    model = language_model_of(network, own_tokenizer, proxlm.ModelSettings(device="cpu", lora=LORA))
    before, old = everything(network, own_tokenizer), weights(network)
    for number in range(2):
        made = ppo_settings(tmp_path / str(number), {"lora": LORA, "critic": critic})
        proxlm.PPOTrainer(model, lengths, WORDS[:6], made).train()
        assert everything(network, own_tokenizer) == before
        assert {
            name.partition("lora_")[1] for name in old if not torch.equal(old[name], weights(network)[name])
        } == {"lora_"}
        assert list(model.adapters.peft_config) == ["default"]


@pytest.mark.parametrize("settings", [{}, {"train_layers": 1}, {"lora": LORA}])
@pytest.mark.parametrize("job", ["sft", "pretrain"])
def test_supervised_training_changes_weights_and_nothing_else(tokenizer, tmp_path, job, settings) -> None:
    network, own_tokenizer = passed(tokenizer)
    before, old = everything(network, own_tokenizer), weights(network)
    shared = {
        "model": proxlm.ModelSettings(device="cpu", **settings),
        "train": proxlm.SupervisedSettings(steps=2, batch_tokens=64, block=16),
        "run": config(tmp_path).run,
    }
    trainer: Any
    if job == "sft":
        records = [{"prompt": text[:6], "response": text[6:]} for text in TEXTS * 4]
        trainer = proxlm.SFTTrainer(network, records, proxlm.SFTConfig(**shared), tokenizer=own_tokenizer)
    else:
        trainer = proxlm.PretrainTrainer(
            TEXTS * 20, proxlm.PretrainConfig(**shared), model=network, tokenizer=own_tokenizer
        )
    trainer.train()
    assert everything(network, own_tokenizer) == before
    assert any(not torch.equal(old[name], p) for name, p in network.named_parameters())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_what_does_not_train_changes_nothing(tokenizer, tmp_path, family) -> None:
    network, own_tokenizer = passed(tokenizer, family)
    before, old = everything(network, own_tokenizer), weights(network)
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    data = proxlm.DataSettings(chat=True, chat_template=str(tmp_path / "template.jinja"))
    rollout = proxlm.RolloutSettings(max_new_tokens=4)
    device = proxlm.ModelSettings(device="cpu")
    proxlm.generate(network, WORDS, rollout, tokenizer=own_tokenizer, settings=device, data=data)
    assert everything(network, own_tokenizer) == before
    settings = proxlm.EvaluateConfig(model=device, data=data, rollout=rollout)
    proxlm.evaluate([network, network], WORDS, lengths, settings, tokenizer=own_tokenizer)
    assert everything(network, own_tokenizer) == before
    assert all(torch.equal(old[name], p) for name, p in network.named_parameters())


@pytest.mark.parametrize("settings", [{}, {"train_layers": 1}, {"lora": LORA}])
def test_a_reward_model_on_a_passed_model_changes_weights_and_nothing_else(
    tokenizer, tmp_path, settings
) -> None:
    network, own_tokenizer = passed(tokenizer)
    before, old = everything(network, own_tokenizer), weights(network)
    pairs = [{"prompt": text[:6], "chosen": text[6:], "rejected": "no"} for text in TEXTS * 6]
    made = proxlm.RewardConfig(
        model=proxlm.ModelSettings(device="cpu", **settings),
        train=proxlm.SupervisedSettings(steps=3, batch_tokens=200, validate_every=3),
        optim=proxlm.OptimiserSettings(lr=1e-2),
        run=config(tmp_path).run,
    )
    proxlm.RewardTrainer(network, pairs, made, tokenizer=own_tokenizer).train()
    assert everything(network, own_tokenizer) == before
    assert any(not torch.equal(old[name], p) for name, p in network.named_parameters())


@pytest.mark.parametrize("settings", [{"train_layers": 1}, {"lora": LORA}])
def test_dpo_changes_weights_and_nothing_else(tokenizer, tmp_path, settings) -> None:
    network, own_tokenizer = passed(tokenizer)
    before, old = everything(network, own_tokenizer), weights(network)
    pairs = [{"prompt": text[:6], "chosen": text[6:], "rejected": "no"} for text in TEXTS * 6]
    made = proxlm.DPOConfig(
        model=proxlm.ModelSettings(device="cpu", **settings),
        train=proxlm.SupervisedSettings(steps=2, batch_tokens=200, validate_every=2),
        run=config(tmp_path).run,
    )
    proxlm.DPOTrainer(network, pairs, made, tokenizer=own_tokenizer).train()
    assert everything(network, own_tokenizer) == before
    assert any(not torch.equal(old[name], p) for name, p in network.named_parameters())
