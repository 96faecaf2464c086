"""Training, loading and using tokenizers: the only module that turns text into token ids and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from proxlm.config import NewModelSettings
from proxlm.config.paths import looks_like_path
from proxlm.config.signature import checked
from proxlm.config.tokenizer import TokenizerSettings, tokenizer_problems
from proxlm.data.hub import NotOnHubError, check_hub
from proxlm.data.tokenizer_kinds import BOS, EOS, PAD, UNK, trained_backend
from proxlm.errors import ConfigError, ModelError
from proxlm.files import NotRegularFileError, check_folder, read_regular
from proxlm.text import reason_of, shown, system_reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from transformers import PreTrainedTokenizerFast

INCOMPLETE = "�"
# The class of a tokenizer that is its tokenizer.json and nothing else, in tokenizer_config.json.
WHOLE_CLASS = "TokenizersBackend"
LARGEST_CONFIG = 2**26  # bytes; some hold every added token and a chat template


@checked()
def train_tokenizer(
    texts: Iterable[str],
    vocabulary: int,
    context: int,
    encoder_decoder: bool = False,
    settings: TokenizerSettings | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on texts: byte-level BPE as in GPT-2 (Sennrich et al. 2016, on bytes), or another kind.

    Decoding returns every text unchanged, whatever its script, but for wordpiece, for characters that are unknown
    (`unknown = "unk"`) and for what `normalise`, `lowercase` and `strip_accents` change. BOS, EOS and PAD have ids 0,
    1, 2. Encoding puts BOS first and no EOS last or, for an encoder–decoder, EOS last and no BOS, as in T5.

    Args:
        texts: What to train on.
        vocabulary: The most tokens; a small text has fewer pairs to merge, then len(tokenizer) is smaller.
        context: The longest sequence of the model that the tokenizer is for.
        encoder_decoder: Whether that model is an encoder–decoder.
        settings: The kind of tokenizer.

    Raises:
        ConfigError: A setting is wrong, or the vocabulary is too small for what has to be in it.
        DataError: The texts hold nothing that a tokenizer could be trained on.
    """
    settings = settings or TokenizerSettings()
    if vocabulary < 1:
        raise ConfigError(f"vocabulary: must be at least 1, got {vocabulary}")
    for key, problem in tokenizer_problems("settings", settings):
        raise ConfigError(f"{key}: {problem}")
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = trained_backend(texts, vocabulary, settings)
    single, pair = (f"$A {EOS}", f"$A {EOS} $B {EOS}") if encoder_decoder else (f"{BOS} $A", f"{BOS} $A $B")
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, backend.token_to_id(name)) for name in (BOS, EOS)]
    )
    more: dict[str, Any] = {} if settings.in_bytes else {"unk_token": UNK}
    if settings.special:
        more["additional_special_tokens"] = settings.special
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **more,
    )


def tokenizer_of_new_model(
    key: str,
    new: NewModelSettings,
    texts: Iterable[str],
    trust_remote_code: bool = False,
    encoder_decoder: bool = False,
) -> Tokenizer:
    """The tokenizer of a new model: the ready one that is named, or one that is trained on the texts.

    Args:
        key: The section of the settings, for messages.
        new: The settings.
        texts: What is trained on; not read for a ready one.
        trust_remote_code: Allow code that comes with a ready one.
        encoder_decoder: Whether the model is an encoder–decoder.

    Raises:
        UserError: See `train_tokenizer`, or the ready one cannot be loaded or has no EOS.
    """
    if not new.tokenizer:
        return train_tokenizer(texts, new.vocabulary, new.context, encoder_decoder, new.tokens)
    tokenizer = ready_tokenizer(f"{key}.tokenizer", new.tokenizer, trust_remote_code)
    tokenizer.model_max_length = new.context
    return tokenizer


def ready_tokenizer(key: str, name: str, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer that the setting `key` names. Raises ConfigError, or ModelError as `load_tokenizer`."""
    if looks_like_path(name) and not Path(name).is_dir():
        raise ConfigError(f'{key} = "{name}": no such folder')
    return load_tokenizer(name, trust_remote_code)


def require_folder(path: str) -> None:
    """Raise ModelError if a model's name can only be a path and there is no such folder, or a FIFO in it."""
    if looks_like_path(path) and not Path(path).is_dir():
        raise ModelError(
            f'model.policy = "{path}": no such folder; give a model\'s folder or its name on the hub'
        )
    try:
        check_folder(path)
    except NotRegularFileError as error:
        raise ModelError(f"{error.filename}: cannot be read: {system_reason(error)}") from error


# What transformers remembers of how a tokenizer was loaded, and would write into its tokenizer_config.json.
_OF_LOADING = ("is_local", "local_files_only")


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer in a folder or on the hub. Raises ModelError if there is none or it has no EOS."""
    folder = Path(path)
    require_folder(path)
    if folder.is_dir() and not any(any(folder.glob(p)) for p in ("*token*", "vocab*", "*.model")):
        raise ModelError(f'"{path}": the folder holds no tokenizer (tokenizer.json); save one there')
    try:
        tokenizer = read_tokenizer(path, trust_remote_code)
    except NotOnHubError as error:
        raise ModelError(f'"{path}": {error}') from error
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        where = "damaged or not supported" if folder.exists() else "no such folder, and not found on the hub"
        raise ModelError(f'"{path}": cannot load the tokenizer ({where}): {reason_of(error)}') from error
    for name in _OF_LOADING:
        tokenizer.init_kwargs.pop(name, None)
    return check_tokenizer(tokenizer, path)


def read_tokenizer(path: str, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer in a folder or on the hub, as it was saved; raises what transformers raises.

    For some model types (Qwen2, Phi-3, ...) transformers takes the class that the type had at first, which splits
    text otherwise and adds tokens, even if the saved tokenizer says that its tokenizer.json is all of it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        saved = json.loads(read_regular(Path(path) / "tokenizer_config.json", LARGEST_CONFIG))
        whole = saved["tokenizer_class"] == WHOLE_CLASS and "auto_map" not in saved
    except (OSError, ValueError, KeyError, TypeError):
        whole = False  # not there or not readable, which transformers will say
    kind = PreTrainedTokenizerFast if whole and (Path(path) / "tokenizer.json").is_file() else AutoTokenizer
    check_hub(path)
    return kind.from_pretrained(path, trust_remote_code=trust_remote_code)


def check_tokenizer(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The tokenizer, if responses can end with it. Raises ModelError if it has no EOS; name: for the message."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f'"{name}": the tokenizer has no EOS token, so no response could end; set eos_token in its'
            " tokenizer_config.json"
        )
    return tokenizer


def different_tokens(other: Tokenizer, own: Tokenizer, whose: str, may_have_more: bool = False) -> str:
    """The first id that stands for another token in two vocabularies, in words; "": none does.

    Args:
        other: The tokenizer that is spoken of as "its".
        own: The one that it is compared with.
        whose: Whose that is, for the words: "the policy's".
        may_have_more: Ids that only `other` has are no difference.
    """
    its, ours = ({id: token for token, id in t.get_vocab().items()} for t in (other, own))
    ids = sorted(ours if may_have_more else its.keys() | ours.keys())
    differ = [id for id in ids if its.get(id) != ours.get(id)]
    if not differ:
        return ""
    first = differ[0]
    here, there = (repr(shown(v[first], 30)) if first in v else "none" for v in (its, ours))
    more = f" ({len(differ)} differ)" if len(differ) > 1 else ""
    return f"its token {first} is {here}, {whose} {there}{more}"


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of the beginning of a text, with what the tokenizer puts first (BOS or nothing).

    An EOS that the tokenizer adds at the end is removed, because the model is to continue the text. A special token
    spelled out in `text` is encoded as that token.
    """
    ids = encode_source(tokenizer, text)
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        plain = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not plain or _trailing(ids, ids[-1]) > _trailing(plain, ids[-1]):
            ids.pop()
    return ids


def encode_source(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a whole text, with what the tokenizer puts first and last (EOS in T5 and BART).

    BOS stands once, also where the text (a rendered conversation, for instance) spells it out at its beginning.
    """
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id else ids


def encode_target(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a decoder's whole output: the text as a target of the tokenizer, ending with EOS."""
    ids = list(tokenizer(text_target=text, verbose=False)["input_ids"])
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def encode_continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that continues another one: no special tokens are added.

    SentencePiece-type tokenizers put a space before every text they encode. To avoid it, the text is encoded after a
    line break, whose tokens are then removed.
    """
    plain = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    alone = _decode_after_text(tokenizer, plain)
    if alone == text:
        return plain
    before = list(tokenizer("\n", add_special_tokens=False, verbose=False)["input_ids"])
    whole = list(tokenizer("\n" + text, add_special_tokens=False, verbose=False)["input_ids"])
    after = whole[len(before) :]
    if whole[: len(before)] != before:
        return plain
    # Old tokenizers put a space behind every special token as well; it is the one at the beginning that must not be.
    found = _decode_after_text(tokenizer, after)
    return after if found == text or len(found) < len(alone) else plain


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole documents: what the tokenizer puts first, the text, EOS.

    Unlike in a prompt, a special token spelled out in a document is encoded as plain text.
    """
    if not texts:
        return []
    first = encode_prompt(tokenizer, "")
    bodies = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [[*first, *body, tokenizer.eos_token_id] for body in bodies["input_ids"]]


def encode_document_parts(tokenizer: Tokenizer, parts: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of one document given in parts: what the tokenizer puts first, each part, EOS."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    yield encode_prompt(tokenizer, "")
    before = None
    for part in parts:
        if before is None:
            before = list(tokenizer("\n", **options)["input_ids"])
            yield list(tokenizer(part, **options)["input_ids"])
            continue
        # After a line break a SentencePiece-type tokenizer puts no space of its own before the part.
        whole = list(tokenizer("\n" + part, **options)["input_ids"])
        exact = whole[: len(before)] == before
        yield whole[len(before) :] if exact else list(tokenizer(part, **options)["input_ids"])
    yield [tokenizer.eos_token_id]


def response_tokens_as_text(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, for display; joined, the pieces read like the response.

    A special token is shown by its name. A token that ends inside a character is shown with � for it, and the
    character is in the piece of the token that completes it.
    """
    pieces = []
    group: list[int] = []  # tokens since the last whole character
    shown = 0  # characters of the group's text that its earlier pieces show
    for token in ids:
        group.append(token)
        text = _decode_after_text(tokenizer, group)
        complete = text.rstrip(INCOMPLETE)
        piece = complete[shown:] if len(group) == 1 else complete[shown:].lstrip(INCOMPLETE)
        pieces.append(piece if text == complete else piece + INCOMPLETE)
        shown = len(complete)
        if text == complete:
            group, shown = [], 0
    return pieces


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of the ids, special tokens included.

    In tokenizers that spell rare characters in bytes (byte fallback), a byte that is in no whole character is a � of
    its own. transformers would show the whole run of bytes around it as �, whole characters included.
    """
    ids = list(ids)
    wrong = _bytes_of_no_character(ids, _byte_values(tokenizer))
    if not wrong:
        return _decoded(tokenizer, ids)
    # What follows such a byte is decoded after an "a" that is spelled in a byte, so that no space is lost.
    anchor = tokenizer.convert_tokens_to_ids("<0x61>")
    pieces = [_decoded(tokenizer, ids[: wrong[0]])]
    for place, end in zip(wrong, [*wrong[1:], len(ids)], strict=True):
        rest = ids[place + 1 : end]
        pieces.append(INCOMPLETE + (_decoded(tokenizer, [anchor, *rest])[1:] if rest else ""))
    return "".join(pieces)


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


_known_bytes: WeakKeyDictionary[Tokenizer, dict[int, int]] = WeakKeyDictionary()


def _byte_values(tokenizer: Tokenizer) -> dict[int, int]:
    """The byte that each byte token (<0x00> … <0xFF>) stands for; empty for a tokenizer without them."""
    if tokenizer not in _known_bytes:
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids = tokenizer.convert_tokens_to_ids(names)
        there = tokenizer.convert_ids_to_tokens(ids) == names if None not in ids else False
        spelled = there and _decoded(tokenizer, [ids[0x41]]) == "A"
        _known_bytes[tokenizer] = {token: byte for byte, token in enumerate(ids)} if spelled else {}
    return _known_bytes[tokenizer]


def _bytes_of_no_character(ids: Sequence[int], values: Mapping[int, int]) -> list[int]:
    """The places of byte tokens that are not part of a whole UTF-8 character."""
    found: list[int] = []
    run = bytearray()
    for place, token in enumerate([*ids, -1] if values else []):
        if token in values:
            run.append(values[token])
            continue
        begin = place - len(run)
        while run:
            try:
                run.decode()
                run.clear()
            except UnicodeDecodeError as error:
                found += range(begin + error.start, begin + error.end)
                del run[: error.end]
                begin += error.end
    return found


def _decode_after_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The ids' text as it reads after other text; without text before it some tokenizers strip its first space."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    return decode(tokenizer, [*anchor, *ids])[len(decode(tokenizer, anchor)) :]


def _trailing(ids: Sequence[int], token: int) -> int:
    """How many times `token` is repeated at the end."""
    return next((n for n, other in enumerate(reversed(ids)) if other != token), len(ids))
