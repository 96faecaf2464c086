"""The settings of making a model smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.problems import Problems, required, reward_problems
from proxlm.config.rollout import RolloutSettings
from proxlm.config.schema import DataSettings, ProcessSettings, RewardSettings
from proxlm.config.setting import setting


@dataclass(frozen=True)
class MagnitudeSettings:
    """The smallest weights of the blocks' matrices become 0 (Han et al. 2015); the matrices keep their size."""

    sparsity: float = setting(0.5, "share of the weights that become 0", gt=0, lt=1)
    scope: Literal["matrix", "model"] = setting(
        "matrix", "the smallest of each matrix, or of all together; not with pattern"
    )
    pattern: Literal["none", "2:4"] = setting(
        "none", "2:4: of four neighbours in a row the two smaller ones, as GPUs can use it (sparsity 0.5)"
    )


@dataclass(frozen=True)
class StructuredSettings:
    """Attention heads and channels of the MLP are left out of every block: a smaller model of the same type."""

    heads: float = setting(
        0.25,
        "share of the heads to leave out; queries that share keys and values go together, one such group at least"
        " stays",
        ge=0,
        lt=1,
    )
    channels: float = setting(
        0.25,
        "share of the MLP's inner channels to leave out; what stays is a multiple of 32 where it was one",
        ge=0,
        lt=1,
    )


@dataclass(frozen=True)
class BlockSettings:
    """Whole blocks are left out, those that change their states the least (ShortGPT, Men et al. 2024)."""

    drop: int = setting(1, "number of blocks to leave out", ge=1)


@dataclass(frozen=True)
class CalibrationSettings:
    """The texts on which heads, channels and blocks are judged (structured, blocks)."""

    text: list[str] = setting(
        factory=list, help="files, folders or data sets of text, as in pretraining", path="input"
    )
    count: int = setting(32, "number of texts read", ge=1)
    tokens: int = setting(128, "tokens read of each", ge=2)


@dataclass(frozen=True)
class RecoverSettings:
    """Training of the pruned model by a recipe; weights that pruning made 0 stay 0."""

    command: Literal["pretrain", "sft", "distill"] = setting(
        "pretrain", "the command that the recipe is for; distill: its teacher is the original"
    )
    recipe: str = setting("", "the recipe; its model is the pruned one; empty: no recovery", path="input")
    set: list[str] = setting(
        factory=list, help="a setting of the job over the recipe's, section.key=VALUE; may be repeated"
    )


@dataclass(frozen=True)
class CostSettings:
    """What is measured of the original and of every stage."""

    text: list[str] = setting(
        factory=list, help="held-out texts for perplexity and KL, as in pretraining", path="input"
    )
    count: int = setting(64, "number of these texts that are read", ge=1)
    tokens: int = setting(256, "tokens read of each", ge=2)
    new_tokens: int = setting(32, "length of the responses by which seconds per token are measured", ge=2)
    repeats: int = setting(3, "how often the seconds are measured; the fastest counts", ge=1)


@dataclass(frozen=True)
class CompressConfig:
    """Make a model smaller by pruning, recovery training and quantisation, and measure what it costs."""

    model: str = setting(
        "",
        "what is made smaller (also: proxlm compress MODEL): the folder of a run, a model or an adapter, a GGUF file,"
        " or a name on the hub",
        path="model",
    )
    method: Literal["magnitude", "structured", "blocks", "none"] = setting(
        "magnitude", "what is pruned: single weights, heads and channels, blocks, or nothing"
    )
    magnitude: MagnitudeSettings = setting(factory=MagnitudeSettings)
    structured: StructuredSettings = setting(factory=StructuredSettings)
    blocks: BlockSettings = setting(factory=BlockSettings)
    calibration: CalibrationSettings = setting(factory=CalibrationSettings)
    recover: RecoverSettings = setting(factory=RecoverSettings)
    quantise: Literal["none", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = setting(
        "none", "at the end also a GGUF file of so many bits, which llama.cpp, transformers and proxlm read"
    )
    cost: CostSettings = setting(factory=CostSettings)
    reward: RewardSettings = setting(
        factory=RewardSettings, help="with use: also the reward of responses to data.eval_prompts"
    )
    data: DataSettings = setting(factory=DataSettings)
    rollout: RolloutSettings = setting(factory=RolloutSettings)
    output: str = setting(
        "",
        "where everything is written; the same command goes on with a folder that holds a part of it",
        path="output",
    )
    seed: int = setting(0, "seed of the sampled responses that are scored", ge=0, lt=2**32)
    trust_remote_code: bool = setting(False, "allow Python code that comes with the model to run")
    run: ProcessSettings = setting(factory=ProcessSettings)

    positional: ClassVar[str] = "model"
    takes_recipe: ClassVar[bool] = True

    def problems(self) -> Problems:
        found = required(("model", self.model), ("output", self.output), ("cost.text", self.cost.text))
        if self.method == "none" and self.quantise == "none":
            found.append(("method", "with quantise = none there is nothing to do"))
        if self.method in ("structured", "blocks"):
            found += required(("calibration.text", self.calibration.text))
        if self.method == "structured" and not (self.structured.heads or self.structured.channels):
            found.append(("structured.channels", "with structured.heads = 0 nothing would be left out"))
        if self.magnitude.pattern == "2:4" and self.magnitude.sparsity != 0.5:
            found.append(("magnitude.sparsity", "2:4 is half of the weights: 0.5"))
        if (self.reward.use or self.reward.terms) and not (self.data.eval_prompts or self.data.prompts):
            found.append(("data.eval_prompts", "required: prompts whose responses are scored"))
        return found + reward_problems(self.reward)
