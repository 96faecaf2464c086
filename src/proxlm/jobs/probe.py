"""`proxlm probe`: a learning rate, a batch size and the size of a pass for a recipe, by trying."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from proxlm.config import PretrainConfig, ProbeConfig, SFTConfig
from proxlm.config.paths import short
from proxlm.data.skipped import Skipped
from proxlm.errors import ConfigError, RunError
from proxlm.jobs.pretrain import PretrainTrainer
from proxlm.jobs.progress import progress_line
from proxlm.jobs.sft import SFTTrainer
from proxlm.jobs.startup import start_job
from proxlm.jobs.supervised import mixture_of
from proxlm.report.probe_page import probe_page
from proxlm.runlog.folder import free_name, write_atomic, write_json_atomic
from proxlm.train.common.memory import TokenBudget
from proxlm.train.common.noise_scale import NoiseScale, noise_scale
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.supervised.batches import Mixture, batches_of
from proxlm.train.supervised.gradient_noise import batch_estimates
from proxlm.train.supervised.objective import LanguageModelObjective
from proxlm.train.supervised.pass_sizes import PassSize, try_sizes
from proxlm.train.supervised.range_test import Sweep, sweep

RESULT, PAGE = "probe.json", "probe.html"
# Repeats of the range test that differ by no more than this factor agree.
_AGREE = 3.0


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        sizes: Passes of several sizes.
        sweeps: Range tests.
        noise: The noise scale in tokens.
        noise_rate: The learning rate before it was measured; 0: at the weights as they begin.
        lines: The suggestions in words.
        settings: The suggestions as settings of the recipe.
    """

    sizes: list[PassSize]
    sweeps: list[Sweep]
    noise: NoiseScale
    noise_rate: float
    lines: list[str]
    settings: dict[str, float]


def main(config: ProbeConfig, job: PretrainConfig | SFTConfig) -> None:
    """Probe as configured, print the suggestions and write them."""
    if job.run.resume:
        raise ConfigError("run.resume: a probe begins where the recipe begins; leave it out")
    folder = Path(config.folder) if config.folder else free_name("probe")
    check_folder(folder)
    start_job(job.run.threads, job.model)
    trainer = PretrainTrainer(config=job) if isinstance(job, PretrainConfig) else SFTTrainer(config=job)
    skipped = Skipped(job.text.on_bad_record == "skip")
    with trainer.source.lent():
        objective = trainer.objective(skipped)
        skipped.print_summary()
        found = probe(objective, config, trainer.config, mixture_of(job.text, objective.training))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}; give another folder") from error
    write_json_atomic(folder / RESULT, {"command": config.command, **_plain(asdict(found))})
    write_atomic(folder / PAGE, probe_page(config.recipe, found.lines, found.sweeps, found.sizes))
    print("\n".join(["", *found.lines, "", f"written to {short(str(folder / RESULT))} and {PAGE} beside it"]))


def check_folder(folder: Path) -> None:
    """Raise RunError for a folder that holds something else than an earlier probe."""
    if not folder.exists():
        return
    try:
        names = {path.name for path in folder.iterdir()} - {RESULT, PAGE}
        known = not (folder / RESULT).exists() or "sweeps" in json.loads((folder / RESULT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: holds no probe that can be read; give another folder") from error
    if names or not known:
        raise RunError(f"{folder}: holds something else than a probe; give another folder")


def probe(
    objective: LanguageModelObjective,
    config: ProbeConfig,
    job: PretrainConfig | SFTConfig,
    mixture: Mixture | None,
) -> Probe:
    """Try pass sizes, learning rates and gradients; the weights end as they began."""
    train, seed = job.train, job.run.seed
    sizes = try_sizes(objective, train.batch_tokens)
    fit = [size for size in sizes if size.fits]
    if not fit:
        raise RunError(
            "out of memory with one sequence; take a smaller model, bfloat16 or adapters (model.lora.rank)"
        )
    budget = TokenBudget(fit[-1].tokens)
    batches = batches_of(objective.lengths, train, seed, mixture)
    sweeps, rates = list[Sweep](), (config.lr_low, config.lr_high)
    for i in range(config.lr_repeats):
        show = progress_line(f"range test {i + 1}: step")
        with weights_put_back(objective):
            sweeps.append(sweep(objective, batches, job.optim, rates, config.lr_steps, budget, show))
    suggested = [one.suggested for one in sweeps if one.suggested]
    rate = math.exp(statistics.fmean(map(math.log, suggested))) if suggested else 0.0
    noise_rate = (rate or job.optim.lr) if config.noise_after else 0.0
    with weights_put_back(objective):
        if noise_rate:
            _train(objective, config.noise_after, noise_rate, job, mixture, budget)
        part = replace(train, batch_tokens=max(1, train.batch_tokens // config.noise_parts))
        drawn = batches_of(objective.lengths, part, seed + 1, mixture)
        show = progress_line("noise scale: part")
        count, parts = config.noise_batches, config.noise_parts
        estimates = batch_estimates(objective, drawn, count, parts, budget, show)
    noise = noise_scale(estimates)
    length = float(objective.lengths.double().mean())
    lines, settings = suggestions(sizes, length, sweeps, rate, noise, config, job)
    return Probe(sizes, sweeps, noise, noise_rate, lines, settings)


def suggestions(
    sizes: list[PassSize],
    length: float,
    sweeps: list[Sweep],
    rate: float,
    noise: NoiseScale,
    config: ProbeConfig,
    job: PretrainConfig | SFTConfig,
) -> tuple[list[str], dict[str, float]]:
    """What was found in words, and as settings of the recipe."""
    fit, batch = [size for size in sizes if size.fits], job.train.batch_tokens
    fastest = max(fit, key=lambda size: size.rate(length))
    what = f"a batch ({batch:,} tokens)" if len(fit) == len(sizes) else f"{fit[-1].tokens:,} tokens"
    lines = [
        f"train.micro_batch_tokens = {fastest.tokens}: the fastest pass; {what} fits in one pass"
        f" ({fit[-1].memory_gb:.2f} GiB)"
    ]
    settings: dict[str, float] = {"train.micro_batch_tokens": fastest.tokens}
    found = [one.suggested for one in sweeps if one.suggested]
    if rate:
        settings["optim.lr"] = float(f"{rate:.2g}")
        spread = max(found) / min(found)
        agree = "one range test" if len(sweeps) == 1 else f"{len(found)} of {len(sweeps)} range tests"
        sure = f"between {min(found):.2g} and {max(found):.2g}" if len(found) > 1 else "not repeated: unsure"
        doubt = "; they differ by much: unsure" if spread > _AGREE or len(found) < len(sweeps) else ""
        lines.append(f"optim.lr = {rate:.2g}: {agree}, {sure}{doubt}; the recipe has {job.optim.lr:g}")
    else:
        lines.append(f"optim.lr: nothing is suggested: {sweeps[-1].why_not}")
    when = f"after {config.noise_after} steps" if config.noise_after else "at the start"
    if math.isinf(noise.scale):
        lines.append(
            f"train.batch_tokens: the noise scale {when} is above {noise.low:,.0f} tokens: the gradient is lost in"
            " noise; more noise_batches would tell"
        )
        return lines, settings
    end = "no upper end" if math.isinf(noise.high) else f"{noise.high:,.0f}"
    settings["train.batch_tokens"] = round(noise.scale)
    lines.append(
        f"train.batch_tokens = {noise.scale:,.0f}: the noise scale {when} (95% interval {noise.low:,.0f} to {end});"
        " smaller batches learn more from a token, larger ones save few steps; it grows during training; the recipe"
        f" has {batch:,}"
    )
    return lines, settings


@contextmanager
def weights_put_back(objective: LanguageModelObjective) -> Iterator[None]:
    """A context after which the weights are what they were."""
    parameters = [p for _, p in objective.trainable()]
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, kept in zip(parameters, before, strict=True):
                p.copy_(kept)
                p.grad = None


def _train(
    objective: LanguageModelObjective,
    steps: int,
    rate: float,
    job: PretrainConfig | SFTConfig,
    mixture: Mixture | None,
    budget: TokenBudget,
) -> None:
    """Some steps at a constant rate."""
    optim = replace(job.optim, lr=rate, schedule="constant", warmup=0)
    optimiser, batches = (
        Optimiser(objective.trainable(), optim),
        batches_of(objective.lengths, job.train, job.run.seed, mixture),
    )
    for step in range(steps):
        optimiser.hold()
        objective.begin_step(step)
        objective.gradient(batches.next(), budget.tokens)
        optimiser.step(step, steps)
    optimiser.release()


def _plain(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
