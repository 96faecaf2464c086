"""`proxlm evaluate`: models side by side on held-out prompts."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from proxlm.config import EvaluateConfig, LoraSettings
from proxlm.config.paths import short
from proxlm.data.prompts import LoadedPrompts, load_prompts
from proxlm.data.skipped import Skipped
from proxlm.engine.native import NativeEngine
from proxlm.environments.resolve import task_prompts
from proxlm.errors import DataError, ModelError
from proxlm.evaluation.evaluate import Evaluation, as_json, as_table, evaluate_model
from proxlm.jobs.model_limits import prompt_limit
from proxlm.jobs.progress import progress_line
from proxlm.jobs.sampling import check_conversations, data_of, sampler_of
from proxlm.jobs.startup import set_up
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model
from proxlm.rewards import Reward, build_reward
from proxlm.runlog.folder import write_json_atomic


def main(config: EvaluateConfig) -> None:
    """Evaluate, print the table and a few samples, and write the JSON file if one is asked for."""
    evaluations = run_evaluate(config)
    print(as_table(evaluations))
    for i in range(min(config.samples, evaluations[0].prompts)):
        print(f"\nprompt  {evaluations[0].samples[i]['prompt']}")
        for e in evaluations:
            print(f"{e.name}: {e.samples[i]['response'].strip()}")
    if config.output:
        write_json_atomic(Path(config.output), as_json(evaluations, config.seed))
        print(f"\nwritten to {config.output}")


def run_evaluate(config: EvaluateConfig) -> list[Evaluation]:
    """model.policy, which is also the reference, and then each of `models`.

    Every model answers the same prompts with the same random numbers. Models must share a tokenizer.
    """
    reward: Reward | None = None
    if config.reward.use or config.reward.terms:
        reward = build_reward(config.reward)
    set_up(config.seed, model=config.model)
    check_conversations(config)
    limit = prompt_limit(config.model, config.data, config.rollout)
    # A finished model holds its adapters already; new ones would be of no use.
    plain = replace(config.model, lora=LoraSettings())
    reference = load_language_model(plain)
    loaded = _held_out(config, reference, limit)
    sampler, scorer = sampler_of(config, reference.tokenizer, reward)
    if not loaded.prompts:
        raise DataError("data.eval_count = 0: no prompts to evaluate on; set it to 1 or more")
    evaluations: list[Evaluation] = []
    for number, path in enumerate(["", *config.models]):
        model = load_language_model(replace(plain, policy=path)) if path else reference
        name = short(path or config.model.policy)
        longest = limit + (0 if reference.encoder_decoder else config.rollout.max_new_tokens)
        _check_same_tokens(reference, model, longest)
        print(f"evaluating {name} ({number + 1}/{len(config.models) + 1}) …", file=sys.stderr, flush=True)
        with closing(NativeEngine(model, config.rollout)) as engine:
            evaluation = evaluate_model(
                name,
                model,
                engine,
                lambda sequences, t: token_outputs(reference, sequences, t).logprobs,
                loaded.prompts,
                scorer,
                config.rollout,
                seed=config.seed,
                micro_batch_tokens=config.micro_batch_tokens,
                samples=max(config.samples, 16),
                on_progress=progress_line("responses"),
                generate=sampler,
            )
        evaluations.append(evaluation)
    return evaluations


def _held_out(config: EvaluateConfig, reference: LanguageModel, limit: int) -> LoadedPrompts:
    data = data_of(config)
    if config.environment.use and not (data.prompts or data.eval_prompts):
        return task_prompts(config.environment, data.eval_count)[1]
    if not data.prompts:
        data = replace(data, prompts=data.eval_prompts)
    skipped = Skipped(data.on_bad_record == "skip")
    loaded = load_prompts(
        data, reference.tokenizer, limit, "eval", config.seed, reference.encoder_decoder, skipped
    )
    skipped.print_summary()
    return loaded


def _check_same_tokens(reference: LanguageModel, model: LanguageModel, longest: int) -> None:
    """The same ids must mean the same to both models, and fit their contexts."""
    if model.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ModelError(
            f"{model.source}: another tokenizer than {reference.source}'s: their tokens cannot be compared"
        )
    if model.encoder_decoder != reference.encoder_decoder:
        raise ModelError(
            f"{model.source}: it and {reference.source} are not both encoder–decoders: their prompts differ"
        )
    if reference.context and model.context and model.context < min(longest, reference.context):
        raise ModelError(
            f"{model.source}: its context of {model.context} tokens is shorter than {longest}; lower"
            " data.max_prompt_tokens or rollout.max_new_tokens"
        )
