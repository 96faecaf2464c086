"""The settings of a new model: its type and sizes, what it begins with, and word vectors for its embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting
from proxlm.config.tokenizer import TokenizerSettings


@dataclass(frozen=True)
class WordVectorSettings:
    """Word vectors that the embeddings of a new model begin with; tokens without one begin as they would anyway."""

    file: str = setting(
        "",
        "word vectors as text: GloVe, word2vec (not its binary form), fastText's .vec, or .gz of these, new.hidden"
        " numbers a word; empty: none",
        path="input",
    )
    train: Literal["none", "skipgram", "cbow"] = setting(
        "none",
        "learn the vectors of the tokens on the training text, with gensim's word2vec (proxlm[embeddings])",
    )
    epochs: int = setting(5, "train: passes over the text", ge=1)
    window: int = setting(5, "train: most tokens between two that count as neighbours", ge=1)
    std: float = setting(
        0.0, "scale the vectors so that their numbers have this deviation; 0: as they are", ge=0
    )
    freeze: bool = setting(False, "the embeddings do not learn, those of tokens without a vector neither")


@dataclass(frozen=True)
class NewModelSettings:
    """A new model, built from a transformers configuration with random weights."""

    type: str = setting(
        "llama",
        "transformers model type: llama, qwen3, gpt2, ...; lstm, which is proxlm's own; with sft also t5, bart",
    )
    tokenizer: str = setting(
        "",
        "a ready tokenizer, of proxlm tokenizer for instance: a folder or a name on the hub; empty: one is trained on"
        " the text",
        path="model",
    )
    tokens: TokenizerSettings = setting(factory=TokenizerSettings)
    vocabulary: int = setting(4096, "size of the tokenizer that is trained on the text", ge=260)
    hidden: int = setting(256, "width of the residual stream", ge=8)
    layers: int = setting(4, "number of blocks; of an encoder–decoder, in each half", ge=1)
    heads: int = setting(4, "number of attention heads (lstm: none)", ge=1)
    intermediate: int = setting(
        0, "width of the MLP's inner layer; 0: 8/3 of hidden, rounded to a multiple of 32", ge=0
    )
    context: int = setting(
        512,
        "longest sequence in tokens (lstm and t5 have no limit of their own; sft applies it to its examples)",
        ge=8,
    )
    tie_embeddings: bool = setting(True, "use the input embedding as the output head")
    activation: Literal["type", "relu", "sigmoid", "tanh", "gelu", "silu"] = setting(
        "type", "activation of the MLPs; type: the one that the model type has"
    )
    norm_eps: float = setting(
        0.0, "what norms add to a variance; 0: as the model type has it, with its kind of norm", ge=0
    )
    initialisation: Literal[
        "type", "normal", "xavier-uniform", "xavier-normal", "he-uniform", "he-normal"
    ] = setting(
        "type",
        "random numbers that the matrices of linear layers begin with: normal with std, Glorot's or He's; type: as"
        " transformers begins the model type",
    )
    std: float = setting(
        0.02, "deviation of normal initialisation; with all named ones, that of the embeddings", gt=0
    )
    scale_residual: bool = setting(
        False,
        "divide the matrices that add to the residual stream by the root of their number, √(2 · layers) in a decoder"
        " (GPT-2; Radford et al. 2019); with a named initialisation",
    )
    embeddings: WordVectorSettings = setting(factory=WordVectorSettings)

    @property
    def recurrent(self) -> bool:
        """Whether the model has neither attention heads nor a longest sequence."""
        return self.type == "lstm"
