"""`proxlm verify` and `Run.verify`: a line for each finding of a run's folder, and "ok" where there is none."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from small_runs import PPO, SFT, tiny_place  # noqa: F401

from proxlm import load_run
from proxlm.__main__ import main
from proxlm.checkpoint.manifest import write_manifest
from proxlm.runlog.lock import locked


def verified(folder, capsys):
    """The exit status and the lines of the command; the Python API says the same."""
    capsys.readouterr()
    status = main(["verify", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    findings = load_run(folder).verify()
    assert lines == (findings or ["ok"])
    return status, lines


@pytest.fixture
def run(tiny_place):  # noqa: F811
    assert main([*PPO, "--ppo.steps", "3", "--run.keep", "9"]) == 0
    return tiny_place / "run"


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def restate(folder, **values):
    """Change a checkpoint's state, and its manifest with it."""
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **values}))
    write_manifest(folder)


def lines_of(path, change):
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def exchange(folder):
    one, two = folder / "step-00000001", folder / "step-00000002"
    one.rename(folder / "x"), two.rename(one), (folder / "x").rename(two)


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


HARM = {
    "another value in a row": (
        lambda run: replaced(run / "metrics.jsonl", '"kl_coef": 0.05', '"kl_coef": 0.5'),
        ["metrics.jsonl: a row is not what the run wrote (another SHA-256)"] * 3,
    ),
    "another sample": (
        lambda run: replaced(run / "samples.jsonl", '"response": "', '"response": "x'),
        ["samples.jsonl: a row is not what the run wrote (another SHA-256)"] * 3,
    ),
    "no evaluation": (lambda run: (run / "evaluation.json").unlink(), ["evaluation.json: missing"]),
    "a FIFO in a checkpoint": (
        lambda run: os.mkfifo(run / "checkpoints/step-00000002/policy/pipe"),
        ["step-00000002: policy/pipe was not there when it was written"],
    ),
    "a FIFO instead of a file": (
        lambda run: (
            (run / "checkpoints/step-00000002/policy/config.json").unlink(),
            os.mkfifo(run / "checkpoints/step-00000002/policy/config.json"),
        ),
        ["step-00000002: "],
    ),
    "a link in a checkpoint": (
        lambda run: (run / "checkpoints/step-00000002/more").symlink_to("/"),
        ["step-00000002: more was not there when it was written"],
    ),
    "a bit of the weights": (
        lambda run: flip(run / "checkpoints/step-00000002/state.safetensors"),
        ["step-00000002: state.safetensors is not what was written"],
    ),
    "exchanged": (
        lambda run: exchange(run / "checkpoints"),
        ["step-00000001: holds step 2", "step-00000002: holds step 1"],
    ),
    "β": (
        lambda run: restate(run / "checkpoints/step-00000001", kl_coef=-1.0),
        ["state.json: kl_coef = -1, where β is at least 0"],
    ),
    "step": (
        lambda run: restate(run / "checkpoints/step-00000001", step=-1),
        ["state.json: step = -1, where a count is needed"],
    ),
    "other settings": (
        lambda run: replaced(run / "config.toml", "\nlam = 0.95", "\nlam = 0.9"),
        ["made with ppo.lam = 0.95, not 0.9"] * 3,
    ),
    "a lost row": (
        lambda run: lines_of(run / "metrics.jsonl", lambda rows: [rows[0], *rows[2:]]),
        ["step-00000002: metrics.jsonl has 1 rows", "step-00000003: metrics.jsonl has 2 rows", "no row of step 2"],
    ),
    "a doubled sample": (
        lambda run: lines_of(run / "samples.jsonl", lambda rows: [rows[0], *rows]),
        [f"step-0000000{i}: samples.jsonl has" for i in (1, 2, 3)],
    ),
    "other prompts": (
        lambda run: lines_of(run.parent / "prompts.jsonl", lambda rows: [*rows, "\n"]),
        ["data.prompts: prompts.jsonl changed"],
    ),
    "another model": (
        lambda run: flip(run.parent / "model/model.safetensors"),
        ["model.policy: model.safetensors changed"],
    ),
    "no reward": (lambda run: (run.parent / "reward.py").unlink(), ["reward.use: reward.py gone"]),
    "another policy": (
        lambda run: flip(run / "policy/model.safetensors"),
        ["policy/model.safetensors: not what step-00000003 holds"],
    ),
    "a file of another in policy": (
        lambda run: (run / "policy/chat_template.jinja").write_text("{{ 1 }}"),
        ["policy/chat_template.jinja: not written by the run"],
    ),
    "no policy": (
        lambda run: shutil.rmtree(run / "policy"),
        ["policy: missing: the run was stopped after its last step"],
    ),
    "no record": (lambda run: (run / "inputs.json").unlink(), ["inputs.json: missing"]),
    "another record": (
        lambda run: (run / "inputs.json").write_text('{"format": 1, "inputs": {}}'),
        [*["no hash was recorded"] * 3, "not the inputs that step-00000003"],
    ),
    "a damaged evaluation": (
        lambda run: (run / "evaluation.json").write_text("{"),
        ["evaluation.json: line 1: not JSON"],
    ),
    "another value in an evaluation": (
        lambda run: replaced(run / "evaluation.json", '"prompts": ', '"prompts": 1'),
        ["evaluation.json: a value is not what the run wrote (another SHA-256)"],
    ),
    "another response in an evaluation's table": (
        lambda run: replaced(run / "evaluation.json", '"response": "', '"response": "x'),
        ["evaluation.json: a value is not what the run wrote (another SHA-256)"],
    ),
    "an evaluation without its hash": (
        lambda run: replaced(run / "evaluation.json", '"sha256"', '"other"'),
        ["evaluation.json: a value is not what the run wrote (another SHA-256)"],
    ),
    "another response of an evaluation": (
        lambda run: replaced(run / "evaluation-after.jsonl", '"response": "', '"response": "x'),
        ["evaluation-after.jsonl: not what the run wrote (another SHA-256)"],
    ),
    "no responses of an evaluation": (
        lambda run: (run / "evaluation-before.jsonl").unlink(),
        ["evaluation-before.jsonl: missing"],
    ),
    "what a kill left": (
        lambda run: [(run / "checkpoints/.writing-00000004").mkdir(), (run / "dead").symlink_to("x"),
                     (run / "checkpoints/step-00000007").symlink_to("x")],
        ["checkpoints/.writing-00000004: left by", "checkpoints/step-00000007: left by"],
    ),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), ["no complete checkpoint"]),
}  # fmt: skip


def test_a_run_as_it_was_left_is_ok_and_so_is_a_resumed_one(run, capsys):
    assert verified(run, capsys) == (0, ["ok"])
    assert main(["ppo", str(run / "config.toml"), "--resume", "--ppo.steps", "4"]) == 0
    assert verified(run, capsys) == (0, ["ok"])
    moved = run.rename(run.with_name("moved"))
    assert verified(moved, capsys) == (0, ["ok"])


def test_each_harm_is_a_finding(run, capsys):
    whole = shutil.copytree(run.parent, run.parent.with_name("whole"))
    for case, (harm, wanted) in HARM.items():
        harm(run)
        if case == "a damaged evaluation":
            capsys.readouterr()
            status, lines = main(["verify", str(run)]), capsys.readouterr().out.splitlines()
        else:
            status, lines = verified(run, capsys)
        assert status == 1, case
        assert len(lines) == len(wanted), (case, lines)
        for line, said in zip(lines, wanted, strict=True):
            assert said in line, case
        for name in ("run", "model"):
            shutil.rmtree(run.parent / name)
        shutil.copytree(whole, run.parent, dirs_exist_ok=True, symlinks=True)


def test_a_changed_evaluation_is_made_again_by_a_resume(run, capsys):
    wanted = load_run(run).evaluations
    replaced(run / "evaluation.json", '"prompts": ', '"prompts": 1')
    assert main(["ppo", str(run / "config.toml"), "--resume"]) == 0
    assert "the evaluation before the run is made again: " in capsys.readouterr().out
    found = load_run(run).evaluations
    assert {name: e.metrics for name, e in found.items()} == {name: e.metrics for name, e in wanted.items()}
    assert verified(run, capsys) == (0, ["ok"])
    replaced(run / "evaluation-before.jsonl", '"response": "', '"response": "x')
    assert main(["ppo", str(run / "config.toml"), "--resume"]) == 0
    assert verified(run, capsys) == (0, ["ok"])


def test_fine_tuning_is_checked_with_its_best_model(tiny_place, capsys):  # noqa: F811
    assert main([*SFT, "--run.keep", "9"]) == 0
    run = tiny_place / "sft-run"
    assert verified(run, capsys) == (0, ["ok"])
    flip(run / "policy" / "model.safetensors")
    lines_of(tiny_place / "pairs.jsonl", lambda rows: rows[1:])
    status, lines = verified(run, capsys)
    assert status == 1
    assert [line.partition(" ")[0] for line in lines] == [
        "text.train[0]:",
        f"{run}/policy/model.safetensors:",
    ]


def test_a_run_in_progress_is_not_blamed_for_what_it_is_writing(run, capsys):
    (run / "checkpoints" / ".writing-00000004").mkdir()
    (run / "policy" / "config.json").unlink()
    with locked(run):
        assert verified(run, capsys) == (0, ["ok"])


def test_what_is_no_run_is_an_error(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "not a run's folder" in capsys.readouterr().err
    assert main(["verify"]) == 2
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
