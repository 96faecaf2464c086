"""The engine on vLLM itself. Not part of `make test`: `make test-vllm` installs it and runs these."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from proxlm.__main__ import main
from proxlm.config import EngineSettings, LoraSettings, ModelSettings, NewModelSettings, RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.vllm import VLLMEngine
from proxlm.engine.vllm_server import Server
from proxlm.errors import RunError
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import build_language_model, load_language_model
from proxlm.models.save import save_language_model, save_served_model
from proxlm.types import Prompt, Rollout
from real_vllm_server import RealServer, needs_vllm, serving
from small_models import TEXTS, WORDS

pytestmark = [needs_vllm, pytest.mark.timeout(1800)]

SETTINGS = RolloutSettings(max_new_tokens=16, temperature=0.8)


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are of 32, as vLLM's kernels need them, with a tied output head."""
    torch.manual_seed(0)
    new = NewModelSettings(type="llama", hidden=64, layers=2, heads=2, context=320)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu"))
    with torch.no_grad():
        model.network.get_output_embeddings().weight.mul_(4.0)
    root = tmp_path_factory.mktemp("real")
    save_language_model(model, root / "model")
    (root / "untied").mkdir()
    save_served_model(model, root / "untied")
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RealServer]:
    """A server started as docs/cluster.md says."""
    found = RealServer(folder / "untied", folder / "server.log")
    with serving(found):
        yield found


@pytest.fixture
def policy(folder: Path) -> LanguageModel:
    return load_language_model(ModelSettings(policy=str(folder / "model"), device="cpu"))


def engine_on(policy: LanguageModel, server: RealServer, folder: Path, most: int = 8) -> VLLMEngine:
    settings = EngineSettings(use="vllm", url=[server.url], wait=0.0)
    engine = VLLMEngine(policy, settings, folder / "served", most)
    engine.load_weights((), 0)
    return engine


def changed(policy: LanguageModel, seed: int = 1, by: float = 0.05) -> None:
    """Other weights, as after an update."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(by * torch.randn(p.shape, generator=random))


def rollout_of(engine: VLLMEngine, settings: RolloutSettings = SETTINGS, step: int = 0) -> Rollout:
    tokenizer = engine.tokenizer
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS * 2)]
    return generate(engine, prompts, settings, seed=0, step=step)


def largest_gap(policy: LanguageModel, rollout: Rollout) -> float:
    """Between the server's log-probs and the trainer's at the temperature of sampling, in nats."""
    own = token_outputs(policy, rollout.sequences, SETTINGS.temperature).logprobs.detach()
    return float((own - rollout.logprobs).abs().max())


def responses(rollout: Rollout) -> list[list[int]]:
    tokens, offsets = rollout.sequences.response_tokens.tolist(), rollout.sequences.response_offsets.tolist()
    return [tokens[a:b] for a, b in pairwise(offsets)]


def test_logprobs_are_the_trainers_before_and_after_an_update(policy, server, tmp_path):
    engine = engine_on(policy, server, tmp_path)
    assert largest_gap(policy, rollout_of(engine)) < 1e-4
    changed(policy)
    assert largest_gap(policy, rollout_of(engine)) > 0.1  # the old weights are others
    engine.load_weights((), 1)
    after = rollout_of(engine)
    assert largest_gap(policy, after) < 1e-4
    assert set(after.policy_versions.tolist()) == {1}
    engine.close()


def test_a_request_is_its_seed_whatever_runs_beside_it(policy, server, tmp_path):
    engine = engine_on(policy, server, tmp_path)
    first = responses(rollout_of(engine))
    assert responses(rollout_of(engine)) == first
    assert responses(rollout_of(engine, step=1)) != first
    assert len({tuple(r) for r in first}) > len(WORDS)  # the two repeats of a prompt differ
    alone = engine_on(policy, server, tmp_path, most=1)
    assert responses(rollout_of(alone)) == first
    engine.close()
    alone.close()


def test_a_response_ends_with_its_end(policy, server, tmp_path):
    end = policy.tokenizer.eos_token_id
    with torch.no_grad():  # every second token or so is the end
        embedding = policy.network.get_output_embeddings().weight
        embedding[end] = embedding.mean(0) + 0.3 * torch.randn(64, generator=torch.Generator().manual_seed(2))
    engine = engine_on(policy, server, tmp_path)
    found = rollout_of(engine)
    ended = [r for r, finish in zip(responses(found), found.finish, strict=True) if finish == "eos"]
    assert ended
    assert all(r[-1] == end and end not in r[:-1] for r in ended)
    assert largest_gap(policy, found) < 1e-4  # of the end, too
    engine.close()


def test_stop_texts_and_tokens_end_a_response_and_stay_in_it(policy, server, tmp_path):
    engine = engine_on(policy, server, tmp_path)
    free, decode = responses(rollout_of(engine)), policy.tokenizer.decode
    # A response, and the first of its tokens behind the third that is written with letters and was not there before.
    row, at = next(
        (i, k)
        for i, tokens in enumerate(free)
        for k in range(3, len(tokens))
        if decode([tokens[k]]).isalpha() and decode([tokens[k]]) not in decode(tokens[:k])
    )
    token = free[row][at]
    for settings in ({"stop_token_ids": [token]}, {"stop": [decode([token])]}):
        ended = rollout_of(engine, RolloutSettings(max_new_tokens=16, temperature=0.8, **settings))
        assert responses(ended)[row] == free[row][: at + 1]
        assert ended.finish[row] == "stop"
    engine.close()


def leaving_out(monkeypatch: pytest.MonkeyPatch, *paths: str) -> None:
    """The client does not send these requests, as if the server did nothing about them."""
    post = Server.post

    def some(self: Server, path: str, body: Any = None) -> dict[str, Any]:
        return {"success": True} if path in paths else post(self, path, body)

    monkeypatch.setattr(Server, "post", some)


def test_a_reload_that_does_nothing_ends_the_run(policy, server, tmp_path, monkeypatch):
    engine = engine_on(policy, server, tmp_path)
    changed(policy)
    leaving_out(monkeypatch, "/collective_rpc")
    with pytest.raises(RunError, match="samples with the weights of the step before"):
        engine.load_weights((), 1)
    engine.close()


def test_a_stale_prefix_cache_ends_the_run(policy, server, tmp_path, monkeypatch):
    engine = engine_on(policy, server, tmp_path)
    changed(policy)
    leaving_out(monkeypatch, "/pause", "/reset_prefix_cache")  # either of them empties it
    with pytest.raises(RunError, match=r"its prefix cache is stale.* 15 tensors agree$"):
        engine.load_weights((), 1)
    engine.close()


def test_a_layer_that_stays_as_it_was_is_named(policy, server, tmp_path, monkeypatch):
    settings = EngineSettings(use="vllm", url=[server.url], wait=0.0, checksums=True)
    engine = VLLMEngine(policy, settings, tmp_path / "served", 8)
    engine.load_weights((), 0)  # every tensor agrees
    post, name = Server.post, "model.layers.1.self_attn.o_proj"

    def keeping(self: Server, path: str, body: Any = None) -> dict[str, Any]:
        if path != "/collective_rpc":
            return post(self, path, body)
        post(self, path, {"method": "keep_layer", "args": [name]})
        reply = post(self, path, body)
        post(self, path, {"method": "put_back"})
        return reply

    monkeypatch.setattr(Server, "post", keeping)
    for by, where in ((0.05, "off by up to"), (1e-5, "engine.checksums")):
        changed(policy, by=by)
        with pytest.raises(RunError, match=rf"{where}.* 1 of 15 tensors differ: {name}\.weight$"):
            engine.load_weights((), 1)
        monkeypatch.setattr(Server, "post", post)
        engine.load_weights((), 2)
        monkeypatch.setattr(Server, "post", keeping)
    engine.close()


def test_weights_that_cannot_be_read_are_no_weights(policy, server, tmp_path):
    engine = engine_on(policy, server, tmp_path)
    (tmp_path / "empty").mkdir()
    settings = Server(server.url, 60.0)
    with pytest.raises(Exception, match="collective_rpc"):
        settings.load(tmp_path / "empty", "none")
    engine.load_weights((), 1)  # the server lives, and loads the next ones
    assert largest_gap(policy, rollout_of(engine)) < 1e-4
    engine.close()


@pytest.fixture(scope="module")
def tied_server(folder: Path) -> Iterator[RealServer]:
    """A server with two mistakes: a tied head, and log-probs from before the temperature."""
    found = RealServer(folder / "model", folder / "tied.log", mode="raw_logprobs")
    with serving(found):
        yield found


def test_a_tied_head_that_stays_as_it_was_ends_the_run(policy, tied_server, tmp_path, monkeypatch):
    changed(policy, seed=7)
    monkeypatch.setattr("proxlm.engine.vllm.save_served_model", save_language_model)  # tied, too
    with pytest.raises(
        RunError, match=r"stale weights .of a tied output head.* 1 of 15 tensors differ: lm_head\.weight$"
    ):
        engine_on(policy, tied_server, tmp_path)


def test_a_head_of_its_own_replaces_a_tied_one_and_raw_logprobs_are_refused(policy, tied_server, tmp_path):
    changed(policy)
    with pytest.raises(RunError, match="start it with --logprobs-mode processed_logprobs"):
        engine_on(policy, tied_server, tmp_path)  # only the sampled token's log-prob is another


@pytest.fixture(scope="module")
def adapter_server(folder: Path) -> Iterator[RealServer]:
    found = RealServer(
        folder / "model", folder / "adapter.log", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"
    )
    with serving(found):
        yield found


def test_adapters_are_loaded_by_themselves_and_stale_ones_end_the_run(
    folder, adapter_server, tmp_path, monkeypatch
):
    model = ModelSettings(policy=str(folder / "model"), device="cpu", lora=LoraSettings(rank=4))
    policy = load_language_model(model)
    settings = EngineSettings(use="vllm", url=[adapter_server.url], sink="adapter", wait=0.0)
    engine = VLLMEngine(policy, settings, tmp_path / "served", 8)
    random = torch.Generator().manual_seed(1)
    for version in range(3):
        with torch.no_grad():
            for _, p in policy.trainable():
                p.add_(0.1 * torch.randn(p.shape, generator=random))
        if version:
            assert largest_gap(policy, rollout_of(engine)) > 0.01  # the old ones are others
        engine.load_weights((), version)
        assert largest_gap(policy, rollout_of(engine)) < 1e-4
    before = tmp_path / "served/version-2"
    monkeypatch.setattr(
        "proxlm.engine.vllm.save_adapter", lambda _, to: copytree(before, to, dirs_exist_ok=True)
    )
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(0.1 * torch.randn(p.shape, generator=random))
    with pytest.raises(RunError, match="samples with the weights of the step before"):
        engine.load_weights((), 3)
    engine.close()


def ppo(folder: Path, run: Path, url: str, *more: str) -> list[dict[str, Any]]:
    """The metrics of five steps of PPO from the command line; `url` may be several, as JSON."""
    prompts = [json.dumps({"prompt": f"{text[:12]} {i}"}) for i in range(8) for text in TEXTS]
    (run / "prompts.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    (run / "reward.py").write_text(
        "def score(completions):\n    return [c.text.count('a') / 10 for c in completions]\n"
    )
    arguments = [
        "ppo", "--model.policy", str(folder / "model"), "--data.prompts", str(run / "prompts.jsonl"),
        "--data.eval-count", "2", "--reward.use", f"{run / 'reward.py'}:score", "--ppo.steps", "5",
        "--ppo.batch-size", "16", "--ppo.minibatches", "2", "--rollout.max-new-tokens", "32",
        "--optim.policy.lr", "3e-3", "--run.folder", str(run / "run"), "--run.threads", "1",
        "--run.report", "false", "--engine.use", "vllm", "--engine.url", url, "--model.device", "cpu",
        "--engine.tolerance", "1e-4", *more,
    ]  # fmt: skip
    assert main(arguments) == 0
    return [json.loads(line) for line in (run / "run/metrics.jsonl").read_text().splitlines()]


def test_five_steps_of_ppo_have_fresh_weights_in_each(folder, server, tmp_path):
    rows = ppo(folder, tmp_path, server.url)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["rollout_gap"] < 1e-4 for row in rows)
    kl = [row["kl_per_token"] for row in rows]
    assert len({round(x, 6) for x in kl}) == 5  # the weights moved in each


def test_segments_of_partial_rollouts_have_the_log_probs_of_their_versions(folder, server, tmp_path):
    more = ["--ppo.max-staleness", "2", "--ppo.partial-rollouts", "true"]
    weights = ["--ppo.engine-correction.mode", "token_truncate"]
    weights += ["--ppo.staleness-correction.mode", "token_truncate"]
    rows = ppo(folder, tmp_path, server.url, *more, *weights)
    for row in rows[2:]:
        assert row["staleness/share_1"] + row["staleness/share_2"] == pytest.approx(1.0)
        assert min(row["staleness/share_1"], row["staleness/share_2"]) > 0.2
        assert row["engine_weight/max"] == pytest.approx(1.0, abs=2e-4)  # of the version of each token
        assert row["rollout_gap"] > 0.01  # the update is of another


def test_the_requests_of_a_server_that_is_killed_are_asked_of_the_other(
    folder, server, tmp_path, monkeypatch, capsys
):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = ppo(folder, tmp_path / "whole", server.url)
    second = RealServer(folder / "untied", folder / "second.log")
    post, asked = Server.post, []

    def killing(self: Server, path: str, body: Any = None) -> dict[str, Any]:
        """The second server dies while it writes its 20th response, in the third step or so."""
        if self.url == second.url and path == "/v1/completions":
            asked.append(body)
            if len(asked) == 20:
                threading.Timer(0.01, second.kill).start()
        return post(self, path, body)

    with serving(second):
        monkeypatch.setattr(Server, "post", killing)
        killed = ppo(folder, tmp_path / "killed", json.dumps([server.url, second.url]))
    assert f"a server is left out: {second.url}" in capsys.readouterr().out
    assert 20 <= len(asked) < 40  # not asked again
    assert [row["reward"] for row in killed] == pytest.approx([row["reward"] for row in whole], abs=1e-4)


def test_a_killed_server_that_is_started_again_goes_on_with_the_run(folder, tmp_path, capsys):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    alone = RealServer(folder / "untied", folder / "killed.log")
    with serving(alone):
        whole = ppo(folder, tmp_path / "whole", alone.url)
        metrics = tmp_path / "killed/run/metrics.jsonl"

        def kill_it() -> None:
            while not metrics.exists() or metrics.read_text().count("\n") < 2:
                time.sleep(0.02)
            alone.kill()
            alone.start()

        killer = threading.Thread(target=kill_it)
        killer.start()
        killed = ppo(folder, tmp_path / "killed", alone.url)
        killer.join()
    assert "is left out" in (said := capsys.readouterr().out)
    assert "takes part again, with the newest weights" in said
    assert [row["reward"] for row in killed] == pytest.approx([row["reward"] for row in whole], abs=1e-4)
