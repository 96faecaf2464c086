"""bf16 products on a processor that has no instructions for them.

Such instructions take inputs in bf16, multiply and add up in float32, and round the result once. Without them torch's
own kernels take a hundred times as long as its float32 products. So the kernels of the products are replaced, for the
process: inputs in bf16 are widened to float32, go through the float32 kernel, and the result is rounded. That covers
every pass of every model, forward and back. What is in another dtype goes where it went before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from proxlm.kernels.device import can_widen, has_bfloat16

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


def widens(device: torch.device) -> bool:
    """Whether bf16 products on this device are float32 products of bf16 inputs."""
    return device.type == "cpu" and can_widen() and not has_bfloat16(device)


def rounded(x: Tensor) -> Tensor:
    """x rounded to bf16, as float32."""
    return x.bfloat16().float()


@cache
def widen_products() -> torch.library.Library:
    """Replace the CPU kernels of the matrix products and of attention, once for the process."""
    library = torch.library.Library("aten", "IMPL")
    replaced = {name: _product(_kernel(name)) for name in PRODUCTS}
    for name in PRODUCTS:
        replaced[f"{name}.out"] = _into_out(_kernel(f"{name}.out"), _kernel(name))
    for name in ("addmm", "baddbmm"):
        replaced[f"{name}_"] = _in_place(_kernel(f"{name}_"), _kernel(name))
    replaced[ATTENTION] = _attention(_kernel(ATTENTION))
    replaced[f"{ATTENTION}_backward"] = _attention_backward(_kernel(f"{ATTENTION}_backward"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*overrid")
        for name, kernel in replaced.items():
            library.impl(name, kernel, "CPU", with_keyset=True)
    return library


# What is called in place of a kernel: the dispatcher's keys, then what the operation takes.
Kernel = Callable[..., Any]


def _kernel(name: str) -> Kernel:
    """torch's own, as it is before it is replaced."""
    call: Kernel = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
    return call


def wide(value: Any) -> Any:
    """A bf16 tensor as float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _widely(kernel: Kernel, keys: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return kernel(keys, *map(wide, given), **{name: wide(value) for name, value in options.items()})


def _is_bfloat16(*factors: Tensor) -> bool:
    """Mixed dtypes are for torch's own kernel to refuse."""
    return all(factor.dtype == torch.bfloat16 for factor in factors)


def _product(kernel: Kernel) -> Kernel:
    def call(keys: Any, *given: Tensor, **options: Any) -> Any:
        if not _is_bfloat16(*given):
            return kernel(keys, *given, **options)
        return _widely(kernel, keys, given, options).bfloat16()

    return call


def _in_place(kernel: Kernel, making: Kernel) -> Kernel:
    def call(keys: Any, own: Tensor, *given: Tensor, **options: Any) -> Any:
        if not _is_bfloat16(own, *given):
            return kernel(keys, own, *given, **options)
        return own.copy_(_widely(making, keys, (own, *given), options))

    return call


def _into_out(kernel: Kernel, making: Kernel) -> Kernel:
    def call(keys: Any, *given: Tensor, out: Tensor, **options: Any) -> Any:
        if not _is_bfloat16(out, *given):
            return kernel(keys, *given, out=out, **options)
        found = _widely(making, keys, given, options)
        return out.resize_(found.shape).copy_(found)

    return call


def _attention(kernel: Kernel) -> Kernel:
    def call(keys: Any, q: Tensor, *given: Any, **options: Any) -> Any:
        if not _is_bfloat16(q):
            return kernel(keys, q, *given, **options)
        attended, log_sums = _widely(kernel, keys, (q, *given), options)
        return attended.bfloat16(), log_sums  # the kernel's log-sums are float32 whatever the inputs are

    return call


def _attention_backward(kernel: Kernel) -> Kernel:
    def call(keys: Any, given: Tensor, *kept: Any, **options: Any) -> Any:
        if not _is_bfloat16(given):
            return kernel(keys, given, *kept, **options)
        return tuple(part.bfloat16() for part in _widely(kernel, keys, (given, *kept), options))

    return call
