"""The files that a run reads: which they are, and when they count as changed."""

from __future__ import annotations

import json
import os

import pytest

from proxlm.config import (
    DataSettings,
    EnvironmentSettings,
    ModelSettings,
    PPOConfig,
    PretrainConfig,
    PtxSettings,
    RewardSettings,
    RewardTerm,
    TextSettings,
)
from proxlm.data.inputs import FILE_NAME, inputs_of, read_inputs, write_inputs
from proxlm.errors import RunError


def put(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def model(tmp_path):
    return put(
        tmp_path / "model",
        config_dot_json="{}",
        model_dot_safetensors="w",
        README_dot_md="x",
        logs__a_dot_json="",
    )


def names(config):
    return {key: sorted(files) for key, files in inputs_of(config).files.items()}


def test_each_setting_brings_the_files_that_are_read(tmp_path, model):
    put(
        tmp_path,
        p_dot_jsonl="{}",
        chat_dot_jinja="{{ messages }}",
        judge_dot_py="import helper, json\nfrom . import beside\ndef f(c):\n    import lazy\n",
        helper_dot_py="from pack.deep import x\n",
        beside_dot_py="",
        lazy_dot_py="import judge\n",
        pack__deep_dot_py="import nowhere\n",
        other_dot_py="",
        texts__a_dot_txt="a",
        texts__b__c_dot_md="c",
        texts__d_dot_log="d",
    )
    (tmp_path / "pack" / "__init__.py").touch()
    judge = f"{tmp_path}/judge.py:f"
    config = PPOConfig(
        model=ModelSettings(policy=str(model)),
        data=DataSettings(prompts=str(tmp_path / "p.jsonl"), chat_template=str(tmp_path / "chat.jinja")),
        environment=EnvironmentSettings(use=f"{tmp_path}/helper.py:Game", args={"path": str(model)}),
        reward=RewardSettings(terms={"a": RewardTerm(use=judge), "b": RewardTerm(use="length")}),
        ptx=PtxSettings(text=[str(tmp_path / "texts"), str(tmp_path / "p.jsonl")]),
    )
    code = ["helper.py", "pack/__init__.py", "pack/deep.py"]
    assert names(config) == {
        "model.policy": ["config.json", "model.safetensors"],
        "data.prompts": ["p.jsonl"],
        "data.chat_template": ["chat.jinja"],
        "environment.use": code,
        "environment.args.path": ["config.json", "model.safetensors"],
        "reward.terms.a.use": sorted(["beside.py", *code, "judge.py", "lazy.py"]),
        "ptx.text[0]": ["a.txt", "b/c.md"],
        "ptx.text[1]": ["p.jsonl"],
    }


def test_a_rubric_that_is_a_file_is_an_input_and_one_that_is_a_text_is_not(tmp_path):
    put(tmp_path, rubric_dot_txt="{response}", schema_dot_json="{}")
    rubric, schema = str(tmp_path / "rubric.txt"), str(tmp_path / "schema.json")
    terms = {
        "a": RewardTerm(use="judge", args={"rubric": rubric}),
        "b": RewardTerm(use="judge", args={"rubric": "rate {response}\n"}),
        "c": RewardTerm(use="json_schema", args={"schema": schema}),
    }
    config = PPOConfig(reward=RewardSettings(terms=terms))
    assert names(config) == {
        "reward.terms.a.args.rubric": ["rubric.txt"],
        "reward.terms.c.args.schema": ["schema.json"],
    }
    write_inputs(tmp_path, inputs_of(config))
    then = inputs_of(config).digests()
    (tmp_path / "rubric.txt").write_text("{response}!")
    (changed,) = inputs_of(config, read_inputs(tmp_path)).changes(tmp_path, then)
    assert "reward.terms.a.args.rubric" in changed
    (tmp_path / "rubric.txt").unlink()
    (gone,) = inputs_of(config, read_inputs(tmp_path)).changes(tmp_path, then)
    assert "reward.terms.a.args.rubric" in gone


def test_data_sets_splits_and_adapters(tmp_path, model):
    put(tmp_path / "tables", train_dot_parquet="1", eval_dot_parquet="2", README_dot_md="")
    put(tmp_path / "saved", state_dot_json="{}", data_dot_arrow="3")
    put(tmp_path / "adapter", adapter_config_dot_json=json.dumps({"base_model_name_or_path": str(model)}))
    config = PretrainConfig(
        model=ModelSettings(policy=str(tmp_path / "adapter")),
        text=TextSettings(train=[f"{tmp_path}/tables:train", f"{tmp_path}/saved", "hf:a/b", "/dev/null"]),
    )
    assert names(config) == {
        "model.policy": ["adapter_config.json", "base/config.json", "base/model.safetensors"],
        "text.train[0]": ["eval.parquet", "train.parquet"],
        "text.train[1]": ["data.arrow", "state.json"],
    }


def test_what_is_a_change(tmp_path, model):
    config = PPOConfig(model=ModelSettings(policy=str(model)))
    first = inputs_of(config)
    write_inputs(tmp_path, first)
    assert read_inputs(tmp_path) == first
    then = first.digests()
    assert inputs_of(config, first).changes(tmp_path, then) == []
    (model / "config.json").write_text("[]")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    now = inputs_of(config, read_inputs(tmp_path))
    assert now.changes(tmp_path, then) == [
        "model.policy: config.json changed, model.safetensors gone, pytorch_model.bin new"
    ]
    assert now.changes(tmp_path, None) == []  # an older version recorded nothing
    moved = model.rename(tmp_path / "elsewhere")
    (moved / "config.json").write_text("{}")
    (moved / "pytorch_model.bin").rename(moved / "model.safetensors")
    assert inputs_of(PPOConfig(model=ModelSettings(policy=str(moved)))).changes(tmp_path, then) == []


def test_a_file_is_read_again_only_when_it_may_have_changed(tmp_path, model, monkeypatch):
    config = PPOConfig(model=ModelSettings(policy=str(model)))
    first = inputs_of(config)
    read = []
    import hashlib

    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(file.read(2)) or digest(file, kind)
    )
    assert inputs_of(config, first) == first
    assert read == []
    times = os.stat(model / "config.json")
    (model / "config.json").write_text("[]")  # of the same size, and its time is put back
    os.utime(model / "config.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert inputs_of(config, first) != first
    assert read == [b"[]"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b'{"format": 2}', b'{"format": 1}', b'{"format": 1, "inputs": {"a": {"files": {"b": 3}}}}',
     b'{"format": 1, "inputs": {"a": {"path": "", "files": {"b": {"sha256": "x", "stamp": null}}}}}'],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path, content):
    assert read_inputs(tmp_path) is None
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(RunError, match=r"inputs\.json: "):
        read_inputs(tmp_path)
