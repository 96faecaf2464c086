"""`proxlm control`: teach a small network to act in a Gymnasium environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proxlm.checkpoint import publish_folder
from proxlm.config import ControlConfig
from proxlm.control.environments import MakeEnvironment
from proxlm.control.normalise import scale_for
from proxlm.control.policy import gif_problem, write_gif
from proxlm.control.spaces import make_environment
from proxlm.control.trainer import ControlTrainer
from proxlm.jobs.run_folder import resume_if_asked, run_folder
from proxlm.kernels.startup import start
from proxlm.report.page import write_report
from proxlm.runlog.metric_names import EPISODE_RETURN, REWARD
from proxlm.runlog.run_log import RunLog


@dataclass(frozen=True)
class ControlResult:
    """A finished run: its folder, and the mean return of its newest 100 training episodes (NaN: none ended)."""

    folder: Path
    episode_return: float


def main(config: ControlConfig) -> None:
    """Run the job and print where everything is."""
    result = run_control(config)
    print(f"\nmean return of the newest 100 episodes  {result.episode_return:.1f}")
    print(f"policy  {result.folder / 'policy'}")
    if config.run.report:
        print(f"report  {result.folder / 'report.html'}")


def run_control(config: ControlConfig, make: MakeEnvironment | None = None) -> ControlResult:
    """Run as configured. What is wrong with the environment is found before the run's folder is made.

    Args:
        config: The settings.
        make: Makes one environment, instead of config.environment.id.

    Raises:
        UserError: The settings or the environment are wrong, or the run cannot continue.
    """
    start(threads=config.run.threads, quiet_transformers=False, keep_memory=False)
    trainer = ControlTrainer(config, make or (lambda: make_environment(config.environment)), Path())
    problem = gif_problem(lambda: make_environment(config.environment, render=True)) if config.gif else None
    if problem:
        print(f"note: no {config.gif}: {problem}", flush=True)
    with run_folder(config, "control") as folder:
        trainer.folder = folder
        resume_if_asked(config, trainer)
        with RunLog(
            folder,
            "control",
            trainer.steps,
            config.run,
            trainer.state.step,
            headline=(REWARD, EPISODE_RETURN),
            in_python=make is not None,
        ) as log:
            trainer.train(log)
        publish_folder(folder / "policy", trainer.save_model)
        if config.gif and not problem:
            _draw(config, trainer)
        trainer.environments.close()
        if config.run.report:
            write_report(folder)
    returns = [total for total, _ in trainer.environments.finished]
    return ControlResult(folder, sum(returns) / len(returns) if returns else float("nan"))


def _draw(config: ControlConfig, trainer: ControlTrainer) -> None:
    """Write the GIF of one episode, and print its return."""
    environment = make_environment(config.environment, render=True)
    scale = scale_for(config.environment, trainer.observation_statistics)
    total = write_gif(
        Path(config.gif), trainer.agent, scale, environment, config.environment.id, config.run.seed
    )
    environment.close()
    print(f"gif     {config.gif} (an episode of the likeliest actions, return {total:.1f})")
