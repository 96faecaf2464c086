"""A FIFO or a device instead of a file is refused by name, wherever a file is read; nothing waits for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from proxlm.checkpoint.manifest import damage, read_json_object, write_manifest
from proxlm.checkpoint.read import load_checkpoint
from proxlm.config import load_config
from proxlm.config.toml_text import DEEPEST, LARGEST_RECIPE
from proxlm.data.records import iter_records
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import require_folder
from proxlm.errors import UserError
from proxlm.rewards.reward_model import RewardModel
from proxlm.runlog.folder import read_jsonl, write_atomic
from proxlm.runlog.saved_settings import read_saved_settings, read_text

KINDS = ["fifo", "/dev/zero"]


def put(path: Path, kind: str) -> Path:
    """Something that is no regular file, at the path."""
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(kind)
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "recipe.toml": lambda path: load_config("ppo", path),
    **{
        f"data.{ending}": lambda path: list(iter_records(path))
        for ending in ("jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "parquet")
    },
    "text.txt": lambda path: read_texts([str(path)], [".txt"]),
    "manifest.json": read_json_object,
    "metrics.jsonl": read_jsonl,
    "evaluation.json": read_text,
    "written": lambda path: write_atomic(path, "text"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_it(tmp_path, name, kind):
    path = put(tmp_path / name, kind)
    with pytest.raises(UserError, match=r"not a regular file but a (pipe|device)") as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)
    assert not path.is_file()  # and what was there still is


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_run_with_one(tmp_path, kind):
    put(tmp_path / "config.toml", kind)
    with pytest.raises(UserError, match="not a regular file"):
        read_saved_settings(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "state.safetensors"])
def test_a_checkpoint_with_one(tmp_path, name, kind):
    (tmp_path / "state.json").write_text(json.dumps({"step": 1}))
    (tmp_path / "state.safetensors").write_bytes(b"")
    write_manifest(tmp_path)
    assert damage(tmp_path) is None
    put(tmp_path / name, kind)
    with pytest.raises(UserError, match=name):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "anything"])
def test_a_model_folder_with_one(tmp_path, name, kind):
    put(tmp_path / name, kind)
    with pytest.raises(UserError, match="not a regular file"):
        require_folder(str(tmp_path))
    with pytest.raises((UserError, ValueError), match="not a regular file"):
        RewardModel(str(tmp_path))


def test_a_recipe_has_a_largest_size(tmp_path):
    recipe = tmp_path / "large.toml"
    recipe.write_text("# " + "x" * LARGEST_RECIPE)
    with pytest.raises(UserError, match=r"large.toml: cannot be read: larger than 1 MiB"):
        load_config("ppo", recipe)


@pytest.mark.parametrize(
    "text",
    [
        "reward.args.a = " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
        "reward.args.a = " + "[" * 100_000,
        "[reward.args]\na = " + "{a = " * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1),
        "reward.args" + ".a" * DEEPEST + " = 1",
        '"a" . ' * 100_000 + "b = 1",
        "[reward.args" + ".a" * 100_000 + "]",
        "reward.args = {" + "a." * 100_000 + "b = 1}",
    ],
    ids=["lists", "open lists", "tables", "key", "quoted keys", "header", "inline"],
)
def test_a_recipe_has_a_largest_depth(tmp_path, text):
    recipe = tmp_path / "deep.toml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=r"deep\.toml: not valid TOML: nested too deeply: .* 64 ") as caught:
        load_config("ppo", recipe)
    assert len(str(caught.value)) < 300


def test_brackets_and_dots_in_texts_and_comments_are_not_depth(tmp_path):
    recipe = tmp_path / "flat.toml"
    inside = "[{" * 100 + "a." * 100
    recipe.write_text(
        f"# {inside}\n[reward.args]\na = \"{inside}\\\"\"\nb = '{inside}'\nc = '''\n{inside}'''\n"
        f'd = """{inside}\\""""\n'
    )
    args = load_config(
        "ppo", recipe, {"model.policy": "m", "data.prompts": "p", "reward.use": "length"}
    ).reward.args
    assert args["a"] == args["d"] == inside + '"'
    assert args["b"] == args["c"] == inside


def test_a_key_on_the_command_line_has_a_largest_depth():
    with pytest.raises(UserError, match="nested too deeply") as caught:
        load_config("ppo", arguments=["--reward.args" + ".a" * 50_000, "1"])
    assert len(str(caught.value)) < 300


def test_a_recipe_may_come_through_a_pipe_of_the_shell(tmp_path):
    read, write = os.pipe()
    os.write(write, b"[ppo]\nsteps = 7\n")
    os.close(write)
    settings = {"model.policy": "m", "data.prompts": "p", "reward.use": "length"}
    assert load_config("ppo", f"/dev/fd/{read}", settings).ppo.steps == 7
    os.close(read)
    shutil.rmtree(tmp_path)
