"""Bad records in whole jobs: an error, or left out, counted in the line that describes the data, and listed."""

from __future__ import annotations

import json

import pytest
from test_jobs import place, rows  # noqa: F401

from proxlm.__main__ import main
from small_models import TEXTS

BAD = '{"prompt": \n[1]\n{"prompt": ""}\n{"promt": "x"}\n{"prompt": "' + "long " * 200 + '"}\n'
TRAINING = [
    "--train.steps", "4", "--train.validate-every", "2", "--train.batch-tokens", "128", "--run.threads", "1",
    "--model.device", "cpu", "--run.tensorboard", "false", "--run.report", "false", "--run.folder", "run",
]  # fmt: skip
NEW = [
    "--new.hidden", "32", "--new.layers", "1", "--new.heads", "2", "--new.vocabulary", "300", "--new.context", "64",
    "--train.block", "16",
]  # fmt: skip


def test_ppo(place, capsys):  # noqa: F811
    file = place / "prompts.jsonl"
    good = file.read_text(encoding="utf-8")
    file.write_text(BAD + good, encoding="utf-8")
    once = ["ppo", "recipe.toml", "--ppo.steps", "1", "--run.report", "false"]
    assert main(once) == 2
    assert "prompts.jsonl:1: not valid JSON" in capsys.readouterr().err
    assert not (place / "run").exists()
    assert main([*once, "--on-bad-record", "skip"]) == 0
    listed = rows(place / "run" / "skipped.jsonl")
    assert [(row["file"], row["line"], row["kind"]) for row in listed] == [
        (str(file), 1, "not valid JSON"),
        (str(file), 2, "not an object"),
        (str(file), 3, "empty"),
        (str(file), 4, "field missing"),
        (str(file), 5, "over the length limit"),
    ]
    assert listed[3]["reason"].startswith('no field "prompt"; did you mean promt?')
    assert json.loads(listed[3]["record"]) == {"promt": "x"}
    assert len(listed[4]["record"]) == 1000
    printed = capsys.readouterr().out
    said = (
        "18 prompts to train on, 6 held out (1 left out, not valid JSON; 1 left out, not an object;"
        " 1 left out, empty; 1 left out, field missing; 1 left out, over the length limit: see skipped.jsonl)"
    )
    assert said in printed
    # The same as without the bad records; a prompt that is too long has its place in the order all the same.
    file.write_text(BAD.splitlines()[-1] + "\n" + good, encoding="utf-8")
    assert main([*once, "--run.folder", "clean", "--data.on-long-prompt", "skip"]) == 0
    assert len(rows(place / "clean" / "skipped.jsonl")) == 1
    one, two = (rows(place / name / "metrics.jsonl")[0] for name in ("run", "clean"))
    assert one["reward"] == two["reward"]


def test_a_file_of_bad_records_is_an_error(place, capsys):  # noqa: F811
    (place / "prompts.jsonl").write_text(BAD, encoding="utf-8")
    assert main(["ppo", "recipe.toml", "--on-bad-record", "skip"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "prompts.jsonl: " in error
    assert not (place / "run").exists()


def test_generate_tells_on_standard_error(place, capsys):  # noqa: F811
    (place / "some.csv").write_text("prompt,n\nThe cat,1\n,2\nx\n", encoding="utf-8")
    arguments = ["generate", "--model.policy", "model", "--data.prompts", "some.csv", "--model.device", "cpu"]
    assert main(arguments) == 2
    assert 'some.csv:3: field "prompt": the prompt is empty' in capsys.readouterr().err
    assert main([*arguments, "--data.on-bad-record", "skip", "--rollout.max-new-tokens", "3"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert (
        "1 left out, empty; 1 left out, wrong number of values (the first bad one: some.csv:3: " in said.err
    )


def test_pretrain(place, capsys):  # noqa: F811
    lines = [json.dumps({"text": text}) for text in TEXTS * 6]
    (place / "a.jsonl").write_text("\n".join(['{"text": 3}', *lines, '{"text": " "}', "{"]), encoding="utf-8")
    (place / "b.txt").write_bytes("\n".join(TEXTS).encode() + b"\n\xff bad\ngood\n")
    arguments = ["pretrain", "--text.train", "a.jsonl", "--text.train", "b.txt", *NEW, *TRAINING]
    assert main(arguments) == 2
    assert 'a.jsonl:1: field "text" must be a text' in capsys.readouterr().err
    assert main([*arguments, "--on-bad-record", "skip"]) == 0
    assert [(row["file"], row["line"], row["kind"]) for row in rows(place / "run" / "skipped.jsonl")] == [
        ("a.jsonl", 1, "no text"),
        ("a.jsonl", 26, "empty"),
        ("a.jsonl", 27, "not valid JSON"),
        ("b.txt", 5, "not UTF-8"),
    ]
    assert "1 left out, not UTF-8: see skipped.jsonl)" in capsys.readouterr().out


@pytest.mark.parametrize("scratch", [False, True])
def test_sft(place, capsys, scratch):  # noqa: F811
    good = [json.dumps({"prompt": "The cat", "response": f" sat on mat {i}."}) for i in range(20)]
    bad = [
        '{"prompt": "a"}',
        '{"prompt": "a", "response": ""}',
        '{"prompt": "a", "response": "' + "long " * 200 + '"}',
        '{"messages": []}',
    ]
    (place / "s.jsonl").write_text("\n".join([*bad, *good]) + "\n", encoding="utf-8")
    which = ["--model.policy", "model"]
    if scratch:
        which = ["--scratch.type", "llama", *(a.replace("new.", "scratch.") for a in NEW[:10])]
    arguments = ["sft", *which, "--text.train", "s.jsonl", *TRAINING]
    assert main(arguments) == 2
    assert 's.jsonl:1: no field "response"' in capsys.readouterr().err
    assert main([*arguments, "--on-bad-record", "skip"]) == 0
    kinds = [(row["line"], row["kind"]) for row in rows(place / "run" / "skipped.jsonl")]
    assert sorted(kinds) == [
        (1, "field missing"),
        (2, "empty"),
        (3, "over the length limit"),
        (4, "malformed messages"),
    ]
