"""Devices by name, and whether a device has instructions for bf16."""

from __future__ import annotations

import torch

from proxlm.text import headline


def resolve_device(name: str) -> torch.device:
    """ "auto": the first GPU if there is one, else the CPU; otherwise that device. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device = "{name}": {headline(error)}') from error
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; without them torch emulates it, far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    # torch has no public way to ask; a build without these functions is taken to have them.
    checks = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(check is None or check() for check in checks)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """What model.precision means on a device; "auto" is bfloat16 where there are instructions for it."""
    return precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))


def lacks_bfloat16(device: str) -> bool:
    """Whether the device of that name has no instructions for bf16; False for a device that does not exist."""
    try:
        return not has_bfloat16(resolve_device(device))
    except ValueError:
        return False
