"""Each signal in each phase of `proxlm control` and `proxlm pretrain`: the promised line, and a resume that ends as
if nothing had been. test_every_phase.py has the other jobs."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from processes import run_until

from proxlm.__main__ import main
from proxlm.checkpoint import checkpoints
from small_models import TEXTS

COMMON = ["--run.folder", "run", "--run.save-every", "1", "--run.threads", "1", "--run.tensorboard", "false"]
JOBS = {
    "control": [
        "control", *COMMON, "--environment.id", "CartPole-v1", "--environment.count", "2", "--environment.steps",
        "96", "--ppo.horizon", "16", "--ppo.epochs", "1", "--ppo.minibatches", "2", "--model.width", "8",
    ],
    "pretrain": [
        "pretrain", *COMMON, "--model.device", "cpu", "--text.train", "text.txt", "--new.type", "llama",
        "--new.hidden", "16", "--new.layers", "1", "--new.heads", "2", "--new.context", "32", "--new.vocabulary",
        "280", "--train.block", "32", "--train.steps", "3", "--train.batch-tokens", "60", "--train.validate-every",
        "1", "--train.patience", "0",
    ],
}  # fmt: skip
# What a stopped run says: nothing was there yet, no step was saved, or that step of three was.
NOTHING, NO_STEP, SECOND, LAST = (
    "before it was done; start it again",
    "before a step was saved; start again",
    2,
    3,
)
# job, phase → where it begins, which call of it, and what is said
PHASES = {
    ("control", "making environments"): ("proxlm.jobs.control:ControlLoop", 1, NOTHING),
    ("control", "beginning"): ("proxlm.jobs.control:begin_run", 1, NO_STEP),
    ("control", "in a step"): ("proxlm.control.loop:ControlLoop.step", 2, SECOND),
    ("control", "saving"): ("proxlm.train.common.run_loop:save_checkpoint", 2, SECOND),
    ("control", "publishing"): ("proxlm.jobs.control:publish_folder", 1, LAST),
    ("control", "report"): ("proxlm.jobs.control:write_report", 1, LAST),
    ("control", "reading the run"): ("proxlm.jobs.control:load_run", 1, LAST),
    ("pretrain", "reading text"): ("proxlm.jobs.pretrain_text:read_texts", 1, NOTHING),
    ("pretrain", "tokenizer"): ("proxlm.jobs.pretrain:tokenizer_of_new_model", 1, NOTHING),
    ("pretrain", "making a model"): ("proxlm.jobs.new_models:build_language_model", 1, NOTHING),
    ("pretrain", "beginning"): ("proxlm.jobs.supervised:begin_run", 1, NO_STEP),
    ("pretrain", "in a step"): ("proxlm.train.supervised.loop:SupervisedLoop.step", 2, SECOND),
    ("pretrain", "validating"): ("proxlm.train.supervised.objective:LanguageModelObjective.validate", 2, SECOND),
    ("pretrain", "publishing"): ("proxlm.train.supervised.loop:publish_folder", 2, SECOND),
    ("pretrain", "saving"): ("proxlm.train.common.run_loop:save_checkpoint", 2, SECOND),
    ("pretrain", "report"): ("proxlm.jobs.supervised:write_report", 1, LAST),
    ("pretrain", "reading the run"): ("proxlm.jobs.supervised:load_run", 1, LAST),
}  # fmt: skip
SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGINT: "Ctrl-C"}


@pytest.fixture(scope="module", params=JOBS)
def finished(request, tmp_path_factory):
    """A job, and the weights of a run of it that nothing happened to, in the current folder."""
    place = tmp_path_factory.mktemp(request.param)
    (place / "text.txt").write_text("\n\n".join(TEXTS * 4), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(JOBS[request.param]) == 0
        shutil.move("run", "whole")
        yield request.param, weights(Path("whole"))


def weights(run):
    return [path.read_bytes() for path in sorted((run / "policy").glob("*.safetensors"))]


def promised(said, job, word, phase):
    if said == NOTHING:
        return "proxlm: interrupted" if word == "Ctrl-C" else f"proxlm: stopped by {word} {said}"
    if said == NO_STEP:
        return f"proxlm: stopped by {word} {said} with another run.folder than run"
    step = "2 of 3" if said == SECOND else "3"
    if said == SECOND and word == "Ctrl-C":
        # The run's end follows, and the line comes last. A step that is being saved cannot be validated any more.
        step = "3" if (job, phase) == ("pretrain", "saving") else "2"
    return f"proxlm: stopped by {word} after step {step}, saved; go on with: proxlm {job} run/config.toml --resume"


def test_each_signal_in_each_phase(finished):
    job, whole = finished
    for (of, phase), (place, call, said) in PHASES.items():
        for number, word in SIGNALS.items() if of == job else ():
            shutil.rmtree("run", ignore_errors=True)
            ended = run_until(JOBS[job], place, lambda child, n=number: os.kill(child, n), call=call)
            where = f"{job}, {phase}, {word}: {ended}"
            assert ended.status == 128 + number, where
            assert ended.errors.splitlines()[-1] == promised(said, job, word, phase), where
            assert "Traceback" not in ended.errors, where
            assert not Path("run/.lock").exists(), where
            assert bool(checkpoints(Path("run"))) == (said in (SECOND, LAST)), where
        if of == job and said in (SECOND, LAST):
            assert main([job, "run/config.toml", "--resume"]) == 0
            assert weights(Path("run")) == whole, phase
            assert Path("run/report.html").exists(), phase
            assert not [path.name for path in Path("run").rglob(".*")], phase


def test_under_nohup_a_hangup_is_ignored(finished):
    job, whole = finished
    shutil.rmtree("run", ignore_errors=True)
    place, call, _ = PHASES[job, "in a step"]
    ended = run_until(
        JOBS[job],
        place,
        lambda child: os.kill(child, signal.SIGHUP),
        call=call,
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert (ended.status, ended.errors) == (0, "")
    assert weights(Path("run")) == whole
