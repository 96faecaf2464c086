"""Torn and altered checkpoints are seen, named and passed over; whatever bytes they hold."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxlm.checkpoint import (
    best_folder,
    checkpoints,
    damage,
    load_checkpoint,
    newest_checkpoint,
    read_manifest,
    remove_other_models,
    save_checkpoint,
    set_aside_newer,
)
from proxlm.checkpoint.manifest import write_manifest
from proxlm.errors import RunError


def write(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def save(run, step, keep=9):
    tensors = {"w": torch.full((2,), float(step))}
    return save_checkpoint(run, step, tensors, {"kl_coef": 0.5}, keep, write)


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HARM = {
    "torn weights": ("state.safetensors", cut_in_half, "state.safetensors has"),
    "one bit of the weights": ("state.safetensors", flip_a_byte, "state.safetensors is not what was written"),
    "torn state": ("state.json", cut_in_half, "state.json has"),
    "a file of the model gone": ("policy/config.json", lambda p: p.unlink(), "policy/config.json is missing"),
    "another file": ("policy/new.bin", lambda p: p.touch(), "policy/new.bin was not there"),
    "torn manifest": ("manifest.json", cut_in_half, "manifest.json: not valid JSON"),
    "no manifest": ("manifest.json", lambda p: p.unlink(), "manifest.json: cannot be read: No such file"),
    "empty manifest": ("manifest.json", lambda p: p.write_text("{}"), "manifest.json: format None"),
}


@pytest.mark.parametrize("case", HARM)
def test_harm_is_named_and_the_good_one_before_is_used(tmp_path, case):
    file, harm, wanted = HARM[case]
    save(tmp_path, 1)
    bad = save(tmp_path, 2)
    harm(bad / file)
    said = []
    assert newest_checkpoint(tmp_path, said.append).name == "step-00000001"
    assert len(said) == 1
    assert said[0].startswith("note: passed over a damaged checkpoint: ")
    assert f"{bad}" in said[0]
    assert wanted in said[0]
    with pytest.raises(RunError, match="step-00000002"):
        load_checkpoint(bad)


def test_a_good_one_is_silent(tmp_path):
    folder = save(tmp_path, 1)
    (folder / ".nfs0001").write_text("a file system's own")
    said = []
    assert newest_checkpoint(tmp_path, said.append) == folder
    assert (said, damage(folder)) == ([], None)
    assert set(read_manifest(folder)) == {"state.json", "state.safetensors", "policy/config.json"}
    assert read_manifest(folder)["policy/config.json"].size == 2


def test_where_all_are_damaged_each_is_named(tmp_path):
    for step in (1, 2):
        cut_in_half(save(tmp_path, step) / "state.json")
    with pytest.raises(RunError, match=r"every checkpoint is damaged \(.*step-00000002: .*step-00000001: "):
        newest_checkpoint(tmp_path)


def test_a_damaged_one_is_set_aside_so_that_rotation_does_not_count_it(tmp_path):
    good = save(tmp_path, 6, keep=1)
    bad = save(tmp_path, 8)
    flip_a_byte(bad / "state.json")
    set_aside_newer(good)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "damaged-step-00000008",
        "step-00000006",
    ]
    save(tmp_path, 7, keep=1)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000007"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
RECORDS = st.dictionaries(st.sampled_from(["state.json", "../x", "a\0b"]) | st.text(), JSON)
ANYTHING = (
    st.binary()
    | JSON.map(lambda v: json.dumps(v).encode())
    | RECORDS.map(lambda v: json.dumps({"format": 1, "files": v}).encode())
    | st.sampled_from([b"[" * 100_000, b'{"format": 1, "files": {"a": {"size": 1e999}}}', b"9" * 5000])
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(data=ANYTHING)
def test_any_bytes_are_a_run_error_or_fine(tmp_path, data):
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    folder = save(tmp_path, 1)
    (folder / "manifest.json").write_bytes(data)
    for use in (read_manifest, damage, load_checkpoint):
        with suppress(RunError):
            use(folder)
    # A state that its manifest agrees with is read as far as its numbers.
    (folder / "state.json").write_bytes(data)
    write_manifest(folder)
    with suppress(RunError):
        load_checkpoint(folder)
    # Which step each checkpoint names as its best is read where it can be.
    best_folder(tmp_path, 1).mkdir(parents=True, exist_ok=True)
    remove_other_models(tmp_path, 2)
    save(tmp_path, 2, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
