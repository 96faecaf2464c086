"""bf16 where there are instructions for it, and a note where there are none."""

from __future__ import annotations

import pytest
import torch

from proxlm.config import ModelSettings
from proxlm.jobs.startup import start_job
from proxlm.kernels.device import has_bfloat16, lacks_bfloat16, uses_bfloat16
from small_models import tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("avx512", "amx", "has"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_processor_with_and_without_instructions(
    tokenizer, monkeypatch, capsys, avx512: bool, amx: bool, has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_bfloat16(CPU) == has
    assert lacks_bfloat16("cpu") != has
    assert uses_bfloat16("auto", CPU) == has
    assert uses_bfloat16("bfloat16", CPU)
    assert not uses_bfloat16("float32", CPU)
    assert tiny_model(tokenizer, precision="auto").bfloat16 == has
    assert tiny_model(tokenizer, precision="bfloat16").bfloat16
    for precision in ("bfloat16", "auto", "float32"):
        start_job(model=ModelSettings(precision=precision, device="cpu"))
        said = capsys.readouterr().out
        assert ("torch emulates it, far slower" in said) == (precision == "bfloat16" and not has)


def test_a_device_that_is_not_there_is_for_others_to_name() -> None:
    assert not lacks_bfloat16("nonsense")
