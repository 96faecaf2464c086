"""`proxlm ppo`: measure the model, improve it with PPO, measure it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxlm.checkpoint import publish_folder
from proxlm.config import PPOConfig, RolloutSettings
from proxlm.config.algorithms import advantage_of
from proxlm.data.prompts import PromptStream
from proxlm.data.skipped import FILE_NAME, Skipped
from proxlm.data.supervised import pretrain_blocks
from proxlm.data.text import read_texts
from proxlm.engine.generate import Generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.protocol import Engine
from proxlm.errors import ConfigError, RunError
from proxlm.evaluation.evaluate import Evaluation, as_json, as_table, evaluate_model
from proxlm.jobs.model_limits import check_block, is_encoder_decoder
from proxlm.jobs.progress import progress_line
from proxlm.jobs.prompts import describe_prompts
from proxlm.jobs.run_folder import resume_if_asked, run_folder
from proxlm.jobs.sampling import prompts_of, rewarded, sampler_of
from proxlm.jobs.startup import set_up
from proxlm.models.actor_critic import load_actor_critic
from proxlm.models.adapters import adapters_off
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from proxlm.report.page import write_report
from proxlm.rewards import RewardFunction, build_reward
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.run_log import RunLog
from proxlm.seeds import Stream
from proxlm.train.ppo.algorithms import build_algorithm
from proxlm.train.ppo.collect import RewardOfRollout
from proxlm.train.ppo.ptx import PtxText
from proxlm.train.ppo.trainer import PPOTrainer
from proxlm.types import Prompt


@dataclass(frozen=True)
class PPOResult:
    """A finished run: its folder, and the model before and after (None without held-out prompts)."""

    folder: Path
    before: Evaluation | None
    after: Evaluation | None


def main(config: PPOConfig) -> None:
    """Run the job and print where everything is."""
    result = run_ppo(config)
    if result.before is not None and result.after is not None:
        print_comparison(result.before, result.after)
    print(f"\nmodel   {result.folder / 'policy'}")
    if config.run.report:
        print(f"report  {result.folder / 'report.html'}")


def run_ppo(
    config: PPOConfig,
    reward: RewardFunction | None = None,
    advantage: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
) -> PPOResult:
    """Run PPO as configured; `reward`, a plain function of completions, takes the place of config.reward.use.

    `advantage` (AdvantageInputs → Advantages or a tensor) and `loss` (LossInputs → PolicyLoss or a tensor) take
    the places of config.ppo.advantage and config.ppo.loss. Everything that can be wrong with the input is found
    before the run's folder is made. Raises UserError.
    """
    plain = build_reward(config.reward, reward) if rewarded(config, reward) else None
    algorithm = build_algorithm(config.ppo, advantage, loss)
    set_up(config.run.seed, config.run.threads, config.model)
    skipped = Skipped(config.data.on_bad_record == "skip")
    train, held_out = prompts_of(config, skipped)
    stream = PromptStream(train.prompts, config.ppo.batch_size, config.run.seed)
    print(describe_prompts(train, held_out, skipped), flush=True)
    for note in notes(config):
        print(f"note: {note}", flush=True)
    models = load_actor_critic(config.model, algorithm.critic)
    ptx = ptx_text(config, models.policy.tokenizer, skipped) if config.ptx.coef > 0 else None
    sampler, scorer = sampler_of(config, models.policy.tokenizer, plain)
    assert scorer is not None  # `rewarded` has asked for one
    engine = NativeEngine(models.policy, config.rollout)
    try_reward(engine, sampler, scorer, stream.batch(0)[:2], config.rollout)
    with run_folder(config, "ppo") as folder:
        skipped.save(folder)
        trainer = PPOTrainer(config, models, stream, scorer, folder, algorithm, ptx, sampler)
        given = (reward, advantage, loss) != (None, None, None)
        return _train_and_measure(trainer, held_out.prompts, given)


def _train_and_measure(trainer: PPOTrainer, held_out: list[Prompt], in_python: bool) -> PPOResult:
    """The run itself: measured, trained, measured again; everything it leaves is in its folder."""
    config, folder = trainer.config, trainer.folder
    resume_if_asked(config, trainer)
    before = _evaluate("before", trainer, held_out)
    if before is not None:
        write_json_atomic(folder / "evaluation.json", as_json([before], config.run.seed))
    steps, run, start = config.ppo.steps, config.run, trainer.state.step
    with RunLog(folder, "ppo", steps, run, start_step=start, in_python=in_python) as log:
        trainer.train(log)
    publish_folder(folder / "policy", lambda f: save_language_model(trainer.models.policy, f))
    after = _evaluate("after", trainer, held_out)
    if before is not None and after is not None:
        write_json_atomic(folder / "evaluation.json", as_json([before, after], config.run.seed))
    if config.run.report:
        write_report(folder)
    return PPOResult(folder, before, after)


def notes(config: PPOConfig) -> list[str]:
    """What is allowed but has a price, in words."""
    ppo, rollout, found = config.ppo, config.rollout, []
    if (rollout.top_k or rollout.top_p < 1 or rollout.min_p) and ppo.correction.mode == "none":
        found.append(
            "top_k, top_p and min_p sample from another policy than the one that learns: a bias (see ppo.correction)"
        )
    if ppo.loss == "pg" and ppo.epochs * ppo.minibatches > 1:
        found.append(
            f"ppo.loss = pg is right for the policy that sampled; {ppo.epochs} epochs of {ppo.minibatches}"
            " minibatches go on with another one, and nothing corrects or bounds it"
        )
    if ppo.loss == "trpo" and config.model.critic == "shared" and advantage_of(ppo.advantage).critic:
        found.append(
            "with ppo.loss = trpo a shared critic is its value head alone; the trunk is the policy's"
        )
    return found


def ptx_text(config: PPOConfig, tokenizer: Any, skipped: Skipped) -> PtxText:
    """The text of PPO-ptx, packed into blocks; says how much of it is left out.

    Raises DataError, and ConfigError for blocks the model cannot read.
    """
    if is_encoder_decoder(config.model):
        raise ConfigError("ptx.coef: plain text has no prompt for an encoder; set it to 0")
    check_block("ptx.block", config.ptx.block, config.model)
    before = len(skipped)
    documents = read_texts(config.ptx.text, config.ptx.extensions, skipped)
    if len(skipped) > before:
        print(f"ptx.text: {len(skipped) - before} left out: see {FILE_NAME}", flush=True)
    blocks = pretrain_blocks(tokenizer, documents, config.ptx.block)
    return PtxText(blocks, config.ptx, config.ppo.micro_batch_tokens, config.run.seed)


def try_reward(
    engine: Engine,
    sampler: Generate,
    scorer: RewardOfRollout,
    prompts: list[Prompt],
    rollout: RolloutSettings,
) -> None:
    """Score two responses before the run begins: a reward or an environment that cannot work fails here, with
    nothing written."""
    trial = sampler(engine, prompts, rollout, seed=0, step=0, stream=Stream.TRIAL)
    if trial.lost:
        raise RunError(f"environment.use: a conversation was lost: {trial.lost[0]}")
    scorer(trial)


def _evaluate(name: str, trainer: PPOTrainer, prompts: list[Prompt]) -> Evaluation | None:
    """The reference ("before") or the policy ("after") on the held-out prompts."""
    if not prompts:
        return None
    models, config = trainer.models, trainer.config
    if config.ppo.reference_decay < 1:
        # The reference has moved (or moved before a resume); KL is told from where the run began.
        models = replace(models, reference=load_language_model(config.model))
    print(f"evaluating on {len(prompts)} held-out prompts ({name}) …", flush=True)

    def measure(model: LanguageModel) -> Evaluation:
        return evaluate_model(
            name,
            model,
            NativeEngine(model, config.rollout),
            models.reference_logprobs,
            prompts,
            trainer.reward,
            config.rollout,
            seed=config.run.seed,
            micro_batch_tokens=config.ppo.micro_batch_tokens,
            on_progress=progress_line("responses"),
            generate=trainer.generate,
        )

    if name == "after":
        return replace(measure(models.policy), model=str(trainer.folder / "policy"))
    if models.reference is not None:
        return measure(models.reference)
    with adapters_off(models.policy):
        return measure(models.policy)


def print_comparison(before: Evaluation, after: Evaluation, shown: int = 3) -> None:
    """The table, and a few responses side by side."""
    print("\n" + as_table([before, after]))
    for old, new in list(zip(before.samples, after.samples, strict=True))[:shown]:
        print(f"\nprompt  {old['prompt']}")
        for name, sample in (("before", old), ("after", new)):
            print(f"{name:7} [{sample['reward']:+.3f}] {sample['response'].strip()}")
