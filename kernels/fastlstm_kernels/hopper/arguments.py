"""The kernels' argument structures, field by field as in forward.cu and backward.cu."""

from __future__ import annotations

import ctypes
from typing import Any

ALIGNMENT = 64  # of a tensor map, and so of the structures


class TensorMapBytes(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint64 * 16),)


def _structure(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    size = sum(ctypes.sizeof(kind) for _, kind in fields)
    padding = ("padding", ctypes.c_uint8 * (-size % ALIGNMENT or ALIGNMENT))
    return type(name, (ctypes.Structure,), {"_fields_": (*fields, padding)})


POINTER, INT = ctypes.c_uint64, ctypes.c_int32

ForwardArguments = _structure(
    "ForwardArguments",
    ("map", TensorMapBytes),
    ("out", TensorMapBytes),
    *((name, POINTER) for name in ("weight", "inputs", "ids", "resets", "c0", "gates", "cells", "c_n")),
    *((name, POINTER) for name in ("flags", "status")),
    *((name, INT) for name in ("cells_kind", "T", "B", "begin", "end")),
)
BackwardArguments = _structure(
    "BackwardArguments",
    ("map", TensorMapBytes),
    *((name, POINTER) for name in ("weight", "gates", "cells", "c0", "dh", "dc", "dc_n", "resets")),
    *((name, POINTER) for name in ("dc0", "partials", "flags", "status")),
    *((name, INT) for name in ("T", "B", "begin", "end")),
)
