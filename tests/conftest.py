"""One thread for each test process, a small tokenizer, and a small model that has learnt some stories."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Small matrices are fastest with one thread, and pytest-xdist runs one process a core. The environment variable is
# for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from filelock import FileLock

from proxlm.data.tokenizer import train_tokenizer
from small_models import TEXTS
from story_model import PRETRAINED, beside_the_checkout, save_story_model

pytest_plugins = ["checklist_table"]

torch.set_num_threads(1)


# Above this, in bytes, a test process gives its freed memory back.
MUCH = 2**30


def resident_bytes() -> int:
    """The memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def freed_memory_goes_back() -> Iterator[None]:
    """What hundreds of small jobs have freed lies between what is in use, and adds up to gigabytes in a process."""
    yield
    if resident_bytes() > MUCH:
        with suppress(OSError, AttributeError, TypeError):  # C libraries without it
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 20, vocabulary=320, context=128)


@pytest.fixture(scope="session")
def story_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that has learnt the stories of tests/material; made once for all xdist workers."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "story_model"
    with FileLock(root / "story_model.lock"):
        if not folder.is_dir():
            save_story_model(root / "story_model.part").rename(folder)
    return folder


@pytest.fixture(scope="session", params=["story_model", *(p.name for p in beside_the_checkout(PRETRAINED))])
def stories(request: pytest.FixtureRequest) -> Path:
    """The folder of a model of the SentencePiece type: the tiny one, and stories260K where it is there."""
    if request.param == PRETRAINED.name:
        return PRETRAINED
    folder: Path = request.getfixturevalue("story_model")
    return folder
