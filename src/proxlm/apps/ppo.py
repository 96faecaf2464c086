"""`proxlm ppo`: measure the model, improve it with PPO, measure it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from proxlm.apps.report import write_report
from proxlm.apps.session import announce_resume, describe_prompts, load_both, progress_line, set_up, start_run
from proxlm.checkpoint import publish_folder
from proxlm.config import PPOJob, RolloutConfig
from proxlm.data.prompts import PromptStream
from proxlm.evaluation.evaluate import Evaluation, as_json, as_table, evaluate_model
from proxlm.models.actor_critic import ActorCritic, load_actor_critic
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.rewards import Reward, RewardFunction, build_reward
from proxlm.rollout.native import EVALUATION, generate
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.writer import RunLog
from proxlm.train.ppo import PPOTrainer
from proxlm.types import Prompt


@dataclass(frozen=True)
class PPOResult:
    """A finished run: its folder, and the model before and after (None without held-out prompts)."""

    folder: Path
    before: Evaluation | None
    after: Evaluation | None


def main(config: PPOJob) -> None:
    """Run the job and print where everything is."""
    result = run_ppo(config)
    if result.before is not None and result.after is not None:
        print_comparison(result.before, result.after)
    print(f"\nmodel   {result.folder / 'policy'}")
    if config.run.report:
        print(f"report  {result.folder / 'report.html'}")


def run_ppo(config: PPOJob, reward: RewardFunction | None = None) -> PPOResult:
    """Run PPO as configured; `reward`, a plain function of completions, takes the place of config.reward.use.

    Everything that can be wrong with the input is found before the run's folder is made. Raises UserError.
    """
    scorer = build_reward(config.reward, reward)
    set_up(config.run.seed, config.run.threads)
    train, held_out = load_both(config.model, config.data, config.rollout, config.run.seed)
    stream = PromptStream(train.prompts, config.ppo.batch_size, config.run.seed)
    print(describe_prompts(train, held_out), flush=True)
    if config.rollout.top_k or config.rollout.top_p < 1 or config.rollout.min_p:
        print(
            "note: top_k, top_p and min_p sample from another policy than the one that learns: a bias",
            flush=True,
        )
    models = load_actor_critic(config.model)
    try_reward(models, scorer, stream.batch(0)[:2], config.rollout)
    folder = start_run(config, "ppo")
    trainer = PPOTrainer(config, models, stream, scorer, folder)
    if config.run.resume:
        announce_resume(config, folder, trainer.resume())
    before = _evaluate("before", trainer, held_out.prompts)
    if before is not None:
        write_json_atomic(folder / "evaluation.json", as_json([before], config.run.seed))
    with RunLog(folder, "ppo", config.ppo.steps, config.run, start_step=trainer.state.step) as log:
        trainer.train(log)
    publish_folder(folder / "policy", lambda f: save_language_model(models.policy, f))
    after = _evaluate("after", trainer, held_out.prompts)
    if before is not None and after is not None:
        both = as_json([before, after], config.run.seed)
        write_json_atomic(folder / "evaluation.json", both)
    if config.run.report:
        write_report(folder)
    return PPOResult(folder, before, after)


def try_reward(models: ActorCritic, scorer: Reward, prompts: list[Prompt], rollout: RolloutConfig) -> None:
    """Score two responses before the run begins: a reward that cannot work fails here, with nothing written."""
    trial = generate(models.policy, prompts, rollout, seed=0, step=0, stream=EVALUATION + 1)
    scorer(trial)


def _evaluate(name: str, trainer: PPOTrainer, prompts: list[Prompt]) -> Evaluation | None:
    """The reference ("before") or the policy ("after") on the held-out prompts."""
    if not prompts:
        return None
    models, config = trainer.models, trainer.config
    print(f"evaluating on {len(prompts)} held-out prompts ({name}) …", flush=True)

    def measure(model: LanguageModel) -> Evaluation:
        return evaluate_model(
            name,
            model,
            models.reference_logprobs,
            prompts,
            trainer.reward,
            config.rollout,
            seed=config.run.seed,
            micro_batch_tokens=config.ppo.micro_batch_tokens,
            on_progress=progress_line("responses"),
        )

    if name == "after":
        return replace(measure(models.policy), model=str(trainer.folder / "policy"))
    if models.reference is not None:
        return measure(models.reference)
    with models.policy.without_adapters():
        return measure(models.policy)


def print_comparison(before: Evaluation, after: Evaluation, shown: int = 3) -> None:
    """The table, and a few responses side by side."""
    print("\n" + as_table([before, after]))
    for old, new in list(zip(before.samples, after.samples, strict=True))[:shown]:
        print(f"\nprompt  {old['prompt']}")
        for name, sample in (("before", old), ("after", new)):
            print(f"{name:7} [{sample['reward']:+.3f}] {sample['response'].strip()}")
