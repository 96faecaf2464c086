"""rsLoRA and DoRA: they learn, are saved merged and as PEFT adapters, and go on from these."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import job, parameters, run, vowels

from proxlm.config import LoraSettings, ModelSettings
from proxlm.data.prompts import PromptStream
from proxlm.errors import ConfigError
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.adapters import add_lora, some_logits
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Prompt
from small_models import WORDS, tiny_model


@pytest.mark.parametrize("variant", ["rslora", "dora"])
@pytest.mark.parametrize("critic", ["separate", "adapter"])
def test_variants_learn_from_the_base_and_are_saved_and_continued(tokenizer, tmp_path, variant, critic):
    config = job(critic, steps=2, lr=1e-2)
    policy = add_lora(tiny_model(tokenizer), LoraSettings(rank=4, variant=variant))
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS * 3)]
    stream = PromptStream(prompts, config.ppo.batch_size, 0)
    made = PPOLoop(config, make_actor_critic(policy, critic), stream, vowels, tmp_path)
    before = parameters(made)
    rows = run(made)
    # DoRA at its start is the base up to rounding.
    assert abs(rows[0]["kl"]) < (1e-5 if variant == "dora" else 1e-9)
    assert [row["first_minibatch/ratio_error"] for row in rows] == [0.0, 0.0]
    moved = {name for name, p in parameters(made).items() if not torch.equal(p, before[name])}
    assert any("magnitude" in name for name in moved) == (variant == "dora")
    save_language_model(policy, tmp_path / "saved")
    wanted = some_logits(policy.network)
    merged = load_language_model(ModelSettings(policy=str(tmp_path / "saved"), device="cpu"))
    assert torch.allclose(some_logits(merged.network), wanted, atol=1e-4)
    save_language_model(tiny_model(tokenizer), tmp_path / "base")
    adapter = tmp_path / "saved" / "adapter"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "base")})
    )
    further = ModelSettings(policy=str(adapter), device="cpu", lora=LoraSettings(rank=4))
    assert torch.allclose(some_logits(load_language_model(further).network), wanted, atol=1e-4)
    other = "dora" if variant == "rslora" else "rslora"
    with pytest.raises(ConfigError, match=f"of the variant {variant}; leave it out"):
        load_language_model(replace(further, lora=LoraSettings(rank=4, variant=other)))
