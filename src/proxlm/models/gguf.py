"""Models in GGUF files: made once into a folder of float32 safetensors, which is loaded like every other.

transformers reads the file and turns its blocks of few bits into numbers; the folder holds exactly these. It lies in
the user's cache under the hash of the file, so a file that is moved or copied is not read again, and one that changes
is.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from proxlm.checkpoint.write import give_mode_of, sync_tree
from proxlm.config.gguf_paths import gguf_file, is_gguf
from proxlm.config.paths import home_expanded
from proxlm.errors import ConfigError, ModelError, UserError
from proxlm.files import open_regular
from proxlm.models.gguf_header import GgufHeader, read_header
from proxlm.models.save import no_progress_bars
from proxlm.models.weights import check_names
from proxlm.system_errors import cannot_write, system_error
from proxlm.text import reason_of, shown, system_reason

# Part of the folder's name: what this module makes of a file.
_FORMAT = 2
_ADVICE = 'model.policy: a GGUF file needs the packages gguf and accelerate: pip install "proxlm[gguf]"'
_WRITING = ".writing-"
_A_DAY = 86_400.0
# Tensors that transformers passes over although they change what the model computes.
_UNREAD = {"rope_freqs.weight": "it stretches the rotary positions (Llama 3.1 and later)"}

# llama.cpp's names of ways to split text before merging: GPT-2's, and GPT-2's with every digit alone. transformers
# knows others, and would take GPT-2's for these and for every name that it does not know.
_GPT2_SPLITS = ("", "default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion")
_DIGIT_SPLITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")

# Every file has one of them, without which transformers takes a default that may not be the model's.
_EPSILONS = ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon")


def imported(policy: str) -> str:
    """The folder that the model of a GGUF file is in, made if it is not there; any other model's name as it is.

    Args:
        policy: The setting model.policy.

    Raises:
        ConfigError: The packages for it are not installed, or the package that is to carry the file.
        ModelError: The file is none, damaged, or of a model that transformers cannot read from GGUF.
        RunError: The cache cannot be written.
    """
    if not is_gguf(policy):
        return policy
    file, what = gguf_file(policy), f'model.policy = "{shown(policy, 120)}"'
    try:
        stamp = _stamp(file)
        digest = _digest(file, stamp)
    except (OSError, ValueError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else reason_of(error)
        raise ModelError(f"{what}: cannot be read: {reason}") from error
    folder = cache_folder() / f"{digest[:40]}-{_FORMAT}-transformers-{version('transformers')}"
    if folder.is_dir():
        return str(folder)
    header = read_header(file, _block_sizes())
    print(f"importing {file.name} into {folder} (once) …", flush=True)
    try:
        with _made(folder) as temporary:
            _convert(file, header, what, temporary)
            if _stamp(file) != stamp:
                raise ModelError(f"{what}: the file changed while it was read; start again")
    except OSError as error:
        raise cannot_write(folder, error, "the imported model") from error
    return str(folder)


def cache_folder() -> Path:
    """Where imported models are: proxlm/gguf in $XDG_CACHE_HOME, or in ~/.cache. Raises ConfigError."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, says the XDG specification.
    return Path(base if os.path.isabs(base) else home_expanded("~/.cache"), "proxlm", "gguf")


def _stamp(file: Path) -> tuple[int, ...]:
    with open_regular(file) as opened:
        facts = os.fstat(opened.fileno())
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


@functools.lru_cache(maxsize=16)
def _digest(file: Path, stamp: tuple[int, ...]) -> str:  # noqa: ARG001 (a changed file is hashed again)
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Elements and bytes of a block by the number of its kind. Raises ConfigError."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise ConfigError(_ADVICE) from error
    if find_spec("accelerate") is None:  # transformers asks for it
        raise ConfigError(_ADVICE)
    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when all is written; several processes may do so at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{_WRITING}*"):  # of a process that was killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _A_DAY:
                shutil.rmtree(left)
    temporary = Path(tempfile.mkdtemp(prefix=_WRITING, dir=folder.parent))
    try:
        yield temporary
        give_mode_of(temporary / "config.json", temporary)
        sync_tree(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(file: Path, header: GgufHeader, what: str, folder: Path) -> None:
    """Write the model and the tokenizer of a file whose header has been checked. Raises ModelError, OSError."""
    with tempfile.TemporaryDirectory() as alone:
        # transformers also looks at what lies beside the file: here nothing does.
        (Path(alone) / "model.gguf").symlink_to(file.resolve())
        try:
            # One of its bars cannot be switched off.
            with no_progress_bars(), redirect_stderr(io.StringIO()):
                _read(alone, header, what).save_pretrained(folder)
                _tokenizer(alone, header, what).save_pretrained(folder)
        except UserError:
            raise
        except Exception as error:  # what the settings of a file lead to: KeyError, ZeroDivisionError, …
            if isinstance(error, OSError) and system_error(error) is not None:
                raise
            kind = shown(str(header.settings.get("general.architecture", "unknown")), 30)
            reason = reason_of(error, 120)
            raise ModelError(
                f"{what}: transformers cannot read this {kind} model: {type(error).__name__}: {reason}"
            ) from error


def _read(folder: str, header: GgufHeader, what: str) -> Any:
    """The network in float32, with every tensor of the file and no other."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf")
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    _check_size(kind, config, header, what)
    network, info = kind.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.float32, output_loading_info=True, **_dequantised()
    )
    check_names(
        what,
        type(network).__name__,
        missing=info["missing_keys"],
        unexpected=info["unexpected_keys"],
        shapes=info["mismatched_keys"],
        advice="the file is not whole",
    )
    for name in ("quantization_config", "_model_name_or_path"):
        vars(network.config).pop(name, None)
    network.hf_quantizer = None  # or it could not be saved
    return network


def _dequantised() -> dict[str, Any]:
    """The argument by which newer versions of transformers give numbers instead of packed blocks."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _check_size(kind: Any, config: Any, header: GgufHeader, what: str) -> None:
    """Raise ModelError unless the settings describe a model of just the tensors' size; it takes no memory."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > len(header.tensors):
        raise ModelError(
            f"{what}: damaged: {shown(str(layers), 30)} layers in {len(header.tensors)} tensors; download it again"
        )
    kind_name = header.settings.get("general.architecture")
    if not any(f"{kind_name}.attention.{name}" in header.settings for name in _EPSILONS):
        raise ModelError(f"{what}: damaged: it names no epsilon of its norms; download it again")
    for name, why in _UNREAD.items():
        if name in header.tensors:
            raise ModelError(
                f"{what}: transformers does not read its tensor {name}: {why}; use its safetensors"
            )
    with torch.device("meta"):
        network = kind.from_config(config)
    needed = sum(p.numel() for p in network.parameters())
    if needed != header.elements:
        raise ModelError(
            f"{what}: its settings describe a model of {needed:,} weights, its tensors hold {header.elements:,}:"
            " damaged, or not read whole by transformers; use the model's safetensors"
        )


def _tokenizer(folder: str, header: GgufHeader, what: str) -> Any:
    """The tokenizer, with the file's tokens and no other."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    _split_as_the_file_says(tokenizer, header, what)
    count = header.settings.get("tokenizer.ggml.tokens", 0)
    if max(tokenizer.get_vocab().values(), default=-1) >= count:
        tokenizer = _without_others(tokenizer, count)
    for name in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _split_as_the_file_says(tokenizer: Any, header: GgufHeader, what: str) -> None:
    """Give a byte-level tokenizer the file's way of splitting where transformers has not. Raises ModelError."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    name = str(header.settings.get("tokenizer.ggml.pre", ""))
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, ByteLevel) or name in _GPT2_SPLITS:
        return
    if name not in _DIGIT_SPLITS:
        raise ModelError(
            f'{what}: its tokenizer splits text the way "{shown(name, 40)}", which cannot be read from GGUF; use the'
            " folder of its safetensors and tokenizer.json"
        )
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _without_others(tokenizer: Any, count: int) -> Any:
    """The tokenizer without what transformers adds beyond the file's tokens: a <|endoftext|>, for instance.

    The model has no embedding for it.
    """
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < count]
    if state["model"].get("unk_token") not in state["model"]["vocab"]:
        state["model"]["unk_token"] = None
    special = {
        name: token
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (token := getattr(tokenizer, name)) is not None and tokenizer.convert_tokens_to_ids(token) < count
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(state)), chat_template=tokenizer.chat_template, **special
    )
