"""The file beside an unfinished store: what is being written, and from where to go on after a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastlstm.errors import InputError
from fastlstm.files import PARTIAL, write_whole
from fastlstm.states.schema import PROGRESS, StoreAttributes

_METADATA = "fastlstm_progress"


@dataclass(frozen=True)
class Carry:
    """A running state before the byte at ``position`` of the text was read, and the ``row`` that comes next."""

    position: int
    row: int
    h: Tensor
    c: Tensor


@dataclass(frozen=True)
class Progress:
    """attributes: of the finished store. ready: everything but the states is written. rows: states on disk."""

    attributes: StoreAttributes
    ready: bool
    rows: int
    carry: Carry | None


def progress_path(store: Path) -> Path:
    """``<store>.progress``."""
    store = store.resolve()
    return store.with_name(store.name + PROGRESS)


def read_progress(store: Path) -> Progress | None:
    """The progress of ``store``, None if there is none; InputError naming the file if it is damaged."""
    path = progress_path(store)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()[_METADATA])
            carry = None
            if values["carry"] is not None:
                position, row = values["carry"]
                carry = Carry(position, row, file.get_tensor("h"), file.get_tensor("c"))
            return Progress(
                attributes=StoreAttributes.from_json(values["attributes"], str(path)),
                ready=values["ready"],
                rows=values["rows"],
                carry=carry,
            )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: damaged ({error}): delete it and {store}, which cannot be resumed without it"
        ) from error


def write_progress(store: Path, progress: Progress) -> None:
    """Replace the progress of ``store``, whole or not at all."""
    carry = progress.carry
    values = {
        "attributes": progress.attributes.to_json(),
        "ready": progress.ready,
        "rows": progress.rows,
        "carry": None if carry is None else [carry.position, carry.row],
    }
    tensors = {} if carry is None else {"h": carry.h.cpu().contiguous(), "c": carry.c.cpu().contiguous()}
    write_whole(progress_path(store), save(tensors, {_METADATA: json.dumps(values)}))


def remove_progress(store: Path) -> None:
    """The store is finished."""
    path = progress_path(store)
    path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
