"""Launches of a Triton kernel without Triton's binder, which looks at every argument by name on every call.

Triton compiles a variant of a kernel for each dtype, alignment and constant, and finds it again by binding the
arguments to the signature: 11.6 us for a launch of the forward's kernel, where what is here takes 5.6 (Triton 3.7.1 on
a CPU, without the driver's part). So a variant is remembered by all that ours depend on, and launched as in Triton's
tutorial on the fused softmax. Relied on, in Triton 3.6.0 and 3.7.1 alike, and held by tests/kernels/test_launcher.py:

- ``kernel[grid](...)`` returns a ``triton.compiler.CompiledKernel``; what it returns else, as in the interpreter, is
  not remembered;
- ``compiled[grid](*arguments)``, with three sizes of the grid and every argument in its place, constants too, launches
  on the current stream and calls the launch hooks;
- a variant depends on the dtypes of pointers and on whether they are multiples of 16, on whether integers named in
  ``do_not_specialize`` fit 32 bits, on constants, options and the device.

Knobs of Triton that change how a kernel is compiled have to be set before its first launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel

ALIGNMENT = 16  # bytes
INT32 = 2**31

_variants: dict[tuple[object, ...], CompiledKernel] = {}


def launch(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor | None],
    integers: Sequence[int],
    constants: Sequence[object],
    **options: object,
) -> None:
    """Run ``kernel[(programs,)](*tensors, *integers, *constants, **options)`` on the current device and stream.

    ``integers``, none of them negative, are the kernel's ``do_not_specialize``, ``constants`` its ``tl.constexpr``;
    ``options`` are Triton's (``num_warps`` ...).
    """
    addresses = 0
    dtypes: list[torch.dtype | None] = []
    for tensor in tensors:
        if tensor is None:
            dtypes.append(None)
        else:
            addresses |= tensor.data_ptr()
            dtypes.append(tensor.dtype)
    usual = addresses % ALIGNMENT == 0 and max(integers) < INT32
    # id: a remembered variant keeps its kernel alive, and hashing a kernel is slow.
    key = (id(kernel), _current_device(), *dtypes, *constants, *options.items())
    variant = _variants.get(key) if usual else None
    if variant is not None:
        variant[programs, 1, 1](*tensors, *integers, *constants)
        return
    compiled = kernel[(programs,)](*tensors, *integers, *constants, **options)
    if usual and isinstance(compiled, CompiledKernel):
        _variants[key] = compiled


def _current_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else -1  # type: ignore[no-untyped-call]


__all__ = ["launch"]
