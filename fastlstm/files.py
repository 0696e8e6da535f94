"""Files that are whole or not there, and outputs that one process writes at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastlstm.errors import InputError

PARTIAL = ".partial"  # what is being written; renamed when it is whole


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, force it to disk and rename: a reader sees all of it or none."""
    beside = path.with_name(path.name + PARTIAL)
    with naming(path):
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an ``OSError`` that does not say where it happened, as a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            full = " (what is written so far is kept; make room and run the same command again)"
            text = os.strerror(error.errno) + (full if error.errno in (errno.ENOSPC, errno.EDQUOT) else "")
            raise OSError(error.errno, text, str(path)) from error
        raise


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Hold ``output`` for this process; an ``InputError`` when another process is writing it.

    The lock is on the file ``.NAME.lock`` beside it, held by the kernel: a killed process leaves none behind.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_name(f".{output.name}.lock")
    while True:
        with lock.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{output}: another process is writing it; wait, or give another --out") from error
            if not lock.exists() or lock.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # the process before removed the file between our opening and locking it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
