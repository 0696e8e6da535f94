"""Which register of which thread holds an element: the Gluon part of the small-batch kernel.

Gluon is Triton's language with explicit layouts, and has no interpreter: in Triton's interpreter, the names below that
kernels call are plain Triton, where layouts mean nothing.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.runtime.jit import constexpr_function

WARP = 32
VECTOR = 8  # 16-bit elements in a load of 16 bytes


@constexpr_function
def operand_layout(index, split):
    """Left (0) or right (1) operand of (split, M, K) x (split, K, N), one warp for each of ``split``."""
    return gl.DotOperandLayout(index, gl.NVMMADistributedLayout([2, 0], [split, 1, 1], [1, 16, 8]), 2)


@constexpr_function
def exchange_layout(split, block_h, block_b):
    """(split, 4 * block_h, block_b), each thread with all of ``split`` and the four gates of its units."""

    def axis(k, size):
        return [[size >> (n + 1) if j == k else 0 for j in range(3)] for n in reversed(range(size.bit_length() - 1))]

    gates = [[0, block_h, 0], [0, 2 * block_h, 0]]
    units_by_sequences = axis(1, block_h) + axis(2, block_b)
    bits = (WARP * split).bit_length() - 1
    threads = (units_by_sequences + [[0, 0, 0]] * bits)[:bits]
    registers = axis(0, split) + gates + units_by_sequences[bits:]
    return gl.DistributedLinearLayout(registers, threads[:5], threads[5:], [], [split, 4 * block_h, block_b])


@constexpr_function
def sum_layout(layout):
    """Layout of a sum over the first axis."""
    return gl.SliceLayout(0, layout)


@constexpr_function
def _axis_layout(axis, layout):
    """Layout of a vector that is to be broadcast along every other axis, those in front first."""
    for other in reversed([k for k in range(layout.rank) if k != axis]):
        layout = gl.SliceLayout(other, layout)
    return layout


@constexpr_function
def _parent(layout):
    return layout.parent


@constexpr_function
def _vectors(shape, layout):
    """Loads of 16 bytes by which a thread fetches its part of an operand."""
    return shape[0] * shape[1] * shape[2] // (layout.parent.warps_per_cta[0] * WARP * VECTOR)


@constexpr_function
def _poll(vectors, peek):
    """PTX: fetch ``vectors`` times 8 elements, those with 0xFFFF among them again and again if the flag is set.

    With ``peek``, the others are asked for only when the first are there, which is less traffic but another trip.
    """
    words = [[f"${4 * v + w}" for w in range(4)] for v in range(vectors)]
    pointers = [f"${4 * vectors + VECTOR * v}" for v in range(vectors)]
    flag = f"${(4 + VECTOR) * vectors}"
    lines = [".reg .pred waiting, any;", f".reg .pred missing<{vectors}>;", ".reg .b32 m, n;"]
    lines += [f"setp.ne.b32 waiting, {flag}, 0;", *(f"setp.eq.b32 missing{v}, 0, 0;" for v in range(vectors))]
    fetch, check = [], []
    for v in range(vectors):
        a, b, c, d = words[v]
        # Relaxed loads come from L2, where other programs write; those of one vector not there yet are asked for again.
        fetch.append(f"@missing{v} ld.relaxed.gpu.global.v4.b32 {{{a}, {b}, {c}, {d}}}, [{pointers[v]}];")
        # The greatest of eight is 0xFFFF if any is; then a half of it has no zero bit.
        check.append(f"max.u16x2 m, {a}, {b}; max.u16x2 n, {c}, {d}; max.u16x2 m, m, n;")
        some = "not.b32 n, m; sub.u32 n, n, 0x00010001; and.b32 n, n, m; and.b32 n, n, 0x80008000;"
        check[v] += f" {some} setp.ne.and.b32 missing{v}, n, 0, waiting;"
    if peek:
        lines += ["PEEK:", fetch[0], check[0], "@missing0 bra PEEK;"]
    lines += ["POLL:", *fetch, *check, "mov.pred any, missing0;"]
    lines += [f"or.pred any, any, missing{v};" for v in range(1, vectors)]
    lines += ["@any bra POLL;", "bar.warp.sync 0xffffffff;"]
    return "\n".join(["{", *lines, "}"])


@constexpr_function
def _poll_constraints(vectors):
    return ",".join(["=&r"] * (4 * vectors) + ["l"] * (VECTOR * vectors) + ["r"] * (VECTOR * vectors))


if knobs.runtime.interpret:
    jit = triton.jit

    @jit
    def arange(size: tl.constexpr, axis: tl.constexpr, layout: tl.constexpr):
        return tl.arange(0, size)

    @jit
    def convert(x, layout: tl.constexpr):
        return x

    @jit
    def product(a, b):
        return tl.dot(a, b)

    @jit
    def load_published(pointers, waiting, PEEK: tl.constexpr):
        return tl.load(pointers)

else:
    jit = gluon.jit

    @jit
    def arange(size: gl.constexpr, axis: gl.constexpr, layout: gl.constexpr):
        """0 to size - 1 for one axis of a tensor with ``layout``."""
        return gl.arange(0, size, layout=_axis_layout(axis, layout))

    @jit
    def convert(x, layout: gl.constexpr):
        return gl.convert_layout(x, layout)

    @jit
    def product(a, b):
        """a b in float32, for operands with ``operand_layout``."""
        layout: gl.constexpr = _parent(a.type.layout)
        return mma_v2(a, b, gl.full((a.shape[0], a.shape[1], b.shape[2]), 0.0, gl.float32, layout=layout))

    @jit
    def load_published(pointers, waiting, PEEK: tl.constexpr):
        """16-bit elements that other programs may still be writing; if ``waiting``, none is 0xFFFF when this returns.

        ``pointers`` have the layout of a right operand, 8 in a row of a thread 16 contiguous bytes.
        """
        vectors: gl.constexpr = _vectors(pointers.shape, pointers.type.layout)
        return gl.inline_asm_elementwise(
            _poll(vectors, PEEK),
            _poll_constraints(vectors),
            [pointers, waiting.to(gl.int32)],
            dtype=pointers.dtype.element_ty,
            is_pure=False,
            pack=8 * vectors,
        )
