"""The evaluations of a critic on held-out prompts, before and after it learns."""

from __future__ import annotations

import copy
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from proxlm.checkpoint import best_folder
from proxlm.engine.native import NativeEngine
from proxlm.evaluation.critic import evaluate_critic
from proxlm.evaluation.results import Evaluation
from proxlm.jobs.held_out import HeldOutEvaluations
from proxlm.jobs.progress import progress_line
from proxlm.models.actor_critic import ActorCritic, critic_from
from proxlm.models.value_head import bins_of, ensemble_of


class HeldOutValues(HeldOutEvaluations):
    """Evaluates the critic of a loop whose policy stays as it is: before and after, on the same responses."""

    reads_critic: ClassVar[bool] = True

    def _begin(self) -> None:
        loop = self._loop
        self._before = self._known_before() if self._prompts else None
        again = loop.config.run.resume and self._prompts and self._before is None
        self._at_the_start = _with_own_critic(loop.models) if again else loop.models

    def before(self) -> None:
        """Evaluate the critic at the start, or take what a resumed run has found before its first step."""
        if self._prompts:
            self._add(self._before or self._of_critic("before", self._at_the_start))

    def after(self) -> None:
        """Evaluate the critic that the run has saved, and the best step's with other random numbers."""
        if not self._prompts:
            return
        loop = self._loop
        found = self._of_critic("after", loop.models)
        self._add(replace(found, model=str(loop.folder / loop.model_folder)))
        if step := loop.state.best_step:
            self._add(self._of_best(best_folder(loop.folder, step)))

    def _of_best(self, folder: Path) -> Evaluation:
        loop, settings = self._loop, self._loop.config.model
        bins, ensemble = bins_of(settings.value), ensemble_of(settings.value)
        kept = critic_from(loop.models, str(folder), settings.train_layers, bins, ensemble)
        return replace(self._of_critic("best", kept, draw=1), model=str(folder))

    def _of_critic(self, name: str, models: ActorCritic, draw: int = 0) -> Evaluation:
        loop = self._loop
        print(f"evaluating the critic on {len(self._prompts)} held-out prompts ({name}) …", flush=True)
        with closing(NativeEngine(models.policy, loop.config.rollout)) as engine:
            found = evaluate_critic(
                name,
                models,
                engine,
                self._prompts,
                loop.reward,
                loop.config,
                loop.learner.algorithm,
                kl_coef=loop.state.kl_coef,
                statistics=loop.state.score_statistics,
                draw=draw,
                on_progress=progress_line("responses"),
                generate=loop.generate,
            )
        return self._record(found)


def _with_own_critic(models: ActorCritic) -> ActorCritic:
    """The models with a copy of what of the critic learns; a trunk that it shares is the policy's, and stays."""
    return replace(
        models, value_head=copy.deepcopy(models.value_head), critic_trunk=copy.deepcopy(models.critic_trunk)
    )
