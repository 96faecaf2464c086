"""The library prints no bars and no warnings of transformers and PEFT that tell a user nothing; others stay."""

from __future__ import annotations

import warnings

import peft
import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

import proxlm
from proxlm.models.adapters import add_adapter_set
from proxlm.models.quiet import without_known_warnings, without_progress_bars
from proxlm.models.save import save_language_model
from small_models import tiny_model


@pytest.fixture
def bars():
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()


@pytest.mark.usefixtures("bars")
def test_loading_and_saving_draw_no_bars(tokenizer, tmp_path, capfd):
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    proxlm.save(proxlm.load_model(tmp_path / "model"), tmp_path / "again")
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with without_progress_bars():
        pass
    assert not logging.is_progress_bar_enabled()


@pytest.mark.usefixtures("bars")
def test_bars_of_downloads_stay():
    with without_progress_bars():
        assert not logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()


@pytest.mark.filterwarnings("error")
def test_adapters_warn_of_nothing(tokenizer, tmp_path):
    save_language_model(tiny_model(tokenizer), tmp_path / "base")
    lora = proxlm.LoraSettings(rank=2)
    settings = proxlm.ModelSettings(policy=str(tmp_path / "base"), lora=lora)
    model = proxlm.load_model(tmp_path / "base", settings)
    add_adapter_set(model, "critic", copied=False)
    with warnings.catch_warnings():  # a user's own call of PEFT
        warnings.simplefilter("ignore")
        model.adapters.save_pretrained(tmp_path / "adapter", selected_adapters=["default"])
    proxlm.save(model, tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "adapter")
    proxlm.load_model(tmp_path / "adapter")
    proxlm.load_model(tmp_path / "adapter", proxlm.ModelSettings(lora=lora))


def test_other_warnings_are_shown():
    with pytest.warns(UserWarning, match="something else"), without_known_warnings():
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert peft.__version__
