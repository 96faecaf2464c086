"""`proxlm data`: every record is accounted for, and the same work gives the same bytes however it was ended."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import proxlm
from proxlm.__main__ import main
from proxlm.config import TextSettings
from proxlm.data.formats import training_content
from proxlm.data.records import iter_records
from proxlm.data.text import read_texts
from proxlm.errors import ConfigError, DataError, RunError, StoppedBySignalError, UserCodeError

ALL = ["unicode", "html", "chinese", "language", "pii", "exact", "near", "quality", "contamination", "split"]
SENTENCES = ["the cat sat on a mat and looked at every dog that came by", "it was a long day for them all"]


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def messy(folder: Path, count: int = 300) -> tuple[Path, Path]:
    """Texts with everything that the steps are for, and evaluation data that some of them hold."""
    chance = random.Random(0)
    words = [
        f"{a}{b}"
        for a in ("ba", "ko", "mi", "su", "ter", "lan")
        for b in ("n", "ra", "dle", "ving", "st", "mo")
    ]

    def text() -> str:
        return " ".join(chance.choice(words) for _ in range(40)) + " in the end of that."

    records: list[dict[str, Any]] = [{"text": text(), "id": i} for i in range(count)]
    secret = " ".join(chance.choice(words) for _ in range(20))
    records += [{"text": records[i]["text"]} for i in range(10)]
    records += [{"text": records[i]["text"].replace(" in ", " at ")} for i in range(20, 30)]
    records += [{"text": f"<p>{text()}</p><p>mail x{i}@example.com \u202e漢字</p>"} for i in range(10)]
    records += [{"text": "again and again " * 30}, {"text": " \n"}, {"text": f"{text()} {secret} {text()}"}]
    chance.shuffle(records)
    return write(folder / "texts.jsonl", records), write(folder / "test.jsonl", [{"question": secret}])


def settings(folder: Path, texts: Path, test: Path, **more: Any) -> proxlm.CorpusConfig:
    config = proxlm.CorpusConfig(
        input=[str(texts)],
        output=str(folder),
        steps=ALL,
        quality=proxlm.QualitySettings(min_units=20, max_top_ngram=0.3),
        near=proxlm.NearSettings(threshold=0.7, ngram=3),
        contamination=proxlm.ContaminationSettings(against=[str(test)]),
        split=proxlm.SplitSettings(validation=0.1, test=0.1, threshold=0.5, ngram=3),
    )
    return replace(config, **more)


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    texts, test = messy(tmp_path)
    done = proxlm.prepare_data(settings(tmp_path / "out", texts, test))
    steps = {step["step"]: step for step in done.card["steps"]}
    given = len(rows(texts))
    for step in done.card["steps"]:
        assert step["records_in"] == given
        assert step["records_in"] == step["records_out"] + sum(step["removed"].values())
        given = step["records_out"]
    written = [row for path in done.files.values() for row in rows(path)]
    assert len(written) == given == done.card["lengths"]["after"]["records"]
    assert steps["read"]["removed"] == {"empty": 1}
    assert steps["html"]["changed"] == 10
    assert steps["chinese"]["changed"] == 10
    assert steps["pii"]["labels"] == {"email": 10}
    assert steps["exact"]["removed"] == {"equal": 10}
    assert steps["near"]["removed"] == {"near duplicate": 10}
    assert sum(steps["quality"]["removed"].values()) == 1
    assert steps["contamination"]["removed"] == {"in evaluation data": 1}
    text = "\n".join(row["text"] for row in written)
    assert "汉字" in text
    assert not any(mark in text for mark in ("<p>", "\u202e", "example.com", "漢"))
    assert {row["id"] for row in written if "id" in row} <= set(range(300))  # other fields stay
    example = steps["near"]["examples"]["near duplicate"][0]
    assert (
        example["like"].replace(" in ", " at ") == example["text"]
        or example["text"].replace(" in ", " at ") == example["like"]
    )
    sizes = {part: len(rows(path)) for part, path in done.files.items()}
    assert steps["split"]["facts"]["records"] == sizes
    assert sizes["validation"] == sizes["test"] == round(0.1 * given)
    page = (tmp_path / "out" / "card.html").read_text(encoding="utf-8")
    assert "<p>mail" not in page  # examples are no markup
    assert page.count("<rect ") > 10
    assert "| near |" in (tmp_path / "out" / "card.md").read_text(encoding="utf-8")


def test_the_output_is_what_the_next_stage_reads_and_again_nothing_changes(tmp_path: Path) -> None:
    texts, test = messy(tmp_path)
    first = proxlm.prepare_data(settings(tmp_path / "one", texts, test))
    train = str(first.files["train"])
    assert list(read_texts([train], [".jsonl"])) == [row["text"] for row in rows(Path(train))]
    config = settings(
        tmp_path / "two", first.files["train"], test, steps=ALL[:-1], split=proxlm.SplitSettings()
    )
    again = proxlm.prepare_data(config)
    assert again.files["data"].read_bytes() == first.files["train"].read_bytes()
    assert [step["changed"] + sum(step["removed"].values()) for step in again.card["steps"]] == [0] * len(ALL)


STOPPING = """
from proxlm.errors import StoppedBySignalError
left = None
def stop(record):
    global left
    if left is not None:
        left -= 1
        if left < 0:
            raise StoppedBySignalError("stopped", 2)
    return record
"""


def test_a_job_that_is_ended_again_and_again_writes_the_same_bytes(tmp_path: Path) -> None:
    texts, test = messy(tmp_path, 200)
    code = tmp_path / "stopping.py"
    code.write_text(STOPPING)
    # Before, between and after the steps that see the whole corpus.
    steps = [f"{code}:stop", *ALL[:3], *ALL[4:6], f"{code}:stop", *ALL[6:8], f"{code}:stop", *ALL[8:]]
    whole = settings(tmp_path / "whole", texts, test, steps=steps, save_every=0.01)
    proxlm.prepare_data(whole)
    config, ended = replace(whole, output=str(tmp_path / "ended")), 0
    while ended < 60:
        code.write_text(STOPPING.replace("left = None", f"left = {100 + 20 * ended}"))
        os.utime(code, ns=(0, 0))
        try:
            proxlm.prepare_data(same_code(config, code))
            break
        except StoppedBySignalError:
            ended += 1
            assert not (tmp_path / "ended" / "card.json").exists()
    assert ended >= 5
    wanted, found = everything(tmp_path / "whole"), everything(tmp_path / "ended")
    assert set(wanted) == set(found)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        assert found[name] == wanted[name]
    cards = [json.loads(files["card.json"]) for files in (wanted, found)]
    for card in cards:
        del card["plan"]["inputs"]
    assert cards[0] == cards[1]


def same_code(config: proxlm.CorpusConfig, code: Path) -> proxlm.CorpusConfig:
    """The settings, with a plan that does not see that the test has changed its own file."""
    plan = Path(config.output) / ".work" / "plan.json"
    if plan.exists():
        from proxlm.jobs.data import _plan_of

        plan.write_text(json.dumps(_plan_of(config)))
    return config


def test_killed_and_with_another_hash_seed_it_writes_the_same_bytes(tmp_path: Path) -> None:
    texts, test = messy(tmp_path, 600)

    def command(out: str, seed: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "proxlm", "data", str(texts), "--output", out, "--save-every", "0.02"]
        line += ["--steps", str(ALL).replace("'", '"'), "--contamination.against", str(test)]
        line += ["--quality.min-units", "20"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    assert command("whole", "1").wait(120) == 0
    killed, state = command("killed", "2"), tmp_path / "killed" / ".work" / "state.json"
    deadline = time.monotonic() + 100
    while not state.exists() and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert state.exists()
    assert command("killed", "3").wait(120) == 0
    wanted, found = everything(tmp_path / "whole"), everything(tmp_path / "killed")
    assert {
        name: found[name] == data for name, data in wanted.items() if name != "config.toml"
    } == dict.fromkeys(set(wanted) - {"config.toml"}, True)


def test_what_was_finished_is_returned_and_other_settings_are_refused(tmp_path: Path) -> None:
    texts, test = messy(tmp_path, 20)
    config = settings(tmp_path / "out", texts, test, steps=["unicode", "exact"])
    config = replace(
        config, quality=proxlm.QualitySettings(), near=proxlm.NearSettings(), split=proxlm.SplitSettings(),
        contamination=proxlm.ContaminationSettings(),
    )  # fmt: skip
    first = proxlm.prepare_data(config)
    before = everything(tmp_path / "out")
    assert proxlm.prepare_data(config) == first
    assert everything(tmp_path / "out") == before
    for name in (".writing-card.md-1", ".lock"):
        (tmp_path / "out" / name).touch()  # a crash has left it
    assert proxlm.prepare_data(config) == first
    assert everything(tmp_path / "out") == before
    with pytest.raises(RunError, match="prepared with other settings"):
        proxlm.prepare_data(replace(config, steps=["unicode"]))
    texts.write_text('{"text": "new"}\n')
    with pytest.raises(RunError, match="prepared with other inputs"):
        proxlm.prepare_data(config)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="already there"):
        proxlm.prepare_data(replace(config, output=str(tmp_path / "mine")))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_crash_while_the_work_is_deleted_leaves_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, _ = messy(tmp_path, 20)
    config = proxlm.CorpusConfig(input=[str(texts)], output=str(tmp_path / "out"), steps=["unicode"])

    def half(folder: Path, **_: Any) -> None:
        if folder.exists():
            sorted(folder.iterdir())[0].unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            proxlm.prepare_data(config)
    (tmp_path / "out" / ".lock").touch()  # a kill would have left it
    assert proxlm.prepare_data(config).files["data"].exists()
    assert not [name for name in everything(tmp_path / "out") if name.startswith(".")]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_records_of_chats_are_cleaned_in_place_and_converted(tmp_path: Path) -> None:
    chats = [
        {"messages": [said("user", "Hi\u202e a@b.com"), said("assistant", "Yes\x00")], "id": 1},
        {"prompt": "Q", "response": "A"},
        {"instruction": "Do", "input": "this", "output": "done"},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        {"prompt": [said("user", "x")], "response": [said("tool", "y"), said("assistant", "z")]},
    ]  # fmt: skip
    texts = write(tmp_path / "chats.jsonl", chats)
    config = proxlm.CorpusConfig(
        input=[str(texts)], output=str(tmp_path / "out"), steps=["unicode", "pii", "chat"],
        chat=proxlm.ChatSettings(to="alpaca"),
    )  # fmt: skip
    done = proxlm.prepare_data(config)
    assert rows(done.files["data"]) == [
        {"instruction": "Hi [EMAIL]", "input": "", "output": "Yes", "id": 1},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Do\n\nthis", "input": "", "output": "done"},
        {"instruction": "x", "input": "", "output": "y"},
    ]
    assert done.card["steps"][-1]["removed"] == {"not expressible": 1}
    for record in iter_records(done.files["data"]):
        assert training_content(record, TextSettings(chat=True)) is not None


def test_documents_of_text_files_and_hostile_ones(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes("one\r\ntwo\r\n\r\n\r\nthree \u202e\x07four".encode())
    (folder / "b.txt").write_text("x" * 500_000 + "\n\n" + "<div>" * 20_000)
    (folder / "empty.txt").write_text("")
    config = proxlm.CorpusConfig(
        input=[str(folder)], output=str(tmp_path / "out"), documents="blank_line", steps=["unicode", "html"]
    )
    done = proxlm.prepare_data(config)
    assert [row["text"][:12] for row in rows(done.files["data"])] == [
        "one\ntwo",
        "three four",
        "xxxxxxxxxxxx",
    ]
    assert done.card["steps"][-1]["removed"] == {"empty": 1}
    whole = proxlm.prepare_data(replace(config, output=str(tmp_path / "whole"), documents="file"))
    assert len(rows(whole.files["data"])) == 2
    assert whole.card["steps"][0]["removed"] == {"empty": 1}
    (folder / "c.txt").write_bytes(b"a\0b\0c\0d\0" * 100)
    with pytest.raises(DataError, match="many NUL bytes"):
        proxlm.prepare_data(replace(config, output=str(tmp_path / "nul")))
    assert not (tmp_path / "nul").exists()  # nothing is left of a job whose data was wrong


def test_a_step_of_the_users(tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text(
        "def long(record):\n    return {**record, 'n': len(record['text'])} if len(record['text']) > 2 else None\n"
        "def wrong(record):\n    return 5\ndef broken(record):\n    return record['no']\n"
    )
    texts = write(tmp_path / "t.jsonl", [{"text": "abc"}, {"text": "a"}])
    config = proxlm.CorpusConfig(input=[str(texts)], output=str(tmp_path / "out"), steps=[f"{code}:long"])
    done = proxlm.prepare_data(config)
    assert rows(done.files["data"]) == [{"text": "abc", "n": 3}]
    assert done.card["steps"][1]["removed"] == {"left out by long": 1}
    for name, message in (("wrong", "returned int"), ("broken", "KeyError: 'no'")):
        with pytest.raises(UserCodeError, match=message):
            proxlm.prepare_data(replace(config, output=str(tmp_path / name), steps=[f"{code}:{name}"]))


def test_bad_records(tmp_path: Path) -> None:
    texts = tmp_path / "t.jsonl"
    texts.write_text('{"text": "good one"}\n{broken\n{"other": 5}\n{"text": 7}\n')
    config = proxlm.CorpusConfig(input=[str(texts)], output=str(tmp_path / "out"), steps=["unicode"])
    with pytest.raises(DataError, match=r"t\.jsonl:2: not valid JSON"):
        proxlm.prepare_data(config)
    done = proxlm.prepare_data(replace(config, on_bad_record="skip"))
    assert done.card["steps"][0]["removed"] == {"field missing": 1, "no text": 1, "not valid JSON": 1}
    assert done.card["steps"][0]["records_in"] == 4
    assert [row["kind"] for row in rows(tmp_path / "out" / "skipped.jsonl")] == ["not valid JSON"]
    blank = write(tmp_path / "blank.jsonl", [{"text": " "}])
    with pytest.raises(DataError, match="no record is left; left out: read: 1 empty"):
        proxlm.prepare_data(replace(config, input=[str(blank)], output=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "unicod"], "no step unicod; did you mean unicode?"),
        (["--near.treshold", "0.5"], "near.treshold: unknown key; did you mean near.threshold"),
        (["--near.threshold", "0.5"], "near.threshold = 0.5: has no effect with steps"),
        (["--near.threshold", "2", "--steps", "near"], "must be at most 1"),
        (["--steps", "contamination"], "contamination.against: required"),
        (["--steps", '["split", "unicode"]'], "split must be the last one"),
        (["--steps", "pii", "--pii.kinds", "emial"], "no kind emial; did you mean email?"),
        (["--steps", "pii", "--pii.mask", "a@b.com"], "may hold {kind}, brackets"),
        (["--steps", "split", "--split.by", "field"], "split.field: required"),
        (["--steps", "split", "--split.folds", "1"], "must be 0 or at least 2"),
        (["--steps", "nowhere.py:f"], 'steps: no file "'),
        (["--output", ""], 'output = "": required'),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = write(tmp_path / "t.jsonl", [{"text": "a"}])
    assert main(["data", str(texts), "--output", "out", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxlm.config.corpus.find_spec", lambda name: None)
    config = proxlm.CorpusConfig(input=["x"], output=str(tmp_path / "out"), steps=["near"])
    with pytest.raises(ConfigError, match=r'near needs datasketch: pip install "proxlm\[corpus\]"'):
        proxlm.prepare_data(config)


def test_nothing_of_it_needs_torch() -> None:
    code = "import proxlm.jobs.data, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
