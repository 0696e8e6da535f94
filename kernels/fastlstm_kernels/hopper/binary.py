"""The kernels' machine code: shipped with the package, or compiled by NVRTC and kept on disk.

``python -m fastlstm_kernels.hopper.binary`` (make cubins) compiles what is shipped with nvcc, and writes what a test
can hold it to: a hash of the sources, the compiler's version, and ptxas's figures of every kernel.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch

from fastlstm_kernels.hopper.plans import COMPILED_SIZES

FOLDER = Path(__file__).parent
CUBINS = FOLDER / "cubins"
MANIFEST = CUBINS / "manifest.json"
DIRECTIONS = ("forward", "backward")
HEADERS = ("resident.cuh", "primitives.cuh")
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
ARCHITECTURE = "sm_90a"
CACHE = "FASTLSTM_CACHE"
SECTION, SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")  # of an ELF file
SYMBOL_TABLE = 2
SHARED = "_shared"


def source_hash(direction: str) -> str:
    """SHA-256 of a kernel's source and of what it includes."""
    digest = hashlib.sha256()
    for name in (f"{direction}.cu", *HEADERS):
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()


def definitions(H: int, dtype: torch.dtype) -> list[str]:
    return [f"-DHIDDEN={H}", f"-DELEMENT_FP16={int(dtype == torch.float16)}"]


def file_name(direction: str, H: int, dtype: torch.dtype) -> str:
    return f"{direction}-{H}-{DTYPES[dtype]}.cubin.xz"


@functools.cache
def shipped(direction: str, H: int, dtype: torch.dtype) -> bytes | None:
    """A module's machine code as it came with the package; None where it did not, or was made from other sources."""
    path = CUBINS / file_name(direction, H, dtype)
    if not path.exists() or manifest()["sources"].get(direction) != source_hash(direction):
        return None
    return lzma.decompress(path.read_bytes())


@functools.cache
def manifest() -> dict[str, Any]:
    if not MANIFEST.exists():
        return {"sources": {}}
    loaded: dict[str, Any] = json.loads(MANIFEST.read_text())
    return loaded


def shared_memory(code: bytes) -> dict[str, int]:
    """Bytes of shared memory that a block of each kernel of a module needs, which the sources leave as NAME_shared.

    Read from the ELF file (64-bit, little-endian): what a loaded module holds cannot be while a graph is captured.
    """
    (table,) = struct.unpack_from("<Q", code, 0x28)
    (count,) = struct.unpack_from("<H", code, 0x3C)
    sections = [SECTION.unpack_from(code, table + i * SECTION.size) for i in range(count)]

    def name(strings: int, offset: int) -> str:
        start = sections[strings][4] + offset
        return code[start : code.index(b"\0", start)].decode()

    found = {}
    for _, kind, _, _, begin, size, strings, *_ in sections:
        if kind != SYMBOL_TABLE:
            continue
        for name_at, _, _, section, value, _ in SYMBOL.iter_unpack(code[begin : begin + size]):
            symbol = name(strings, name_at)
            if symbol.endswith(SHARED) and 0 < section < count:
                _, _, _, address, offset, *_ = sections[section]
                (found[symbol.removesuffix(SHARED)],) = struct.unpack_from("<i", code, offset + value - address)
    return found


def cache_folder() -> Path:
    """Where NVRTC's output is kept: $FASTLSTM_CACHE, else fastlstm in the user's cache folder.

    Raises ``RuntimeError`` where a user without a home has neither.
    """
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastlstm"


@functools.cache
def compiled(direction: str, H: int, dtype: torch.dtype) -> bytes:
    """A module's machine code by NVRTC, or as an earlier process kept it. Raises ``RuntimeError`` without NVRTC."""
    try:
        from cuda.bindings import nvrtc

        version = ".".join(str(part) for part in nvrtc.nvrtcVersion()[1:])
    except Exception as error:  # no bindings, or bindings that find no NVRTC, which say so with a type of their own
        raise RuntimeError(f"NVRTC cannot compile {direction}.cu for H = {H}: {error}") from error
    options = [*definitions(H, dtype), f"--gpu-architecture={ARCHITECTURE}", "-std=c++17", "-default-device"]
    made_of = hashlib.sha256("\0".join((source_hash(direction), version, *options)).encode()).hexdigest()
    name = f"{made_of[:16]}-{file_name(direction, H, dtype)}"
    kept = _kept(name)
    if kept is None:
        kept = _nvrtc(nvrtc, direction, options)
        _keep(name, kept)
    return kept


def _kept(name: str) -> bytes | None:
    try:
        return lzma.decompress((cache_folder() / name).read_bytes())
    except (OSError, RuntimeError, EOFError, lzma.LZMAError):
        return None  # not there, or not whole


def _keep(name: str, code: bytes) -> None:
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{name}.{uuid.uuid4().hex}"
        try:
            with beside.open("xb") as file:
                file.write(lzma.compress(code))
            beside.replace(folder / name)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        pass  # a cache that cannot be written costs a second a process


def _nvrtc(nvrtc: Any, direction: str, options: list[str]) -> bytes:
    def checked(result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            raise RuntimeError(f"NVRTC: {result[0].name}")
        return result[1] if len(result) > 1 else None

    source = (FOLDER / f"{direction}.cu").read_bytes()
    headers = [(FOLDER / name).read_bytes() for name in HEADERS]
    names = [name.encode() for name in HEADERS]
    program = checked(nvrtc.nvrtcCreateProgram(source, f"{direction}.cu".encode(), len(headers), headers, names))
    result = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(result[0]) != 0:
        log = bytes(checked(nvrtc.nvrtcGetProgramLogSize(program)))
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"NVRTC: {result[0].name}\n{log.decode(errors='replace')}")
    made = bytes(checked(nvrtc.nvrtcGetCUBINSize(program)))
    checked(nvrtc.nvrtcGetCUBIN(program, made))
    checked(nvrtc.nvrtcDestroyProgram(program))
    return made


def ptxas_figures(report: str) -> dict[str, dict[str, int]]:
    """Registers, spilled bytes and stack of every kernel from what ``ptxas -v`` says.

    ``serialized``: whether ptxas gave up running wgmma instructions one after the other without waiting (C7510 and up).
    """
    figures: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = match[1]
            figures[kernel] = {"serialized": int(bool(re.search(rf"serialized .*function '{kernel}'", report)))}
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            figures[kernel] |= dict(
                zip(("stack", "spill_stores", "spill_loads"), map(int, match.groups()), strict=True)
            )
        elif match := re.search(r"Used (\d+) registers", line):
            figures[kernel]["registers"] = int(match[1])
    return figures


def build() -> None:
    """Compile what is shipped with nvcc from the PATH."""
    CUBINS.mkdir(exist_ok=True)
    version = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    figures: dict[str, dict[str, dict[str, int]]] = {}
    for direction in DIRECTIONS:
        for H in COMPILED_SIZES:
            for dtype in DTYPES:
                name = file_name(direction, H, dtype)
                target = f"-gencode=arch=compute_90a,code={ARCHITECTURE}"
                command = ["nvcc", target, "-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", *definitions(H, dtype)]
                with tempfile.NamedTemporaryFile() as made:
                    command += ["-o", made.name, str(FOLDER / f"{direction}.cu")]
                    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
                    (CUBINS / name).write_bytes(lzma.compress(Path(made.name).read_bytes()))
                figures[name] = ptxas_figures(report)
                sys.stdout.write(f"{name}\n")
    about = {
        "compiler": version.splitlines()[-1],
        "sources": {direction: source_hash(direction) for direction in DIRECTIONS},
        "kernels": figures,
    }
    MANIFEST.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    build()
