"""`proxlm ppo`: evaluate a model, improve it with PPO, evaluate it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from proxlm.checkpoint import is_published, newest_checkpoint, publish_folder
from proxlm.config import PPOConfig, RolloutSettings, settings_or_default, validate
from proxlm.config.algorithms import advantage_of
from proxlm.config.from_run import IN_MEMORY
from proxlm.config.no_effect import unused_by_algorithm
from proxlm.config.signature import checked
from proxlm.data.chat import carry_template
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.prompts import PromptSources, PromptStream
from proxlm.data.skipped import FILE_NAME, Skipped
from proxlm.data.supervised import pretrain_blocks
from proxlm.data.text import read_texts
from proxlm.distributed.environment import rank
from proxlm.distributed.launch import joined_ranks
from proxlm.distributed.ranks import Ranks
from proxlm.engine.agreement import WITHOUT_CACHE, check_engine
from proxlm.engine.generate import Generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.vllm_server import wait_for_server
from proxlm.environments.protocol import MakeEnvironment
from proxlm.errors import ConfigError, RewardError, RunError
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.task_metrics.task_metrics import TaskMetrics, task_metrics
from proxlm.evaluation.task_metrics.user_metrics import user_metrics
from proxlm.jobs.doctor import examine
from proxlm.jobs.held_out import HeldOutEvaluations, print_comparison
from proxlm.jobs.in_memory import record_source
from proxlm.jobs.model_limits import check_block
from proxlm.jobs.prompts import describe_prompts
from proxlm.jobs.run_folder import begin_run, check_best_metric, check_run_folder, run_folder
from proxlm.jobs.sampling import prompts_of, rewarded, sampler_of, without_reward
from proxlm.jobs.startup import after_restart, seeded_weights, start_job
from proxlm.jobs.words import words_of_run
from proxlm.models.actor_critic import ActorCritic, actor_critic_of
from proxlm.models.agreement import check_gradients
from proxlm.models.source import ModelSource
from proxlm.models.teacher import check_teacher, note_on_ends
from proxlm.report.page import write_report
from proxlm.report.run import Run, load_run
from proxlm.rewards import Rewards, build_reward
from proxlm.runlog.metric_names import EVALUATION
from proxlm.runlog.run_log import RunLog
from proxlm.seeds import Stream
from proxlm.text import shown
from proxlm.train.common.callbacks import Callback, Callbacks
from proxlm.train.common.schedules import warmup_note
from proxlm.train.ppo.algorithms import build_algorithm
from proxlm.train.ppo.collect import RewardOfRollout, no_reward
from proxlm.train.ppo.learner import check_rates
from proxlm.train.ppo.loop import PPOLoop
from proxlm.train.ppo.ptx import PtxText
from proxlm.types import Prompt


def main(config: PPOConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    run = PPOTrainer(config=after_restart(config)).train()
    if rank() > 0:  # rank 0 speaks, and its machine may be the only one with the run's folder
        return
    print_comparison(run)
    for finding in examine(run.folder).at_the_end:
        print(f"\n{finding.line()}")
    print(f"\nmodel   {run.model}")
    if config.run.report:
        print(f"report  {run.folder / 'report.html'}")


class PPOTrainer:
    """Improves a language model with PPO on a reward, a teacher (`config.model.teacher`), or both.

    Settings, reward and algorithm are checked here; the data and the model when `train` is called, before the run's
    folder is made. Everything that is not passed comes from `config`.

    Args:
        model: A folder, a name on the Hugging Face hub, a transformers model (with `tokenizer`) or a `LanguageModel`.
            A loaded model is trained in place.
        reward: A function from a list of `Completion` to one number for each (or a list of numbers, one a token, or a
            dict of named parts), or several: a list or a dict of functions, whose results are added. May be async.
            With a teacher or an environment there need not be one.
        prompts: Texts, chats (lists of messages) or records (mappings; `config.data.prompt_field` names the prompt,
            the other fields reach the reward), for instance a `datasets.Dataset`; or the path of a file of these.
        config: The settings.
        tokenizer: The tokenizer of a transformers model.
        eval_prompts: Held-out prompts; None: `config.data.eval_count` of `prompts` are set aside.
        environment: Makes an environment for each conversation: a class, for instance, with reset(task), step(reply).
        advantage: AdvantageInputs → Advantages, or a tensor [R]; instead of `config.ppo.advantage`.
        loss: LossInputs → PolicyLoss, or a tensor [R]; instead of `config.ppo.loss`.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
        ModelError: `model` is nothing that can be a model.
        DataError: `prompts` is nothing that can be prompts.
    """

    # What `ValueTrainer` has others of.
    job: ClassVar[str] = "ppo"
    _settings: ClassVar[type[PPOConfig]] = PPOConfig
    _loop: ClassVar[type[PPOLoop]] = PPOLoop
    _held_out: ClassVar[type[HeldOutEvaluations]] = HeldOutEvaluations

    @checked("model", "prompts", "config", "tokenizer", "eval_prompts", "callbacks")
    def __init__(
        self,
        model: Any = None,
        reward: Rewards | None = None,
        prompts: Iterable[Any] | str | Path | None = None,
        config: PPOConfig | None = None,
        *,
        tokenizer: Any = None,
        eval_prompts: Iterable[Any] | str | Path | None = None,
        environment: MakeEnvironment | None = None,
        advantage: Callable[..., Any] | None = None,
        loss: Callable[..., Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = settings_or_default(self._settings, config)
        self.source = ModelSource(config.model, model, tokenizer)
        field = config.data.prompt_field
        given = record_source(prompts, "prompts", field)
        held_out = record_source(eval_prompts, "eval_prompts", field)
        data = replace(
            config.data,
            prompts=config.data.prompts if given is None else str(given),
            eval_prompts=config.data.eval_prompts if held_out is None else str(held_out),
        )
        settings = replace(config.environment, use=IN_MEMORY) if environment else config.environment
        config = replace(config, model=self.source.settings, data=data, environment=settings)
        self.config = validate(config, {"model.policy": "model", "data.prompts": "prompts"})
        self._sources = PromptSources(given or data.prompts, held_out or data.eval_prompts or None)
        self._reward = build_reward(config.reward, reward) if rewarded(self.config, reward) else None
        if self._reward is None and not self.config.environment.use:
            self.config = without_reward(self.config)
        self._algorithm = build_algorithm(self.config.ppo, advantage, loss)
        self._functions = user_metrics(self.config.metrics, timeout=self.config.reward.timeout)
        self._environment, self._callbacks = environment, Callbacks(callbacks)
        check_best_metric(self.config.best_metric(), self.job, self._callbacks)
        self._own_algorithm = advantage is not None or loss is not None  # may use any setting
        from_python = reward, advantage, loss, environment
        in_memory = (isinstance(source, InMemoryRecords) for source in (given, held_out))
        self._in_python = any(x is not None for x in from_python) or any(in_memory) or self.source.in_memory

    def train(self) -> Run:
        """Evaluate, train, evaluate again, and write model and report to the run's folder.

        Raises:
            UserError: The data, the model or the reward cannot be used, or the run cannot continue.
            StoppedBySignalError: A signal has ended the run; its newest step is saved.
        """
        with self.source.lent(), joined_ranks(self.config.distributed.timeout) as ranks:
            if ranks.rank > 0:
                return self._follow(ranks)
            return ranks.broadcast(lambda: self._train(ranks))

    def _follow(self, ranks: Ranks) -> Run:
        """Take part in the run of rank 0, which alone reads prompts, scores and writes."""
        config = self.config
        ptx = _ptx_text(config, self.source, Skipped(True)) if config.ptx.coef > 0 else None
        nothing = PromptStream([Prompt(0, (), "")], config.ppo.batch_size, config.run.seed)
        loop = self._loop(
            config, self._models(), nothing, no_reward, Path(), self._algorithm, ptx, ranks=ranks
        )
        run: Run = loop.follow()
        return run

    def _train(self, ranks: Ranks) -> Run:
        config = self.config
        check_run_folder(config.run)
        skipped = Skipped(config.data.on_bad_record == "skip")
        has_tasks = config.environment.use and not config.data.prompts
        train, held_out = prompts_of(config, self.source, skipped, None if has_tasks else self._sources)
        metrics = task_metrics(config.metrics, self._functions, held_out.prompts, config.run.seed)
        words = words_of_run(config, held_out.prompts)
        stream = PromptStream(train.prompts, config.ppo.batch_size, config.run.seed)
        print(describe_prompts(train, held_out, skipped), flush=True)
        unused = [] if self._own_algorithm else unused_by_algorithm(config.ppo)
        for note in (*notes(config), *unused):
            print(f"note: {note}", flush=True)
        if config.model.teacher:
            longest = max(len(p.input_ids) for p in (*train.prompts, *held_out.prompts))
            talk = config.environment
            check_teacher(
                self.source, longest, talk.max_tokens if talk.use else config.rollout.max_new_tokens
            )
            if note := note_on_ends(self.source):
                print(f"note: model.teacher: {note}", flush=True)
        if config.engine.use == "vllm" and not config.run.resume:
            wait_for_server(config.engine.url, config.engine.wait)
        models = self._models()
        read = [*train.prompts, *(held_out.prompts if self._held_out.reads_critic else [])]
        check_critic_context(models, read, config.rollout)
        carry_template(models.policy.tokenizer, config.data.chat_template)
        for prompt in (*train.prompts, *held_out.prompts):
            models.policy.check_tokens(f"prompt {shown(prompt.text, 60)!r}", prompt.input_ids)
        check_engine(models.policy)
        check_gradients(models.policy)
        check_rates(models, config)
        if not models.policy.cached:
            print(f"note: {WITHOUT_CACHE}", flush=True)
        ptx = _ptx_text(config, self.source, skipped) if config.ptx.coef > 0 else None
        sampler, scorer = sampler_of(config, models.policy.tokenizer, self._reward, self._environment)
        scorer = scorer or no_reward
        try_reward(models, sampler, scorer, stream.batch(0), config.rollout)
        with run_folder(config, self.job, self._in_python) as folder:
            skipped.save(folder)
            loop = self._loop(config, models, stream, scorer, folder, self._algorithm, ptx, sampler, ranks)
            loop.callbacks = self._callbacks.fresh()
            return self._run(loop, held_out.prompts, metrics, words)

    def _models(self) -> ActorCritic:
        """Policy, critic and reference at the start."""
        with seeded_weights(self.config.run.seed):
            return actor_critic_of(self.source.load(), self.config.model, self._algorithm.critic)

    def _run(
        self, loop: PPOLoop, held_out: list[Prompt], metrics: TaskMetrics | None, words: Evaluation | None
    ) -> Run:
        """Evaluation, the loop, evaluation; everything the run leaves is in its folder."""
        config, folder = self.config, loop.folder
        evaluations = self._held_out(loop, held_out, metrics, words)
        passed: dict[str, Any] = {
            "data.prompts": self._sources.train,
            "data.eval_prompts": self._sources.eval,
        }
        if self.source.in_memory:  # it is trained in place, and its weights at the start are the reference
            passed["model.policy"] = self.source
        begin_run(config, loop, passed)
        if config.run.resume and self._nothing_left(loop, evaluations):
            print(f"the run is finished: nothing is left to do after step {loop.state.step}", flush=True)
            return load_run(folder)
        loop.synchronise()
        loop.refresh()
        evaluations.before()
        with RunLog(
            folder,
            self.job,
            config.ppo.steps,
            config.run,
            start_step=loop.state.step,
            in_python=self._in_python,
            on_phase=loop.ranks.phase,
        ) as log:
            loop.train(log)
        loop.refresh()
        publish_folder(folder / loop.model_folder, loop.save_model)
        evaluations.after()
        if config.run.report:
            write_report(folder)
        return load_run(folder)

    def _nothing_left(self, loop: PPOLoop, evaluations: HeldOutEvaluations) -> bool:
        """Whether all steps are done, and what comes after them is there and belongs to the last one."""
        folder, published = loop.folder, loop.folder / loop.model_folder
        if not loop.finished() or not evaluations.complete():
            return False
        if self.config.run.report and not (folder / "report.html").exists():
            return False
        return published.is_dir() and is_published(newest_checkpoint(folder), loop.model_folder, published)


def check_critic_context(models: ActorCritic, prompts: Sequence[Prompt], rollout: RolloutSettings) -> None:
    """Raise ConfigError if a critic of its own sizes cannot read the longest prompt and its response."""
    prompt, response, limit = (
        max(len(p.input_ids) for p in prompts),
        rollout.max_new_tokens,
        models.critic_context,
    )
    longest = max(prompt, response + 1) if models.policy.encoder_decoder else prompt + response
    if limit is not None and longest > limit:
        raise ConfigError(
            f"model.critic_from: the critic's context of {limit} tokens is too short for a prompt of {prompt} and a"
            f" response of up to {response}; lower rollout.max_new_tokens or data.max_prompt_tokens"
        )


def notes(config: PPOConfig) -> list[str]:
    """What is allowed but has a price, in words."""
    ppo, rollout = config.ppo, config.rollout
    found = []
    if (metric := config.best_metric()) and not EVALUATION.matches(metric):
        found.append(
            f"run.keep_best = {shown(metric)} is measured before a step's update, on what it learns from; metrics of"
            " held-out prompts are evaluation/…"
        )
    if rollout.unlike_policy and ppo.engine_correction.mode == "none":
        found.append(
            "top_k, top_p and min_p without rollout.keep_sampling_mask sample from another policy than the one that"
            " learns: a bias"
        )
    updates = ppo.steps * ppo.epochs * ppo.minibatches
    critic = advantage_of(ppo.advantage).critic
    for name, optim in (("policy", config.optim.policy), ("critic", config.optim.critic)):
        if (name == "policy" or critic) and (note := warmup_note(f"optim.{name}", optim, updates)):
            found.append(note)
    if ppo.loss == "pg" and ppo.epochs * ppo.minibatches > 1:
        found.append(
            f"ppo.loss = pg is right for the policy that sampled; {ppo.epochs} epochs of {ppo.minibatches}"
            " minibatches go on with another one, and nothing corrects or bounds it"
        )
    if ppo.loss == "trpo" and config.model.critic == "shared" and critic:
        found.append(
            "with ppo.loss = trpo a shared critic is its value head alone; the trunk is the policy's"
        )
    return found


def _ptx_text(config: PPOConfig, model: ModelSource, skipped: Skipped) -> PtxText:
    """The text of PPO-ptx, packed into blocks; prints how much of it is left out.

    Raises DataError, and ConfigError for blocks the model cannot read.
    """
    if model.encoder_decoder:
        raise ConfigError("ptx.coef: plain text has no prompt for an encoder; set it to 0")
    check_block("ptx.block", config.ptx.block, model)
    before = len(skipped)
    documents = read_texts(config.ptx.text, config.ptx.extensions, skipped)
    if len(skipped) > before:
        print(f"ptx.text: {len(skipped) - before} left out: see {FILE_NAME}", flush=True)
    blocks = pretrain_blocks(model.tokenizer, documents, config.ptx.block)
    return PtxText(blocks, config.ptx, config.ppo.micro_batch_tokens, config.run.seed)


def try_reward(
    models: ActorCritic,
    sampler: Generate,
    scorer: RewardOfRollout,
    prompts: list[Prompt],
    rollout: RolloutSettings,
) -> None:
    """Score two responses before the run begins: a reward or an environment that cannot work fails here, with
    nothing written. If it has no reward for these two, it gets responses to all of the prompts.

    Args:
        models: The policy among them samples.
        sampler: Samples.
        scorer: Scores.
        prompts: Of a step.
        rollout: How responses are sampled.

    Raises:
        RewardError: The reward fails, or returns None for all of a step's prompts.
        RunError: An environment fails.
    """
    for asked in (prompts[:2], prompts):
        with closing(NativeEngine(models.policy, rollout)) as engine:
            trial = sampler(engine, asked, rollout, seed=0, step=0, stream=Stream.TRIAL)
        if trial.lost:
            raise RunError(f"environment.use: a conversation was lost: {trial.lost[0]}")
        if scorer(trial).scored.any():
            return
    raise RewardError(
        f"the reward returned None, which is no reward, for all {len(prompts)} responses of a trial; a step"
        " needs some"
    )
