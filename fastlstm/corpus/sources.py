"""Text files as they are published (plain, gzip, Zstandard), read as blocks of whole lines, never whole."""

from __future__ import annotations

import gzip
import io
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastlstm.corpus.manifest import MANIFEST, UNFINISHED
from fastlstm.errors import InputError

_log = logging.getLogger(__name__)

COMPRESSIONS = ("", ".gz", ".zst")
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_MAX_WINDOW = 2**27  # archives made with `zstd --long=27` need this much to be read
_READ_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 28


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of one file. data: their bytes, line ends included; first_line counts from 1."""

    path: Path
    first_line: int
    data: bytes


def find_sources(given: Sequence[Path], endings: Sequence[str], out: Path) -> list[Path]:
    """The files to read: those named, and those with one of the endings inside folders named (recursive,
    sorted), but nothing in ``out`` and in corpora, finished or not.

    endings: such as ".jsonl"; each also with .gz or .zst after it. Raises InputError for a path that does not
    exist, a file with another ending, or a folder that holds no file with one of them.
    """
    accepted = tuple(ending + compression for ending in endings for compression in COMPRESSIONS)
    expected = f"{', '.join(endings)}, also with .gz or .zst after it"
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in _files_below(path, out) if p.name.lower().endswith(accepted) and p.is_file())
            if not inside:
                raise InputError(f"{path}: no file in this folder, outside corpora, ends in {expected}")
            found += inside
        elif not path.is_file():
            raise InputError(f"{path}: no such file or folder")
        elif not path.name.lower().endswith(accepted):
            raise InputError(f"{path}: unknown ending, expected {expected}")
        else:
            found.append(path)
    if len(set(found)) != len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise InputError(f"{twice}: given twice")
    return found


def _files_below(folder: Path, out: Path) -> Iterator[Path]:
    out = out.resolve()
    for parent, folders, names in os.walk(folder):
        path = Path(parent)
        if path.resolve() == out:
            folders.clear()
        elif corpus := {MANIFEST, UNFINISHED}.intersection(names):
            folders.clear()
            _log.warning("%s: not read, it is a corpus (holds %s)", path, corpus.pop())
        else:
            yield from (path / name for name in names)


def line_blocks(path: Path, on_read: Callable[[int], object] | None = None) -> Iterator[LineBlock]:
    """The lines of a file in blocks of about 1 MiB (more where one line is longer), in order.

    Compression is told by the first bytes, not by the name. on_read is called with the number of bytes
    just read from disk. The blocks depend on the text alone. Raises InputError naming the file if an
    archive is truncated or damaged, or a line is longer than 256 MiB.
    """
    rest = bytearray()
    line = 1
    with path.open("rb") as file:
        magic = file.read(4)
    with _CountedFile(path, on_read) as file:
        for chunk in _decompressed(path, file, magic):
            rest += chunk
            if len(rest) < _BLOCK_BYTES:
                continue
            end = rest.rfind(b"\n", len(rest) - len(chunk)) + 1
            if end:
                block = LineBlock(path, line, bytes(rest[:end]))
                line += block.data.count(b"\n")
                del rest[:end]
                yield block
            elif len(rest) > _MAX_LINE_BYTES:
                raise InputError(f"{path}: line {line} is longer than {_MAX_LINE_BYTES >> 20} MiB: not a text of lines")
    if rest:
        yield LineBlock(path, line, bytes(rest))


def _decompressed(path: Path, file: _CountedFile, magic: bytes) -> Iterator[bytes]:
    if magic.startswith(_GZIP_MAGIC):
        try:
            with gzip.GzipFile(mode="rb", fileobj=file) as archive:
                while chunk := archive.read(_READ_BYTES):
                    yield chunk
        except EOFError:
            raise InputError(f"{path}: the gzip archive ends too early: truncated, fetch it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: damaged gzip archive ({error})") from None
    elif magic == _ZSTD_MAGIC:
        yield from _decompressed_zstd(path, file)
    else:
        if path.name.lower().endswith(COMPRESSIONS[1:]) and magic:
            raise InputError(f"{path}: named as an archive, but it does not begin like gzip or Zstandard")
        while chunk := file.read(_READ_BYTES):
            yield chunk


def _decompressed_zstd(path: Path, file: _CountedFile) -> Iterator[bytes]:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: reading Zstandard needs the package zstandard: pip install 'fastlstm[data]'"
        ) from None
    # Frame by frame: zstandard's stream reader takes a truncated archive for a finished one.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW)
    frame = decompressor.decompressobj()
    inside_frame = True
    try:
        while data := file.read(_READ_BYTES):
            while data:
                if not inside_frame:
                    frame = decompressor.decompressobj()
                if chunk := frame.decompress(data):
                    yield chunk
                inside_frame = not frame.eof
                data = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise InputError(f"{path}: damaged Zstandard archive ({error})") from None
    if inside_frame:
        raise InputError(f"{path}: the Zstandard archive ends too early: truncated, fetch it again")


class _CountedFile(io.FileIO):
    """A binary file that reports how much of it was read."""

    def __init__(self, path: Path, on_read: Callable[[int], object] | None) -> None:
        super().__init__(path)
        self._on_read = on_read

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = super().read(size)
        if self._on_read is not None:
            self._on_read(len(data))
        return data
