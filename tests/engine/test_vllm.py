"""The engine on servers: what it promises, and every way in which a server can fail it. The servers are stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from proxlm.__main__ import main
from proxlm.config import EngineSettings, LoraSettings, ModelSettings, RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.vllm import VLLMEngine
from proxlm.errors import RunError
from proxlm.models.forward import token_outputs
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from proxlm.types import Prompt, Rollout
from small_models import TEXTS, WORDS, tiny_model
from vllm_stand_in import StandIn, serving

SETTINGS = RolloutSettings(max_new_tokens=10, temperature=0.8)


@pytest.fixture
def policy(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture
def servers(policy, tmp_path):
    """Two servers that have the policy as it was at the start."""
    save_language_model(policy, tmp_path / "model")
    with serving(tmp_path / "model") as one, serving(tmp_path / "model") as two:
        yield one, two


def engine_on(policy, servers, folder: Path, **settings) -> VLLMEngine:
    urls = [server.url for server in servers]
    settings = {"wait": 0.0} | settings
    engine = VLLMEngine(policy, EngineSettings(use="vllm", url=urls, **settings), folder / "served", most=4)
    engine.load_weights((), 0)
    return engine


def change_all(policy, by: float) -> None:
    """Other weights, as after an update."""
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))


def change_adapters(policy) -> None:
    """Other adapters, as after an update."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(0.3 * torch.randn(p.shape, generator=random))


def rollout_of(engine: VLLMEngine, step: int = 0) -> Rollout:
    tokenizer = engine.tokenizer
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS * 2)]
    return generate(engine, prompts, SETTINGS, seed=0, step=step)


def check_logprobs(policy, rollout: Rollout) -> None:
    """Those of the trainer, at the temperature of sampling."""
    own = token_outputs(policy, rollout.sequences, SETTINGS.temperature).logprobs
    assert torch.allclose(own, rollout.logprobs, atol=1e-4)


def test_tokens_and_logprobs_are_those_of_the_policy(policy, servers, tmp_path):
    engine = engine_on(policy, servers, tmp_path)
    rollout = rollout_of(engine)
    assert len(rollout) == 12
    assert set(rollout.finish) <= {"eos", "stop", "length"}
    check_logprobs(policy, rollout)
    assert all(server.answered >= 3 for server in servers)  # the work is shared
    assert rollout_of(engine).sequences.tokens.equal(rollout.sequences.tokens)  # and repeats itself
    assert not rollout_of(engine, step=1).sequences.tokens.equal(rollout.sequences.tokens)
    engine.close()


def test_new_weights_are_loaded_and_checked(policy, servers, tmp_path):
    engine = engine_on(policy, servers, tmp_path)
    change_all(policy, 0.02)
    engine.load_weights((), 7)
    rollout = rollout_of(engine)
    check_logprobs(policy, rollout)
    assert set(rollout.policy_versions.tolist()) == {7}
    calls = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
    assert servers[0].calls == calls * 2
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["version-7"]
    config = json.loads((tmp_path / "served" / "version-7" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False  # a tied head may stay stale on a server
    engine.close()


def test_an_adapter_is_loaded_by_itself(tokenizer, tmp_path):
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    settings = ModelSettings(policy=str(tmp_path / "model"), device="cpu", lora=LoraSettings(rank=2))
    policy = load_language_model(settings)
    with serving(tmp_path / "model") as one:
        engine = engine_on(policy, [one], tmp_path, sink="adapter")
        change_adapters(policy)
        engine.load_weights((), 1)
        check_logprobs(policy, rollout_of(engine))
        assert len(one.adapters) == 1  # the older one is gone
        assert not (tmp_path / "served/version-1/model.safetensors").exists()
        one.adapters, one.weights = [], "default"  # started again
        one.load(tmp_path / "model")
        with pytest.raises(RunError, match="no server has the weights"):
            rollout_of(engine)  # with wait = 0
        engine.reset()
        engine.load_weights((), 2)
        check_logprobs(policy, rollout_of(engine))
        engine.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stale", "the weights of the step before"),
        ("stale head", "stale weights"),
        ("stale cache", "its prefix cache is stale"),
        ("raw", "start it with --logprobs-mode processed_logprobs"),
    ],
)
def test_stale_weights_end_the_run(policy, servers, tmp_path, fault, message):
    engine = engine_on(policy, servers, tmp_path)
    change_all(policy, 0.05)
    servers[1].fault = fault
    with pytest.raises(RunError, match=message) as caught:
        engine.load_weights((), 1)
    assert servers[1].url in str(caught.value)
    engine.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stale tensor", r"1 of \d+ tensors differ: model\.layers\.1\.self_attn\.o_proj\.weight$"),
        ("stale head", r"1 of \d+ tensors differ: lm_head\.weight$"),
        (
            "stale",
            r"differ: model\.embed_tokens\.weight, model\.layers\.0\.self_attn\.qkv_proj\.weight and \d+ more$",
        ),
        ("stale cache", r"prefix cache is stale.* \d+ tensors agree$"),
    ],
)
def test_the_tensors_that_are_stale_are_named(policy, servers, tmp_path, fault, message):
    engine = engine_on(policy, servers, tmp_path)
    change_all(policy, 0.05)
    servers[1].fault = fault
    with pytest.raises(RunError, match=message) as caught:
        engine.load_weights((), 1)
    assert servers[1].url in str(caught.value)
    assert len(str(caught.value)) <= 300
    engine.close()


def test_a_server_without_checksums_is_still_refused(policy, servers, tmp_path):
    engine = engine_on(policy, servers, tmp_path)
    change_all(policy, 0.05)
    servers[1].fault, servers[1].tells = "stale tensor", False
    with pytest.raises(RunError, match=r"off by up to \S+ nats$"):
        engine.load_weights((), 1)
    engine.close()


def test_checksums_find_what_log_probs_cannot(policy, servers, tmp_path):
    """A step so small that a stale tensor moves no log-prob by the tolerance."""
    engine = engine_on(policy, servers, tmp_path, checksums=True)
    change_all(policy, 1e-6)
    engine.load_weights((), 1)
    check_logprobs(policy, rollout_of(engine))
    change_all(policy, 1e-6)
    servers[1].fault = "stale tensor"
    with pytest.raises(RunError, match=r"engine\.checksums: \S+: 1 of \d+ tensors differ: .*o_proj\.weight"):
        engine.load_weights((), 2)
    engine.close()


@pytest.mark.parametrize("fault", ["none", "busy", "half", "slow"])
def test_a_response_that_is_not_written_is_asked_for_again(policy, servers, tmp_path, fault):
    whole = rollout_of(engine_on(policy, servers, tmp_path))
    servers[0].fault, servers[0].faults = fault, 2
    engine = engine_on(policy, servers, tmp_path, timeout=2.0 if fault == "slow" else 60.0)
    rollout = rollout_of(engine)
    assert rollout.sequences.tokens.equal(whole.sequences.tokens)
    assert not servers[0].faults
    engine.close()


def test_failures_of_earlier_steps_do_not_count(policy, servers, tmp_path):
    engine = engine_on(policy, servers[:1], tmp_path, retries=1)
    for step in range(3):
        servers[0].fault, servers[0].faults = "busy", 1
        rollout_of(engine, step)
        assert not servers[0].faults
    engine.close()


def test_a_dead_server_is_left_out_and_taken_again_with_new_weights(policy, servers, tmp_path):
    engine = engine_on(policy, servers, tmp_path)
    servers[0].fault = "dead"
    engine.load_weights((), 1)
    before = servers[0].answered
    check_logprobs(policy, rollout_of(engine))
    assert servers[0].answered == before
    servers[0].fault = ""
    check_logprobs(policy, rollout_of(engine, 2))
    assert servers[0].answered == before  # it lives, but its weights are old
    engine.load_weights((), 2)
    check_logprobs(policy, rollout_of(engine, 3))
    assert servers[0].answered > before
    engine.close()


@pytest.mark.parametrize("again", ["another has its place", "it waits for it"])
def test_a_server_that_was_started_again_is_found_by_its_weights(policy, servers, tmp_path, again):
    servers = servers[:1] if again == "it waits for it" else servers
    engine = engine_on(policy, servers, tmp_path, wait=60.0)
    whole = rollout_of(engine)
    servers[0].weights = "default"
    before = len(servers[0].calls)
    assert rollout_of(engine).sequences.tokens.equal(whole.sequences.tokens)
    loaded_again = "/collective_rpc" in servers[0].calls[before:]
    assert loaded_again == (again == "it waits for it")
    engine.close()


def test_a_run_waits_for_its_only_server(policy, servers, tmp_path, capsys):
    engine = engine_on(policy, servers[:1], tmp_path, wait=60.0)
    whole = rollout_of(engine)
    servers[0].fault, servers[0].faults = "dead", 1
    servers[0].weights = "default"
    assert rollout_of(engine).sequences.tokens.equal(whole.sequences.tokens)
    said = capsys.readouterr().out
    assert "is left out" in said
    assert "takes part again, with the newest weights" in said
    engine.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [("full cache", "the cache was not emptied"), ("plain", r"was it started as docs/cluster\.md says")],
)
def test_a_server_that_cannot_take_weights_is_left_out(policy, servers, tmp_path, fault, message):
    engine = engine_on(policy, servers, tmp_path)
    servers[0].fault = servers[1].fault = fault
    with pytest.raises(RunError, match=message):
        engine.load_weights((), 1)
    engine.close()


def test_without_a_server_the_run_ends(policy, servers, tmp_path):
    engine = engine_on(policy, servers, tmp_path)
    for server in servers:
        server.fault = "dead"
    with pytest.raises(RunError, match=r"no server has the weights of step 1: .* does not answer"):
        engine.load_weights((), 1)
    engine.close()


def test_what_a_server_refuses_is_not_asked_again(policy, servers, tmp_path):
    engine = engine_on(policy, servers, tmp_path)
    for server in servers:
        server.fault = "refuses"
    with pytest.raises(RunError, match=r"after 1 attempts: .*400: .*too long"):
        rollout_of(engine)
    engine.reset()
    engine.close()


def test_a_run_on_a_server_from_the_command_line(servers: tuple[StandIn, StandIn], tmp_path, monkeypatch):
    rows = run_on(servers, tmp_path, monkeypatch, "--ppo.steps", "2", "--shaping.scale", "reference",
                  "--shaping.reference-samples", "4")  # fmt: skip
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["rollout_gap"] < 1e-4 for row in rows)
    assert servers[0].answered == 12


def test_servers_sample_ahead_with_each_version_in_turn(servers, tmp_path, monkeypatch):
    """What they sample with is the copy of the version that the rule names, whose log-probs the trainer computes."""
    rows = run_on(servers, tmp_path, monkeypatch, "--ppo.steps", "5", "--ppo.max-staleness", "2",
                  "--ppo.staleness-correction.mode", "token_truncate",
                  "--ppo.engine-correction.mode", "token")  # fmt: skip
    assert [row["staleness"] for row in rows] == [0, 1, 2, 2, 2]
    assert servers[0].calls.count("/collective_rpc") == 3  # versions 0, 1 and 2, for steps 0 to 2, 3 and 4
    assert all(row["engine_weight/kl"] < 1e-8 for row in rows)
    assert all(row["staleness_weight/kl"] > 1e-6 for row in rows[1:])


def test_servers_go_on_with_what_an_older_version_has_begun(servers, tmp_path, monkeypatch):
    """Each token has the log-prob of its own version, by the trainer's pass over that copy."""
    rows = run_on(servers, tmp_path, monkeypatch, "--ppo.steps", "5", "--ppo.max-staleness", "2",
                  "--ppo.partial-rollouts", "true", "--ppo.staleness-correction.mode", "token_truncate",
                  "--ppo.engine-correction.mode", "token")  # fmt: skip
    assert [row["staleness/share_0"] for row in rows] == [1, 0, 0, 0, 0]
    assert [row["staleness/share_1"] for row in rows[:2]] == [0, 1]
    assert all(0.2 < row["staleness/share_1"] < 0.7 for row in rows[2:])
    assert servers[0].calls.count("/collective_rpc") == 4  # versions 0 to 3
    assert all(row["engine_weight/kl"] < 1e-8 for row in rows)
    assert all(row["staleness_weight/kl"] > 1e-6 for row in rows[1:])


def test_a_run_without_a_server_ends_before_the_model_is_read(policy, servers, tmp_path, monkeypatch, capsys):
    servers[0].fault = "dead"
    assert run_on(servers, tmp_path, monkeypatch, "--engine.wait", "0", status=2) == []
    assert f"engine.url: no answer from {servers[0].url}; start a server" in (said := capsys.readouterr()).err
    assert "evaluating" not in said.out
    assert not Path("run").exists()


def run_on(servers, folder: Path, monkeypatch, *more: str, status: int = 0) -> list[dict[str, float]]:
    """The rows of a small run on the first server, which ends with this status."""
    monkeypatch.chdir(folder)
    prompts = [json.dumps({"prompt": f"{text[:12]} {i}"}) for i in range(4) for text in TEXTS]
    Path("prompts.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    Path("reward.py").write_text(
        "def score(completions):\n    return [len(c.text) / 20 for c in completions]\n"
    )
    arguments = [
        "ppo", "--model.policy", "model", "--data.prompts", "prompts.jsonl", "--data.eval-count", "2",
        "--reward.use", "reward.py:score", "--ppo.batch-size", "4", "--ppo.minibatches", "1",
        "--rollout.max-new-tokens", "8", "--optim.policy.lr", "1e-3", "--run.folder", "run", "--run.threads", "1",
        "--run.report", "false", "--engine.use", "vllm", "--engine.url", servers[0].url, "--model.device", "cpu",
    ]  # fmt: skip
    assert main([*arguments, *more]) == status
    if status:
        return []
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
