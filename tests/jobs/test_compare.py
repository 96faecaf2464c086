"""`proxlm compare`: runs, files of responses and seeds against one another, and win rates by a judge or a reward."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import proxlm
from judge_server import serving
from proxlm import load_config
from proxlm.__main__ import main
from proxlm.errors import UserError
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.results import Evaluation
from proxlm.models.save import save_language_model
from proxlm.report.evaluation_files import write_evaluations, write_responses
from small_models import tiny_model

WORDS = ["tea", "rain", "a cat", "snow", "an old boat", "bread", "a lamp", "the sea"]


def rows(lead: float, ending: str, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {
            "prompt_id": i, "prompt": f"Describe {word}.", "response": f"{word}{ending}", "finish": "eos",
            "length": len(word), "reward": round(lead + float(generator.normal(i, 0.3)), 3), "kl": 0.1,
            "greedy": {"response": f"{word}{ending}{ending}", "reward": lead, "finish": "eos", "length": 3},
        }
        for i, word in enumerate(WORDS)
    ]  # fmt: skip


def run_of(folder: Path, *leads: float) -> Path:
    """A finished run's evaluations: before and after."""
    folder.mkdir()
    found = [
        Evaluation(
            name, "m", {"reward": Estimate(lead, lead, lead)}, [], 8, 0, rows(lead, "." if lead else "")
        )
        for name, lead in zip(("before", "after"), leads, strict=True)
    ]
    for evaluation in found:
        write_responses(folder, evaluation)
    write_evaluations(folder, found, 0)
    return folder


def responses(path: Path, **models: list[dict[str, Any]]) -> Path:
    lines = [json.dumps({"model": name, **row}) for name, every in models.items() for row in every]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def compare(capsys: pytest.CaptureFixture[str], *arguments: Any, status: int = 0) -> str:
    assert main(["compare", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    return captured.out if not status else captured.err


def test_a_run_is_compared_with_its_start_and_with_other_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = run_of(tmp_path / "one", 0.0, 1.0), run_of(tmp_path / "other", 0.0, 3.0)
    alone = compare(capsys, one)
    assert "less before" in alone
    assert re.search(r"greedy/reward +\+1\.000 +\+1\.000 to \+1\.000", alone)
    both = compare(capsys, one, other, "--output", tmp_path / "found.json")
    assert "8 prompts, paired" in both
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    reward = next(d for d in found["differences"] if d["metric"] == "reward")
    assert reward["estimate"]["mean"] == pytest.approx(2.0)
    assert reward["p"] == 2 / 2**8  # each of 8 prompts rose
    assert next(d for d in found["differences"] if d["metric"] == "kl")["p"] is None


def test_models_of_one_file_and_arms_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = responses(tmp_path / "all.jsonl", small=rows(0.0, ""), large=rows(0.5, "!"), huge=rows(0.7, "!"))
    text = compare(capsys, file)
    assert "less small" in text
    assert "large" in text
    assert "huge" in text
    arms = [
        ",".join(str(responses(tmp_path / f"{arm}{s}.jsonl", m=rows(lead, "", s))) for s in range(3))
        for arm, lead in (("a", 0.0), ("b", 2.0))
    ]
    text = compare(capsys, *arms)
    assert "0.1000" in text
    assert "dealt to two arms in 20 ways, so that no p is below 0.1" in text
    assert "less a… (3 seeds)" in text


def test_one_model_in_two_files_is_named_by_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cold = responses(Path("cold.jsonl"), m=rows(0.0, ""))
    hot = responses(Path("hot.jsonl"), m=rows(0.5, "!"), other=rows(0.7, "!"))
    lines = compare(capsys, cold, hot, "--reward.use", "length", "--reward.args.target", "5").splitlines()
    assert lines[0].startswith("less cold.jsonl ")
    assert any("hot.jsonl: m " in line for line in lines)
    assert any(" other " in line for line in lines)


def test_a_judge_is_asked_in_both_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prefers the text with an exclamation mark, and of equal ones what it is shown first."""

    def answer(_: Any, question: str) -> str:
        first, second = question.split("|")
        return "[[A]]" if first.endswith("!") or not second.endswith("!") else "[[B]]"

    mixed = [*rows(0.0, "!")[:4], *rows(0.0, "")[4:]]
    files = [responses(tmp_path / "a.jsonl", a=rows(0, "")), responses(tmp_path / "b.jsonl", b=mixed)]
    with serving(answer) as server:
        judge = [
            "--reward.use", "judge", "--reward.args.url", server.url, "--reward.args.model", "m",
            "--reward.args.mode", "pairwise", "--reward.args.rubric", "{first}|{second}",
        ]  # fmt: skip
        text = compare(capsys, *files, *judge, "--output", tmp_path / "found.json")
        assert len(server.questions) == 8 + 4  # of two equal texts both orders are one question
    assert re.search(r"b +0\.750 \(0\.\d+ to 0\.\d+\) .* 4 +4 +0 +\+0\.5 ", text)
    # Of each tied pair the first one shown wins both times, of the others one of two.
    assert re.search(r" 0\.750 \(0\.\d+ to 0\.\d+\) +4\n", text)
    (rate,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["win_rates"]
    assert rate["longer"] == 0.5
    assert (
        0 <= rate["equal_length"]["low"] <= rate["equal_length"]["mean"] <= rate["equal_length"]["high"] <= 1
    )


def test_a_verdict_that_is_missing_ends_it_or_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [responses(tmp_path / f"{n}.jsonl", **{n: rows(0, e)}) for n, e in (("a", ""), ("b", "!"))]
    with serving(lambda _, question: "I cannot say." if "boat" in question else "[[tie]]") as server:
        judge = [
            "--reward.use", "judge", "--reward.args.url", server.url, "--reward.args.model", "m",
            "--reward.args.mode", "pairwise", "--reward.args.retries", "0",
        ]  # fmt: skip
        said = compare(capsys, *files, *judge, status=2)
        assert "no verdict in the reply" in said
        text = compare(capsys, *files, *judge, "--reward.on-error", "score")
    assert re.search(r"b +0\.500 .* 0 +7 +0 ", text)
    assert "b: 1 prompts left out" in text


def test_the_higher_reward_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = responses(tmp_path / "r.jsonl", a=rows(0, ""), b=rows(0, "!"), c=rows(0, ""))
    reward = ["--reward.use", "regex", "--reward.args.pattern", "!"]
    text = compare(capsys, file, *reward)
    assert re.search(
        r"b +1\.000 \(0\.676 to 1\.000\) +– ", text
    )  # Wilson's, of 8 of 8; all are longer by one
    assert re.search(r"c +0\.500 ", text)
    recipe = tmp_path / "judge.toml"
    recipe.write_text('[reward]\nuse = "regex"\nargs = {pattern = "!!"}\n', encoding="utf-8")
    text = compare(capsys, file, recipe, "--greedy", "--output", tmp_path / "found.md")
    assert re.search(r"b +1\.000 ", text)
    assert "| against a | win rate |" in (tmp_path / "found.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nowhere", "one"], "nowhere: no such run or file of responses"),
        (["a.jsonl"], "needs two to compare"),
        (["a.jsonl", "b.jsonl", "nothing.jsonl"], "nothing.jsonl: the file holds no responses"),
        (["a.jsonl", "short.jsonl"], "are of different prompts: 1 of 8"),
        (["a.jsonl", "empty"], "holds no evaluation.json"),
        (["a.jsonl", "changed"], "not what the run wrote"),
        (["a.jsonl", "text.txt"], "line 1: not a row of JSON"),
        (["one,a.jsonl", "two.jsonl,a.jsonl"], "holds the responses of 2 models"),
        (["one,a.jsonl", "a.jsonl,one", "--reward.use", "length"], "win rates are of single runs"),
        ([], "runs: required"),
        (["one", "a.jsonl", "--greedy"], "set reward.use"),
    ],
)
def test_what_cannot_be_compared_is_said(
    names: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "one", 0.0, 1.0)
    responses(tmp_path / "a.jsonl", a=rows(0, ""))
    responses(tmp_path / "short.jsonl", b=rows(0, "")[1:])
    responses(tmp_path / "two.jsonl", a=rows(0, ""), b=rows(0, ""))
    responses(tmp_path / "b.jsonl", b=rows(1, ""))
    (tmp_path / "nothing.jsonl").touch()
    (tmp_path / "empty").mkdir()
    changed = run_of(tmp_path / "changed", 0.0, 1.0) / "evaluation-after.jsonl"
    changed.write_text(changed.read_text(encoding="utf-8").replace("tea", "TEA"), encoding="utf-8")
    (tmp_path / "text.txt").write_text("hello\n", encoding="utf-8")
    assert said in compare(capsys, *names, status=2)


def test_runs_may_be_named_before_behind_and_by_their_setting() -> None:
    config = load_config("compare", arguments=["a", "b,c", "--seed", "3", "--runs", "d"])
    assert (config.runs, config.seed) == (["a", "b,c", "d"], 3)


def test_evaluate_shows_what_compare_finds_in_its_responses(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one", 0), ("other", 1)):
        save_language_model(tiny_model(tokenizer, seed=seed), tmp_path / name)
    lines = [json.dumps({"prompt": f"The {word}"}) for word in WORDS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = [
        "evaluate", "--model.policy", "one", "--models", "other", "--model.device", "cpu",
        "--data.eval-prompts", "prompts.jsonl", "--data.eval-count", "8", "--rollout.max-new-tokens", "6",
        "--reward.use", "length", "--reward.args.target", "20", "--samples", "0", "--output", "found.json",
        "--responses", "r.jsonl",
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert main(arguments) == 0  # over its own files
    (tmp_path / "mine.jsonl").write_text(lines[0], encoding="utf-8")
    for own, other in (("found.json", "one/config.json"), ("r.jsonl", "mine.jsonl")):
        taken = (tmp_path / other).read_bytes()
        assert main([other if one == own else one for one in arguments]) == 2
        assert f"{other}: is there already, and proxlm evaluate" in capsys.readouterr().err
        assert (tmp_path / other).read_bytes() == taken
    table = compare(capsys, "r.jsonl", "--output", "again.json")
    assert table.split("\nwritten")[0].strip() in shown
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["differences"]
    assert found == json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))["differences"]
    assert {d["metric"] for d in found} >= {"reward", "kl", "length", "greedy/reward", "greedy/length"}


def test_from_python_paths_evaluations_and_seeds(tmp_path: Path) -> None:
    def evaluation(name: str, *of: list[dict[str, Any]]) -> list[Evaluation]:
        return [Evaluation(name, "m", {}, [], 8, 0, list(each)) for each in of]

    low, high = rows(0.0, ""), rows(1.0, "")
    one, other = evaluation("a", low)[0], evaluation("b", high)[0]
    (reward, *_) = proxlm.compare([one, other])
    assert (reward.arm, reward.reference, reward.estimate.mean) == ("b", "a", pytest.approx(1.0))
    files = [responses(tmp_path / "a.jsonl", a=low), responses(tmp_path / "b.jsonl", b=high)]
    assert proxlm.compare(files) == proxlm.compare([one, files[1]]) == proxlm.compare([one, other])
    arms = proxlm.compare([evaluation("a", low, low), evaluation("b", high, high)])
    assert arms[0].p == pytest.approx(2 / 6)
    for wrong in ([one], [], [one, []], [one, [files[0]]], "runs/a"):
        with pytest.raises(UserError):
            proxlm.compare(wrong)


@pytest.mark.parametrize("value", ['"good"', "1e999", "[1]"])
def test_what_is_no_number_is_refused(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"model": "a", "prompt": "p", "metrics": {"task/mine": 1}}'] * 2
    lines.append(f'{{"model": "b", "prompt": "p", "metrics": {{"task/mine": {value}}}}}')
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = compare(capsys, tmp_path / "rows.jsonl", status=2)
    assert "row 3: task/mine = " in said
    assert "not a finite number" in said


def test_an_output_that_cannot_be_written_is_found_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be written: No such file" in compare(
        capsys, "no.jsonl", "nor.jsonl", "--output", tmp_path / "nowhere" / "a.json", status=2
    )
    (tmp_path / "folder.json").mkdir()
    assert "cannot be written: Is a directory" in compare(
        capsys, "no.jsonl", "nor.jsonl", "--output", tmp_path / "folder.json", status=2
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.json"]


def test_the_page_says_what_it_is_and_one_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = responses(tmp_path / "all.jsonl", a=rows(0.0, "")[:1], b=rows(0.0, "")[:1])
    said = compare(capsys, same, "--output", tmp_path / "a.html")
    assert "<title>proxlm compare</title>" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "(1 prompt, paired" in said
    assert "no row could be tested" in said
