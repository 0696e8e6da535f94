"""Launches of a Triton kernel without Triton's binder, which looks at every argument by name on every call.

Triton compiles a variant of a kernel for each dtype, alignment and constant, and finds it again by binding the
arguments to the signature: 12.0 us for a launch of the forward's kernel, where what is here takes 4.7 (Triton 3.6.0 and
3.7.1 on a CPU, without the driver's part). So a variant is remembered by all that ours depend on, and launched as
torch.compile's own launcher does. Relied on, in Triton 3.6.0 and 3.7.1 alike, and held by
tests/kernels/test_launcher.py:

- ``kernel[grid](...)`` returns a ``triton.compiler.CompiledKernel``; what it returns else, as in the interpreter, is
  not remembered;
- its ``run`` takes three sizes of the grid, the stream, ``function``, ``packed_metadata``, metadata and two hooks
  or None, and every argument in its place, constants too; an address for a pointer is not looked at;
- a variant depends on the dtypes of pointers and on whether they are multiples of 16, on whether integers named in
  ``do_not_specialize`` fit 32 bits, on constants, options and the device;
- ``knobs.runtime`` has the launch hooks; while there are any, Triton launches by itself.

Knobs of Triton that change how a kernel is compiled have to be set before its first launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.knobs import runtime
from triton.runtime import driver

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
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1  # type: ignore[no-untyped-call]
    usual, bits = max(integers, default=0) < INT32, 0
    addresses: list[int | None] = []
    dtypes: list[torch.dtype | None] = []
    for tensor in tensors:
        if tensor is None:
            addresses.append(None)
            dtypes.append(None)
        else:
            address = tensor.data_ptr()
            bits |= address
            addresses.append(address)
            dtypes.append(tensor.dtype)
            if tensor.get_device() != device:
                usual = False  # Triton looks whether the kernel can reach it
    usual = usual and bits % ALIGNMENT == 0
    # id: a remembered variant keeps its kernel alive, and hashing a kernel is slow.
    key = (id(kernel), device, *dtypes, *constants, *options.items())
    variant = _variants.get(key) if usual else None
    if variant is not None and not (runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls):
        stream = driver.active.get_current_stream(device)
        identity = (variant.function, variant.packed_metadata)
        variant.run(programs, 1, 1, stream, *identity, None, None, None, *addresses, *integers, *constants)
        return
    compiled = kernel[(programs,)](*tensors, *integers, *constants, **options)
    if usual and isinstance(compiled, CompiledKernel):
        _variants[key] = compiled


__all__ = ["launch"]
