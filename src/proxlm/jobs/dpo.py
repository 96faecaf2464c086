"""`proxlm dpo`: train a language model on preferences directly, without a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from proxlm.config import DPOConfig
from proxlm.data.chat import carry_template
from proxlm.data.preferences import Comparison, split_by_prompt
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.distributed.ranks import Ranks
from proxlm.jobs.startup import after_restart, seeded_weights, start_job
from proxlm.jobs.supervised import RecordsTrainer, check_to_train, made_for_run, print_result
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.report.run import Run
from proxlm.runlog.metric_names import LOSS, VALIDATION_ACCURACY, VALIDATION_LOSS
from proxlm.train.supervised.dpo_objective import DPOObjective, as_examples, comparison_examples
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.loop import SupervisedLoop


def main(config: DPOConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    print_result(DPOTrainer(config=after_restart(config)).train())


class DPOLoop(SupervisedLoop):
    """Supervised training on comparisons."""

    headline: ClassVar[tuple[str, ...]] = (LOSS, VALIDATION_LOSS, VALIDATION_ACCURACY)


class DPOTrainer(RecordsTrainer[DPOConfig]):
    """Trains a language model on preferences by direct preference optimisation; the reference is its start.

    Settings are checked here; the data and the model when `train` is called. Everything that is not passed comes from
    `config`.

    Args:
        model: A folder, a name on the Hugging Face hub, a transformers model (with `tokenizer`) or a `LanguageModel`.
            A loaded model is trained in place.
        train: Records with a prompt and two completions, chosen and rejected (fields: the section `text`), as texts
            or messages. Or the path of a file of these.
        config: The settings.
        tokenizer: The tokenizer of a transformers model.
        validation: Held-out records; None: `config.text.validation_share` of the prompts are set aside.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
        ModelError: `model` is nothing that can be a model.
        DataError: `train` or `validation` is nothing that can be records.
    """

    job = "dpo"
    _settings = DPOConfig
    _loop = DPOLoop

    def _train(self, ranks: Ranks) -> Run:
        config = self.config
        skipped = Skipped(config.text.on_bad_record == "skip")
        model, parts = made_for_run(ranks, config.run, lambda: self._model_and_parts(skipped))
        (training, margins), (validation, validation_margins) = parts
        if model.bfloat16 and config.distributed.shards(ranks.size):
            model.own_kernels = False  # or the reference would round otherwise than the sharded policy
        objective = DPOObjective(
            model,
            training,
            validation,
            (margins, validation_margins),
            config.dpo,
            config.train.micro_batch_tokens,
            ranks,
        )
        with self._folder(ranks) as folder:
            return self._minimise(folder, objective, skipped, ranks)

    def _sources(self) -> Mapping[str, Source | ModelSource | None]:
        # The weights of a loaded model at the start are the reference.
        start = {"model.policy": self.source} if self.source.in_memory else {}
        return {**super()._sources(), **start}

    def _model_and_parts(self, skipped: Skipped) -> tuple[LanguageModel, list[tuple[Examples, Tensor]]]:
        """The policy at its start, and the comparisons of training and of validation with their margins."""
        config, text = self.config, self.config.text
        with seeded_weights(config.run.seed):
            model = self.source.load()
        carry_template(model.tokenizer, text.chat_template)

        def examples(sources: Sequence[Source]) -> tuple[Examples, list[Comparison]]:
            noted = list[Comparison]()
            found = comparison_examples(model, text, sources, skipped, self.source.eos)
            return as_examples(found, noted), noted

        every, noted = examples(self._records.training)
        if self._records.validation:
            held_out, noted_too = examples(self._records.validation)
            parts = [
                _part(every, noted, range(len(noted))),
                _part(held_out, noted_too, range(len(noted_too))),
            ]
        else:
            rows = split_by_prompt([found.group for found in noted], text.validation_share, config.run.seed)
            parts = [_part(every, noted, of_part) for of_part in rows]
        check_to_train(model, *(part for part, _ in parts))
        return model, parts


def _part(every: Examples, noted: Sequence[Comparison], rows: Sequence[int]) -> tuple[Examples, Tensor]:
    """The rows of the given comparisons, and their margins [n]."""
    texts = [2 * row + k for row in rows for k in (0, 1)]
    return every.select(texts), torch.tensor([noted[row].margin for row in rows])
