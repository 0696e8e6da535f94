"""What is known of a store that is not finished: the folder ``<store>.progress`` beside it.

    begun.json         attributes of the store, and whether everything but the states is written
    group-00000007     group 7 is on the disk: its state carried out, its partial statistics (safetensors)
    claim-00000000     locked by the process that reads the groups of a job; the kernel frees the lock of a dead one

Whoever finds that nothing is missing marks the store as complete and removes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fastlstm.errors import InputError
from fastlstm.states.schema import PROGRESS, StoreAttributes
from fastlstm.states.storage import LocalStorage, Storage

_BEGUN = "begun.json"
_GROUP = "group-"


@dataclass(frozen=True)
class Begun:
    """attributes: of the finished store. ready: everything but the states is written."""

    attributes: StoreAttributes
    ready: bool


class Progress:
    """The progress of the store at ``store``."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self._storage = store.beside(PROGRESS)

    def __str__(self) -> str:
        return str(self._storage)

    def read(self) -> Begun | None:
        """None if there is none; InputError naming the file if it is damaged."""
        data = self._storage.read(_BEGUN)
        if data is None:
            return None
        try:
            values = json.loads(data)
            return Begun(StoreAttributes.from_json(values["attributes"], f"{self}/{_BEGUN}"), bool(values["ready"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self}/{_BEGUN}: damaged ({error}): delete {self} and {self._store}, which cannot go on without it"
            ) from error

    def write(self, begun: Begun) -> None:
        values = {"attributes": begun.attributes.to_json(), "ready": begun.ready}
        self._storage.write(_BEGUN, json.dumps(values).encode())

    def groups(self) -> set[int]:
        """The groups that are done."""
        names = self._storage.names()
        return {int(name.removeprefix(_GROUP)) for name in names if name.startswith(_GROUP) and name[-1].isdigit()}

    def mark(self, group: int, tensors: Mapping[str, Tensor]) -> None:
        """Group ``group`` is done, and left ``tensors``."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._storage.write(_name(group), save(whole))

    def left_by(self, group: int) -> dict[str, Tensor]:
        """What was given with ``mark``; InputError naming the file if it is damaged or gone."""
        data = self._storage.read(_name(group))
        try:
            if data is None:
                raise ValueError("gone")
            return load(data)
        except (SafetensorError, ValueError) as error:
            raise InputError(
                f"{self}/{_name(group)}: damaged ({error}): delete it, and the same command makes it again"
            ) from error

    def remove(self) -> None:
        """The store is finished, or begun anew."""
        self._storage.remove_file(_BEGUN)  # first, so that who looks at groups and then finds it saw all of them
        self._storage.remove()

    def unfinished_groups(self, groups: Iterable[int]) -> list[int] | None:
        """Those of ``groups`` that are not done; None if the store is finished."""
        done = self.groups()
        return [group for group in groups if group not in done] if self.read() is not None else None

    @contextlib.contextmanager
    def claim(self, job: int) -> Iterator[bool]:
        """Whether this process may read ``job`` now: no other one does. In an object store nobody can tell: always."""
        if not isinstance(self._storage, LocalStorage):
            yield True
            return
        try:
            descriptor = os.open(self._storage.path / f"claim-{job:08d}", os.O_WRONLY | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another worker has finished the store
            yield False
            return
        try:
            yield _locked(descriptor)
        finally:
            os.close(descriptor)

    def is_claimed(self) -> bool:
        """Whether any process reads a job of it."""
        if not isinstance(self._storage, LocalStorage):
            return False
        for path in self._storage.path.glob("claim-*"):
            with path.open("rb") as file:
                if not _locked(file.fileno()):
                    return True
        return False


def _name(group: int) -> str:
    return f"{_GROUP}{group:08d}"


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
