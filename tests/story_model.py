"""A tokenizer of the SentencePiece type and a tiny model that has learnt a few stories by heart.

They stand in for a pretrained model, so that a plain clone runs every test. Where the pretrained model stories260K is
beside the checkout, the tests run on it as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from proxlm.config import ModelSettings, NewModelSettings
from proxlm.data.tokenizer import encode_documents
from proxlm.models.load import build_language_model

ROOT = Path(__file__).parents[1]
MATERIAL = Path(__file__).parent / "material"
STORIES = (MATERIAL / "stories.txt").read_text(encoding="utf-8").splitlines()
ARITHMETIC = MATERIAL / "arithmetic.jsonl"

PRETRAINED = ROOT.parent / "shared" / "models" / "stories260K"
SHARED_DATA = ROOT.parent / "shared" / "data"

BYTES = [f"<0x{value:02X}>" for value in range(256)]


def beside_the_checkout(*paths: Path) -> list[Path]:
    """Those of the larger data sets and models that are there: tests run on them besides their own material."""
    return [path for path in paths if path.exists()]


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama 2's: a space before every text, unknown characters as bytes, ids 0 to 2 are special."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # while it is trained, so that no token spans words
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation()]
    )
    specials = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        STORIES,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=[*specials, *BYTES],
            initial_alphabet=["▁", "\n"],
            show_progress=False,
        ),
    )
    made = json.loads(backend.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] in specials]
    made["pre_tokenizer"] = None
    backend = Backend.from_str(json.dumps(made))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        model_max_length=512,
        padding_side="left",
    )


def save_story_model(folder: Path, steps: int = 60) -> Path:
    """Train a Llama of 80,000 parameters until it knows the stories, and save it with its tokenizer (3 seconds)."""
    tokenizer = sentencepiece_tokenizer()
    new = NewModelSettings(type="llama", hidden=48, layers=2, heads=4, context=512)
    torch.manual_seed(0)
    network: Any = build_language_model(new, tokenizer, ModelSettings(device="cpu")).network
    rows = [torch.tensor(ids) for ids in encode_documents(tokenizer, STORIES)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    network.train()
    for _ in range(steps):
        loss = network(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
