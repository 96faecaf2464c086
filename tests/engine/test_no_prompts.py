"""Without prompts: Python gets a rollout without rows, the command line names the file."""

from __future__ import annotations

import pytest
import torch

from proxlm.__main__ import main
from proxlm.config import EnvironmentSettings, RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.environments.games import GAMES
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.models.save import save_language_model
from small_models import tiny_model


@pytest.mark.parametrize("talks", [False, True])
def test_in_python_the_rollout_has_no_rows(tokenizer, talks):
    model, reported = tiny_model(tokenizer), []
    sample = generate
    if talks:
        settings = EnvironmentSettings(use="number-game")
        sample = MultiTurn(GAMES["number-game"], PlainMessageTokens(tokenizer), settings)
    sampling = RolloutSettings(max_new_tokens=5)
    engine = NativeEngine(model, sampling)
    engine.load_weights([], 7)
    rollout = sample(engine, [], sampling, seed=3, step=0, on_progress=lambda *at: reported.append(at))
    assert len(rollout) == 0
    assert rollout.policy_versions.tolist() == []
    assert (rollout.prompts, rollout.texts, rollout.finish, rollout.lost) == ([], [], [], [])
    assert rollout.sequences.offsets.tolist() == rollout.sequences.response_offsets.tolist() == [0]
    assert (rollout.sequences.tokens.dtype, rollout.action_mask.dtype) == (torch.int64, torch.bool)
    assert (len(rollout.logprobs), rollout.logprobs.dtype) == (0, torch.float32)
    assert (rollout.rewards is not None) == talks
    assert rollout.completions() == []
    assert reported == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.jsonl", "", "none.jsonl: the file holds no records"),
        ("none.txt", "\n\n", "none.txt: the file holds no records"),
        ("none.json", "[]", "none.json: the file holds no records"),
        ("none.csv", "prompt,answer\n", "none.csv: the file holds no records"),
        (
            "bad.jsonl",
            '{"prompt": ""}\n',
            "bad.jsonl: no record can be used; the first bad one: bad.jsonl:1:",
        ),
    ],
)
def test_the_command_line_names_the_file(tokenizer, tmp_path, monkeypatch, capsys, name, text, said):
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    (tmp_path / name).write_text(text)
    output = ["--output", "out.jsonl", "--data.on-bad-record", "skip", "--model.device", "cpu"]
    assert main(["generate", "--model.policy", "model", "--data.prompts", name, *output]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith(f"proxlm: error: {said}")
    assert not (tmp_path / "out.jsonl").exists()
