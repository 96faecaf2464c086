"""EleutherAI's lm-eval on saved models, on a task of this machine: the same numbers as `proxlm evaluate`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from proxlm.__main__ import main
from proxlm.models.save import save_language_model
from small_models import tiny_model

# lm-eval's own command, which knows proxlm's model types. docs/lm-eval.md has it.
COMMAND = (
    "import proxlm; proxlm.register_model_types(); from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
)
TASK = """\
task: local
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
WORDS = ["cat", "dog", "mat", "moon", "ball", "park", "red", "big", "small", "found", "looked", "return"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file, drawn = tmp_path_factory.mktemp("task") / "data.jsonl", random.Random(0)
    lines = [
        {
            "question": f"{i}: the {' '.join(drawn.choices(WORDS, k=4))}",
            "choices": [f" {' '.join(drawn.choices(WORDS, k=count))}" for count in (1, 2, 3)],
            "answer": drawn.randrange(3),
        }
        for i in range(30)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (file.parent / "local.yaml").write_text(TASK.format(data=file), encoding="utf-8")
    return file


def test_the_page_has_this_command() -> None:
    page = Path(__file__).parents[2] / "docs" / "lm-eval.md"
    assert f'python -c "{COMMAND}"' in page.read_text(encoding="utf-8")


@pytest.mark.skipif(
    find_spec("lm_eval") is None,
    reason='lm-eval is not installed: pip install "lm-eval[hf]" (docs/lm-eval.md)',
)
@pytest.mark.parametrize("type", ["llama", "lstm"])
def test_its_choices_have_the_log_probs_of_ours(type: str, tokenizer, data: Path, tmp_path: Path) -> None:
    save_language_model(tiny_model(tokenizer, type), tmp_path / "model")
    arguments = [
        "run", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'},dtype=float32",
        "--tasks", "local", "--include_path", str(data.parent), "--device", "cpu", "--batch_size", "4",
        "--output_path", str(tmp_path / "theirs"), "--log_samples",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "theirs").rglob("results_*.json")
    (samples,) = (tmp_path / "theirs").rglob("samples_local_*.jsonl")
    accuracy = json.loads(results.read_text(encoding="utf-8"))["results"]["local"]["acc,none"]
    ours = [
        "evaluate", "--model.policy", str(tmp_path / "model"), "--model.device", "cpu", "--samples", "0",
        "--data.eval-prompts", str(data), "--data.prompt-field", "question", "--data.eval-count", "30",
        "--choices.field", "choices", "--choices.separator", "", "--responses", str(tmp_path / "ours.jsonl"),
    ]  # fmt: skip
    assert main(ours) == 0
    rows = [json.loads(line) for line in (tmp_path / "ours.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(row["metrics"]["choice/accuracy"] for row in rows) / len(rows) == pytest.approx(accuracy)
    theirs = {
        row["doc"]["question"]: [float(pair[0]) for pair in row["filtered_resps"]]
        for row in map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    }
    assert len(theirs) == len(rows) == 30
    for row in rows:
        assert row["logprobs"] == pytest.approx(theirs[row["prompt"]], abs=1e-3)
