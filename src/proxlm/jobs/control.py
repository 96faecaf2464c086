"""`proxlm control`: teach a small network to act in a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from proxlm.checkpoint import publish_folder
from proxlm.config import ControlConfig, settings_or_default, validate
from proxlm.config.from_run import IN_MEMORY
from proxlm.config.signature import checked
from proxlm.control.environments import MakeEnvironment
from proxlm.control.loop import ControlLoop
from proxlm.control.normalise import scale_for
from proxlm.control.policy import gif_problem, write_gif
from proxlm.control.spaces import make_environment
from proxlm.jobs.run_folder import begin_run, check_best_metric, check_run_folder, run_folder
from proxlm.kernels.startup import start
from proxlm.report.page import write_report
from proxlm.report.run import Run, load_run
from proxlm.runlog.metric_names import EPISODE_RETURN, REWARD
from proxlm.runlog.outputs import check_output
from proxlm.runlog.run_log import RunLog
from proxlm.system_errors import cannot_write
from proxlm.train.common.callbacks import Callback, Callbacks


def main(config: ControlConfig) -> None:
    """Run the job and print where everything is."""
    start(threads=config.run.threads, quiet_transformers=False, keep_memory=False)
    run = ControlTrainer(config=config).train()
    print(f"\nmean return of the newest 100 episodes  {run.metrics[EPISODE_RETURN][-1]:.1f}")
    print(f"policy  {run.model}")
    if config.run.report:
        print(f"report  {run.folder / 'report.html'}")


class ControlTrainer:
    """Teaches a small network to act in a Gymnasium environment, with the same PPO as a language model's.

    Args:
        environment: Gymnasium's name of the environment, or a function that makes one; None: config.environment.id.
        config: The settings.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
    """

    @checked("config", "callbacks")
    def __init__(
        self,
        environment: str | MakeEnvironment | None = None,
        config: ControlConfig | None = None,
        *,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = settings_or_default(ControlConfig, config)
        if environment is not None:
            name = environment if isinstance(environment, str) else IN_MEMORY
            config = replace(config, environment=replace(config.environment, id=name))
        self.config = validate(config)
        self._make = environment if callable(environment) else None
        self._callbacks = Callbacks(callbacks)
        check_best_metric(self.config.best_metric(), "control", self._callbacks)

    def train(self) -> Run:
        """Train, and write policy, report and GIF. What is wrong with the environment is found first.

        Raises:
            UserError: The environment cannot be used, or the run cannot continue.
            StoppedBySignalError: A signal has ended the run; its newest step is saved.
        """
        config = self.config
        check_run_folder(config.run)
        if config.gif:
            _check_gif(Path(config.gif))
        loop = ControlLoop(config, self._make or partial(make_environment, config.environment), Path())
        loop.callbacks = self._callbacks.fresh()
        problem = (
            gif_problem(lambda: make_environment(config.environment, render=True)) if config.gif else None
        )
        if problem:
            print(f"note: no {config.gif}: {problem}", flush=True)
        with run_folder(config, "control", self._make is not None) as folder:
            loop.folder = folder
            begin_run(config, loop)
            with RunLog(
                folder,
                "control",
                loop.steps,
                config.run,
                loop.state.step,
                headline=(REWARD, EPISODE_RETURN),
                in_python=self._make is not None,
            ) as log:
                loop.train(log)
            publish_folder(folder / "policy", loop.save_model)
            if config.gif and not problem:
                _draw(config, loop)
            loop.environments.close()
            if config.run.report:
                write_report(folder)
            return load_run(folder)


def _check_gif(path: Path) -> None:
    """Raise RunError if the GIF could not be written after the training; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    check_output(path, "control")


def _draw(config: ControlConfig, loop: ControlLoop) -> None:
    """Write the GIF of one episode, and print its return."""
    environment = make_environment(config.environment, render=True)
    scale = scale_for(config.environment, loop.observation_statistics)
    total = write_gif(
        Path(config.gif), loop.agent, scale, environment, config.environment.id, config.run.seed
    )
    environment.close()
    print(f"gif     {config.gif} (an episode of the likeliest actions, return {total:.1f})")
