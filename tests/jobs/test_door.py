"""A base that cannot play is named before the run trains it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

import proxlm
from proxlm.errors import LONGEST_MESSAGE
from proxlm.jobs.door import cannot_play
from small_models import TEXTS
from test_public_api import SMALL, config, lengths


def before(rows: list[tuple[str, Any, str]]) -> proxlm.Evaluation:
    responses = [{"response": text, "reward": reward, "finish": finish} for text, reward, finish in rows]
    return proxlm.Evaluation("before", "", {}, [], len(rows), 0, responses)


CHAT = proxlm.PPOConfig(data=proxlm.DataSettings(chat=True))
TEXT = proxlm.PPOConfig()


@pytest.mark.parametrize(
    ("rows", "settings", "wanted"),
    [
        (
            [("a", 0.0, "eos")] * 64,
            TEXT,
            ["all 64 responses .* the reward 0[.0]*: another one is rarer than 4.6%"],
        ),
        (
            [("a", 1.0, "length")] * 8,
            TEXT,
            ["reward 1.00, and none ended by itself: another one is rarer than 31.2%"],
        ),
        (
            [("a", float(i), "length") for i in range(64)],
            CHAT,
            ["none of 64 responses .*max_new_tokens = 64"],
        ),
        (
            [(" \n", float(i), "eos") for i in range(64)],
            TEXT,
            ["nearly all of 64 responses before the run are empty"],
        ),
        ([("a", 0.0, "eos")] * 63 + [("a", 0.1, "eos")], CHAT, []),
        ([("a", float(i), "length") for i in range(64)], TEXT, []),
        ([("a", None, "eos")] * 64, CHAT, []),
        ([("a", 0.0, "eos")] * 7, CHAT, []),
    ],
)
def test_what_is_said_of_the_responses_before_the_run(rows: Any, settings: Any, wanted: list[str]) -> None:
    found = cannot_play(before(rows), settings)
    assert len(found) == len(wanted)
    for note, pattern in zip(found, wanted, strict=True):
        assert re.search(pattern, note), note
        assert len(note) <= LONGEST_MESSAGE


def test_a_run_says_it_and_trains_all_the_same(tmp_path: Any, capsys: Any) -> None:
    policy = proxlm.new_model(TEXTS * 5, SMALL, proxlm.ModelSettings(device="cpu"))
    settings = config(tmp_path, steps=1)
    settings = replace(settings, data=proxlm.DataSettings(eval_count=8))
    prompts = [f"the cat {i}" for i in range(12)]
    proxlm.PPOTrainer(policy, lambda done: [0.0] * len(done), prompts, settings).train()
    assert "note: all 8 responses before the run have the reward 0" in capsys.readouterr().out
    other = replace(settings, run=replace(settings.run, folder=str(tmp_path / "other")))
    proxlm.PPOTrainer(policy, lengths, prompts, other).train()
    assert "responses before the run" not in capsys.readouterr().out
