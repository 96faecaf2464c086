"""The evaluations of a PPO run on its held-out prompts: before it, during it and after it."""

from __future__ import annotations

import copy
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from proxlm.checkpoint import best_folder
from proxlm.config import LoraSettings, ModelSettings, PPOConfig
from proxlm.engine.generate import Generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import RunError
from proxlm.evaluation.evaluate import evaluate_model
from proxlm.evaluation.results import Chosen, Evaluation, evaluation_from_json
from proxlm.evaluation.tables import as_table
from proxlm.evaluation.task_metrics.task_metrics import TaskMetrics
from proxlm.jobs.door import cannot_play
from proxlm.jobs.progress import progress_line
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.adapters import reference_active
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.report.evaluation_files import read_unchanged, write_evaluations, write_responses
from proxlm.report.run import Run
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Progress, Prompt


class HeldOutEvaluations:
    """Evaluates the policy of a loop. Made before the loop trains or is resumed.

    Args:
        loop: The run.
        prompts: The held-out prompts; none: nothing is evaluated.
        metrics: Of their responses, beside the reward.
        words: What the judge of words answers to them; None: there is none.
    """

    # Whether the critic has to be able to read the held-out prompts.
    reads_critic: ClassVar[bool] = False

    def __init__(
        self,
        loop: PPOLoop,
        prompts: list[Prompt],
        metrics: TaskMetrics | None = None,
        words: Evaluation | None = None,
    ) -> None:
        self._loop, self._prompts, self._metrics, self._words = loop, prompts, metrics, words
        self._models = _at_the_start(loop.whole_models, loop.config)
        self._found: dict[str, Evaluation] = {}
        # The newest evaluation during the run, and the step after which it was made.
        self._newest: tuple[int, Evaluation] | None = None
        if prompts:
            loop.evaluate = self.during
        self._begin()

    def _begin(self) -> None:
        """Note what a resume is about to change."""

    def before(self) -> None:
        """Evaluate the reference, or take what a resumed run has found before its first step."""
        if not self._prompts:
            return
        models = self._models
        known = self._known_before()
        if known is not None:
            self._add(known)
            return
        if models.reference is not None:
            found = self._evaluate("before", models.reference)
        else:
            with reference_active(models.policy):
                found = self._evaluate("before", models.policy)
        self._add(found)
        for note in cannot_play(found, self._loop.config):
            print(f"note: {note}", flush=True)

    def during(self, on_progress: Progress) -> dict[str, float]:
        """Metrics of the policy while it learns."""
        found = self._measure("during", self._models.policy, on_progress, generate=self._loop.sampler())
        self._newest, values = (self._loop.state.step, found), found.means()
        self._loop.callbacks.on_evaluation(self._loop.state.step, "during", values)
        return values

    def after(self) -> None:
        """Evaluate the policy that the run has saved, unless the last step has done so, and the best step's again."""
        if not self._prompts:
            return
        if self._newest is not None and self._newest[0] == self._loop.state.step:
            found = self._record(replace(self._newest[1], name="after"))
        else:
            found = self._evaluate("after", self._models.policy, generate=self._loop.sampler())
        self._add(replace(found, model=str(self._loop.folder / "policy")))
        if step := self._loop.state.best_step:
            self._add(self._of_best(best_folder(self._loop.folder, step)))

    def _of_best(self, folder: Path) -> Evaluation:
        """The kept model on the same prompts. Its step was chosen by what it earned there, so it gets other random
        numbers: the luck of the first ones is not counted again.
        """
        source = ModelSource(_without_adapters(self._loop.config.model), folder)
        return replace(self._evaluate("best", source.load(), draw=1), model=str(folder))

    def _chosen(self) -> Chosen | None:
        """What the evaluation "best" is of."""
        state, config = self._loop.state, self._loop.config
        if "best" not in self._found:
            return None
        metric, best_is = config.best_metric(), config.run.keep_best_is
        return Chosen(state.best_step, metric, best_is, state.best_value, self._found["best"].model)

    def complete(self) -> bool:
        """Whether the run's folder has all evaluations. Asked before `before`, which drops those after the run."""
        try:
            names = {evaluation.name for evaluation in self._known()}
        except RunError:
            return False  # `before` says so
        return (
            not self._prompts or {"before", "after", *(["best"] * bool(self._loop.state.best_step))} <= names
        )

    def _add(self, found: Evaluation) -> None:
        self._found[found.name] = found
        in_order = [self._found[name] for name in ("before", "best", "after") if name in self._found]
        if self._words is not None:
            write_responses(self._loop.folder, self._words)
            in_order.append(self._words)
        write_evaluations(self._loop.folder, in_order, self._loop.config.run.seed, self._chosen())

    def _known(self) -> list[Evaluation]:
        """What a resumed run's evaluation.json holds. Raises RunError if that is not what the run wrote."""
        content = read_unchanged(self._loop.folder) if self._loop.config.run.resume else None
        return [] if content is None else evaluation_from_json(content)

    def _known_before(self) -> Evaluation | None:
        try:
            found = self._known()
        except RunError as error:
            print(f"note: the evaluation before the run is made again: {error}", flush=True)
            return None
        return next((evaluation for evaluation in found if evaluation.name == "before"), None)

    def _evaluate(
        self, name: str, model: LanguageModel, draw: int = 0, generate: Generate | None = None
    ) -> Evaluation:
        print(f"evaluating on {len(self._prompts)} held-out prompts ({name}) …", flush=True)
        return self._record(self._measure(name, model, progress_line("responses"), draw, generate))

    def _record(self, found: Evaluation) -> Evaluation:
        write_responses(self._loop.folder, found)
        self._loop.callbacks.on_evaluation(self._loop.state.step, found.name, found.means())
        return found

    def _measure(
        self,
        name: str,
        model: LanguageModel,
        on_progress: Progress,
        draw: int = 0,
        generate: Generate | None = None,
    ) -> Evaluation:
        """The evaluation; generate: samples, where not this process alone does, and knows only the policy."""
        config = self._loop.config
        self._loop.ranks.phase("evaluate")
        with closing(NativeEngine(model, config.rollout)) as engine:
            return evaluate_model(
                name,
                model,
                engine,
                self._models.reference_logprobs,
                self._prompts,
                self._loop.reward,
                config.rollout,
                seed=config.run.seed,
                draw=draw,
                micro_batch_tokens=config.ppo.micro_batch_tokens,
                greedy=config.evaluation.greedy,
                on_progress=on_progress,
                generate=generate or self._loop.generate,
                teacher_logprobs=None if self._models.teacher is None else self._models.teacher_logprobs,
                metrics=self._metrics,
            )


def _without_adapters(model: ModelSettings) -> ModelSettings:
    """The settings of a trained model, which holds its adapters already; new ones would be of no use."""
    return replace(model, lora=LoraSettings(), train_layers=0, freeze=[])


def _at_the_start(models: ActorCritic, config: PPOConfig) -> ActorCritic:
    """The models with a reference that stays what it is now, where the run's own moves (ppo.reference_decay)."""
    if config.ppo.reference_decay == 1 or models.reference is None:
        return models
    return replace(
        models, reference=replace(models.reference, network=copy.deepcopy(models.reference.network))
    )


def print_comparison(run: Run, shown: int = 3) -> None:
    """Print the table of the evaluations, and the first responses side by side; nothing without evaluations."""
    if run.before is None or run.after is None:
        return
    print("\n" + as_table(list(run.evaluations.values())))
    if run.chosen is not None:
        print(run.chosen.line())
    for old, new in list(zip(run.before.samples, run.after.samples, strict=True))[:shown]:
        print(f"\nprompt  {old['prompt']}")
        for name, sample in (("before", old), ("after", new)):
            reward = "none" if sample["reward"] is None else f"{sample['reward']:+.3f}"
            print(f"{name:7} [{reward}] {sample['response'].strip()}")
