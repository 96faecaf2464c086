"""What the settings of every supervised job are checked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from proxlm.config.distributed import sharding_problems
from proxlm.config.early_stopping import early_stopping_problems
from proxlm.config.problems import Problems, model_problems, optimiser_problems


def supervised_problems(job: Any, written: Collection[str], **unfit: object) -> Problems:
    """What of model, train, optim, distributed and run cannot be.

    Args:
        job: The settings of a job with these sections.
        written: The metrics that it writes, to stop early by.
        unfit: Of `sharding_problems`.
    """
    found = model_problems(job.model)
    if job.run.keep_best not in ("auto", "none"):
        reason = "the model of the run always is the one with the best validation loss; leave it out"
        found.append(("run.keep_best", reason))
    if job.train.dropout and job.model.activation_checkpointing:
        reason = "works without model.activation_checkpointing; set one of them to its default"
        found.append(("train.dropout", reason))
    found += early_stopping_problems(job.train, written)
    found += sharding_problems(job.distributed, {"optim": job.optim}, **unfit)
    return found + optimiser_problems("optim", job.optim)
