"""Where a store lies: a local folder, or an object store (``s3://bucket/path`` and what else obstore knows).

Zarr reads and writes the same place; this is for what is written beside it: whole shards, and the files of a dump that
is not finished. Everything that is written is whole or not there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
from zarr.storage import LocalStore, ObjectStore

from fastlstm.errors import InputError
from fastlstm.files import PARTIAL, naming, only_writer, sync, write_whole
from fastlstm.states.layout import Layout, checksum, shard_name
from fastlstm.states.schema import PROGRESS

RETRY, PATIENCE = 0.05, 60.0  # seconds

Block = npt.NDArray[Any]
"""A block of rows as it lies in its file, (columns, block_rows, block_units)."""


class LocalStorage:
    """A folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def beside(self, ending: str) -> LocalStorage:
        """The folder of the same name with ``ending``."""
        path = self.path.resolve()
        return LocalStorage(path.with_name(path.name + ending))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process begins or finishes this store, and keep the others from it.

        InputError if whoever holds it for a minute has not begun a store.
        """
        with contextlib.ExitStack() as held:
            for attempt in itertools.count():
                try:
                    held.enter_context(only_writer(self.path.resolve()))
                    break
                except InputError:
                    if attempt * RETRY > PATIENCE and self.beside(PROGRESS).is_empty():
                        raise
                    time.sleep(RETRY)
            yield

    def zarr(self, *, read_only: bool) -> LocalStore:
        return LocalStore(self.path.resolve(), read_only=read_only)

    def is_empty(self) -> bool:
        """Whether there is nothing, or a folder with nothing in it."""
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    def is_file(self) -> bool:
        return self.path.is_file()

    def names(self) -> set[str]:
        """The files that lie directly here."""
        return {path.name for path in self.path.iterdir() if path.suffix != PARTIAL} if self.path.is_dir() else set()

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if it is not there."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / name, data)

    def remove_file(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Everything."""
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
            if self.path.exists():  # another worker wrote a file meanwhile
                shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def naming(self) -> contextlib.AbstractContextManager[None]:
        """Name the store in an error of the file system that does not say where it happened."""
        return naming(self.path)

    def sync(self) -> None:
        """Make files and names durable that Zarr wrote, without what a kill left of others; shards are already."""
        for path in self.path.glob("*.partial"):
            path.unlink()
        for folder, folders, files in os.walk(self.path):
            if Path(folder).name == "states":
                folders.clear()
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))

    def write_shard(self, shard: int, layout: Layout, blocks: Any) -> None:
        """Write a shard from its ``blocks`` (in order, each used before the next is asked for), and make it durable."""
        path = self.path / shard_name(shard)
        beside = path.with_name(path.name + PARTIAL)
        with self.naming():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                count = 0
                for block in blocks:
                    # At once: what the checksum has read is still in the cache.
                    for chunk in block:
                        _write_all(descriptor, [memoryview(chunk).cast("B"), checksum(chunk)])
                    count += 1
                _write_all(descriptor, [layout.index(count)])
                os.fsync(descriptor)
            except BaseException:
                beside.unlink(missing_ok=True)  # what is left would take the room that was missing
                raise
            finally:
                os.close(descriptor)
            beside.replace(path)
            for folder in path.parents[:3]:
                sync(folder)


def _write_all(descriptor: int, parts: list[Any]) -> None:
    """Write buffers one after another; a system call may take less than it was given."""
    while parts:
        written = os.writev(descriptor, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if written:
            parts[0] = memoryview(parts[0])[written:]


class ObjectStorage:
    """A prefix of a bucket. A shard is uploaded in parts as one object, which is there when all of it is."""

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ModuleNotFoundError as error:
            raise InputError(f"{url}: object stores need obstore: pip install 'fastlstm[s3]'") from error
        self.url = url.rstrip("/")
        self._obstore = obstore
        try:
            self._store = from_url(self.url)
        except Exception as error:
            raise InputError(f"{url}: {error}") from error

    def __str__(self) -> str:
        return self.url

    def beside(self, ending: str) -> ObjectStorage:
        return ObjectStorage(self.url + ending)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # what two write at once is the same

    def zarr(self, *, read_only: bool) -> ObjectStore[Any]:
        return ObjectStore(self._store, read_only=read_only)

    def is_empty(self) -> bool:
        with self.naming():
            return not any(self._obstore.list(self._store, chunk_size=1))

    def is_file(self) -> bool:
        return False

    def names(self) -> set[str]:
        with self.naming():
            found = self._obstore.list_with_delimiter(self._store)
        return {entry["path"].rpartition("/")[2] for entry in found["objects"]}

    def read(self, name: str) -> bytes | None:
        try:
            with self.naming():
                return bytes(self._obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with self.naming():
            self._obstore.put(self._store, name, data)

    def remove_file(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._obstore.delete(self._store, name)

    def remove(self) -> None:
        with self.naming():
            for entries in self._obstore.list(self._store):
                self._obstore.delete(self._store, [entry["path"] for entry in entries])

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """An error of the object store, of whatever kind, is one of the system that names it."""
        try:
            yield
        except self._obstore.exceptions.BaseError as error:
            raise OSError(f"{self.url}: {' '.join(str(error).split())[:300]}") from error

    def sync(self) -> None:
        """An object that was written is durable."""

    def write_shard(self, shard: int, layout: Layout, blocks: Any) -> None:
        parts: list[bytes] = []
        count = 0
        for block in blocks:
            for chunk in block:
                parts += (chunk.tobytes(), checksum(chunk))
            count += 1
        self.write(shard_name(shard), b"".join([*parts, layout.index(count)]))


Storage = LocalStorage | ObjectStorage


def storage_at(place: str | Path) -> Storage:
    """The storage that a path or URL names; InputError for a URL without its library."""
    return ObjectStorage(str(place)) if "://" in str(place) else LocalStorage(Path(place))
