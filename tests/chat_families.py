"""Chat templates in the manner of today's model families, in words of our own, each with a tiny tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers, processors
from transformers import PreTrainedTokenizer

from proxlm.data.tokenizer import train_tokenizer
from small_models import TEXTS
from story_model import sentencepiece_tokenizer

_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = ["user assistant model system USER ASSISTANT: It is 5. What is 2 + 3? Yes, a bird.\nAnd now?\n\n"] * 5


@dataclass(frozen=True)
class Family:
    """A family of chat models.

    Attributes:
        name: Of the family.
        template: Its chat template.
        special: Its special tokens.
        eos: The tokenizer's EOS.
        end: What the template writes behind the words of a reply, up to the token that ends the turn.
        bos: BOS, if it has one.
        adds_bos: Whether the tokenizer puts BOS before every text.
        kind: bytes (byte-level BPE), fallback (SentencePiece type, unknown characters in bytes), slow (in Python).
        space: What the template writes before the words of a reply, behind its generation prompt.
        generates: EOS tokens of the generation config, beside the tokenizer's.
        rewrites: Whether earlier turns are rendered differently once others follow.
    """

    name: str
    template: str
    special: tuple[str, ...]
    eos: str
    end: str
    bos: str = ""
    adds_bos: bool = False
    kind: str = "bytes"
    space: str = ""
    generates: tuple[str, ...] = ()
    rewrites: bool = False

    def tokenizer(self) -> Any:
        made = _KINDS[self.kind](self)
        made.chat_template = self.template
        return made

    def eos_ids(self, tokenizer: Any) -> list[int]:
        """The EOS tokens of its generation config."""
        return [tokenizer.convert_tokens_to_ids(name) for name in (self.eos, *self.generates)]


def _named(made: Any, family: Family) -> Any:
    known = {"eos_token": family.eos} | ({"bos_token": family.bos} if family.bos else {})
    more = [name for name in family.special if name not in known.values()]
    made.add_special_tokens(known | {"additional_special_tokens": more})
    return made


def _byte_level(family: Family) -> Any:
    made = _named(train_tokenizer([*TEXTS, *WORDS] * 4, 340, 512), family)
    # As in Llama 3 and Qwen: line breaks are one word, whatever follows them.
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.backend_tokenizer.post_processor = (
        processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, made.bos_token_id)]
        )
        if family.adds_bos
        else None
    )
    return made


def _fallback(family: Family) -> Any:
    made = _named(sentencepiece_tokenizer(), family)
    if family.adds_bos:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, made.bos_token_id)]
        )
    else:
        made.backend_tokenizer.post_processor = None
    return made


class SlowTokenizer(PreTrainedTokenizer):
    """One token for each byte; in Python, as old tokenizers are."""

    def __init__(self, **more: Any) -> None:
        self._names = [chr(code) for code in range(128)] + [f"[{byte}]" for byte in range(128, 256)]
        self._ids = {name: number for number, name in enumerate(self._names)}
        super().__init__(clean_up_tokenization_spaces=False, **more)

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._names[byte] for byte in text.encode()]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        own, spelled = self._ids, b""
        for token in tokens:
            spelled += bytes([own[token]]) if token in own else token.encode()
        return spelled.decode(errors="replace")


_KINDS: dict[str, Callable[[Family], Any]] = {
    "bytes": _byte_level,
    "fallback": _fallback,
    "slow": lambda family: _named(SlowTokenizer(), family),
}


def _turns(user: str, assistant: str, prompt: str, first: str = "", other: str = "") -> str:
    """A template of one rule for each role."""
    return (
        first
        + "{% for m in messages %}{% if m.role == 'user' %}"
        + user
        + "{% elif m.role == 'assistant' %}"
        + assistant
        + "{% else %}"
        + (other or user)
        + "{% endif %}{% endfor %}"
        + ("{% if add_generation_prompt %}" + prompt + "{% endif %}" if prompt else "")
    )


_CHATML = _turns(
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n",
    "<|im_start|>assistant\n{{ m.content }}<|im_end|>\n",
    "<|im_start|>assistant\n",
)
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = [
    Family("chatml (Qwen2)", _CHATML, _CHATML_TOKENS, "<|im_end|>", "<|im_end|>"),
    Family("chatml on a base model", _CHATML, _CHATML_TOKENS, "<|endoftext|>", "<|im_end|>"),
    Family("chatml, slow", _CHATML, _CHATML_TOKENS, "<|endoftext|>", "<|im_end|>", kind="slow"),
    Family(
        "Yi", _CHATML, (*_CHATML_TOKENS, "<|startoftext|>"), "<|im_end|>", "<|im_end|>",
        bos="<|startoftext|>", kind="fallback",
    ),
    Family(
        "Qwen3",
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        _CHATML_TOKENS, "<|im_end|>", "<|im_end|>", rewrites=True,
    ),
    Family(
        "Llama 3",
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
         "<|eom_id|>"),
        "<|end_of_text|>", "<|eot_id|>", bos="<|begin_of_text|>", adds_bos=True,
        generates=("<|eot_id|>", "<|eom_id|>"),
    ),
    Family(
        "Llama 2",
        _turns("{{ bos_token }}[INST] {{ m.content | trim }} [/INST]", " {{ m.content | trim }} {{ eos_token }}", ""),
        ("<s>", "</s>"), "</s>", " </s>", bos="<s>", adds_bos=True, kind="fallback", space=" ",
    ),
    Family(
        "Mistral",
        _turns("[INST] {{ m.content }}[/INST]", " {{ m.content }}{{ eos_token }}", "", first="{{ bos_token }}"),
        ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", bos="<s>", adds_bos=True, space=" ",
    ),
    Family(
        "Gemma",
        _turns(
            "<start_of_turn>user\n{{ m.content | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n{{ m.content | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n",
            first="{{ bos_token }}",
        ),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>", "<end_of_turn>", bos="<bos>", adds_bos=True, kind="fallback",
    ),
    Family(
        "Phi-3",
        _turns("<|user|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n")
        + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", "<|end|>",
        generates=("<|end|>", "<|assistant|>"),
    ),
    Family(
        "Phi-4",
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
        (*_CHATML_TOKENS, "<|im_sep|>"), "<|endoftext|>", "<|im_end|>", bos="<|endoftext|>",
    ),
    Family(
        "Zephyr",
        _turns(
            "<|user|>\n{{ m.content }}{{ eos_token }}\n", "<|assistant|>\n{{ m.content }}{{ eos_token }}\n",
            "<|assistant|>\n",
        ),
        ("<s>", "</s>"), "</s>", "</s>", bos="<s>", adds_bos=True, kind="fallback",
    ),
    Family(
        "DeepSeek",
        _turns(
            "<｜User｜>{{ m.content }}", "<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>", "<｜Assistant｜>",
            first="{{ bos_token }}",
        ),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>", adds_bos=True,
    ),
    Family(
        "Command-R",
        _turns(
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            first="{{ bos_token }}",
        ),
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>", adds_bos=True,
    ),
    Family(
        "SmolLM3, with marks of generation",
        _turns(
            "<|im_start|>user\n{{ m.content }}<|im_end|>\n",
            "<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n",
            "<|im_start|>assistant\n",
            first="<|im_start|>system\nBe kind.<|im_end|>\n",
        ),
        _CHATML_TOKENS, "<|im_end|>", "<|im_end|>",
    ),
    Family(
        "OLMo",
        _turns(
            "<|user|>\n{{ m.content }}\n", "<|assistant|>\n{{ m.content }}{{ eos_token }}\n", "<|assistant|>\n",
            first="{{ bos_token }}",
        ),
        ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", bos="<|endoftext|>",
    ),
    Family(
        "GLM-4",
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"),
        "<|endoftext|>", "<|user|>", generates=("<|user|>", "<|observation|>"),
    ),
    Family(
        "Vicuna",
        _turns("USER: {{ m.content }} ", "ASSISTANT: {{ m.content }}{{ eos_token }}", "ASSISTANT:"),
        ("<s>", "</s>"), "</s>", "</s>", bos="<s>", adds_bos=True, kind="fallback", space=" ",
    ),
]  # fmt: skip
