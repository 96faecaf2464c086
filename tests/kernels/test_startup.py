"""What changes for the whole process: all of it where a job starts, none of it where a library user builds things."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
sys.path[:0] = {paths}
import torch

def state():
    from transformers.utils import logging
    a, b = torch.randn(2, 4, 4).bfloat16()
    with torch.profiler.profile() as seen:
        a @ b
    return dict(
        threads=torch.get_num_threads(),
        interop=torch.get_num_interop_threads(),
        dtype=str(torch.get_default_dtype()),
        device=str(torch.get_default_device()),
        gradients=torch.is_grad_enabled(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        precision=torch.get_float32_matmul_precision(),
        autocast=torch.is_autocast_enabled("cpu"),
        mkldnn=torch.backends.mkldnn.enabled,
        cudnn=torch.backends.cudnn.enabled,
        tf32=torch.backends.cuda.matmul.allow_tf32,
        bars=logging.is_progress_bar_enabled(),
        verbosity=logging.get_verbosity(),
        kernels=[torch._C._dispatch_dump(f"aten::{{name}}") for name in ("mm", "addmm", "bmm", "baddbmm")],
        operations=sorted(e.key for e in seen.key_averages()),
    )

from small_models import TEXTS
before = state()
{body}
print(json.dumps([before, state()]))
"""

BUILD = """
from pathlib import Path
from tempfile import mkdtemp
from helpers import SilentLog, job, trainer
from proxlm.data.tokenizer import train_tokenizer
from small_models import tiny_model
tokenizer = train_tokenizer(TEXTS * 20, vocabulary=320, context=128)
for name, precision in (("llama", "bfloat16"), ("lstm", "float32"), ("t5", "float32")):
    tiny_model(tokenizer, name, precision=precision)
seed = torch.initial_seed()
made = trainer(tokenizer, job("separate", steps=1), Path(mkdtemp()))
made.train(SilentLog())
"""

START = """
from proxlm.kernels.startup import start
changed = start(threads=2)
assert len(changed) >= 2, changed
"""


def states(body: str) -> tuple[dict[str, object], dict[str, object]]:
    """The process-wide state of a fresh process before and after."""
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(paths=paths, body=body)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


def test_building_and_training_change_nothing_for_the_process() -> None:
    before, after = states(BUILD)
    assert after == before


def test_start_changes_what_it_says() -> None:
    before, after = states(START)
    assert after["threads"] == 2
    assert before["bars"]
    assert not after["bars"]
    assert {name for name in before if before[name] != after[name]} <= {"threads", "bars", "verbosity"}


def test_start_can_leave_everything_alone() -> None:
    before, after = states(
        "from proxlm.kernels.startup import start\n"
        "assert start(quiet_transformers=False, keep_memory=False) == []"
    )
    assert after == before
