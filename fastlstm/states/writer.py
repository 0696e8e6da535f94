"""A states store from its beginning to the mark that it is complete; the shards of `states` come from `shards.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

from fastlstm.errors import InputError
from fastlstm.states.layout import Layout
from fastlstm.states.progress import Begun, Progress
from fastlstm.states.reader import read_attributes
from fastlstm.states.schema import ARRAYS, ATTRIBUTE, BLOCK_VALUES, StoreAttributes, differences
from fastlstm.states.storage import Storage

Found = Literal["nothing", "unfinished", "finished"]


@dataclass(frozen=True)
class Stream:
    """A one-dimensional array that need not fit in memory: its length and its pieces in order, of any size."""

    length: int
    pieces: Iterable[npt.NDArray[Any]]


def find_store(store: Storage, wanted: StoreAttributes) -> Found:
    """What is there already; InputError, naming what differs, if it is anything but the wanted store.

    A finished store may have been written by other versions of the libraries; an unfinished one may not, since
    the rest would have other last bits. An unfinished store of other input without a group that is done, and which
    nobody is writing, counts as nothing.
    """
    if store.is_empty():
        return "nothing"
    found = read_attributes(store) if not store.is_file() else None
    finished = found is not None and found.complete
    progress = Progress(store)
    begun = None if finished else progress.read()
    if found is None and begun is not None and not begun.ready:
        found = begun.attributes  # killed before the first file was whole
    if found is None:
        raise InputError(f"{store}: exists and is not a states store: choose another place")
    if finished:
        wanted = dataclasses.replace(wanted, versions=found.versions)
    what = "finished" if finished else "unfinished"
    if changed := differences(found, wanted):
        if begun is not None and not progress.groups() and not progress.is_claimed():
            return "nothing"
        raise InputError(
            f"{store}: holds {'a' if finished else 'an'} {what} store of other input: {'; '.join(changed)}: "
            "choose another place, or delete it"
        )
    if finished:
        return "finished"
    if begun is None:
        raise InputError(f"{store}: unfinished, and {progress} beside it is gone: delete it to begin anew")
    return "unfinished" if begun.ready else "nothing"


def begin_store(
    store: Storage,
    attributes: StoreAttributes,
    arrays: Mapping[str, npt.NDArray[Any] | Stream],
    layout: Layout | None,
) -> None:
    """Write everything but the states, in place of what is there.

    ``arrays``: all of `schema.ARRAYS` (the word arrays only with words) as NumPy arrays or `Stream`s. ``layout``: of
    the states, None if none are kept.
    """
    attributes = dataclasses.replace(attributes, complete=False)
    progress = Progress(store)
    progress.remove()
    # From here on, what is at this place is ours to remove.
    progress.write(Begun(attributes, ready=False))
    with store.naming():
        store.remove()
        group = zarr.create_group(
            store.zarr(read_only=False), zarr_format=3, attributes={ATTRIBUTE: attributes.to_json()}
        )
        for name, content in arrays.items():
            write_array(group, name, content, ARRAYS[name][1])
        if layout is not None:
            layout.create(group)
        store.sync()
    progress.write(Begun(attributes, ready=True))


def finish_store(store: Storage, attributes: StoreAttributes) -> None:
    """Mark a store as complete of which every group is done."""
    complete = dataclasses.replace(attributes, complete=True)
    with store.naming():
        store.sync()  # before: a store that says it is complete has nothing left over
        group = zarr.open_group(store.zarr(read_only=False), mode="r+", zarr_format=3)
        group.update_attributes({ATTRIBUTE: complete.to_json()})
        store.sync()


def write_store(
    store: Storage,
    attributes: StoreAttributes,
    arrays: Mapping[str, npt.NDArray[Any] | Stream],
    states: npt.NDArray[Any],
) -> None:
    """Write a whole store whose ``states`` (N, U) are there already."""
    layout = Layout.of(states.shape[0], states.shape[1], attributes.dtype)
    begin_store(store, attributes, arrays, layout)
    for shard in range(layout.shards):
        rows = states[shard * layout.shard_rows : (shard + 1) * layout.shard_rows]
        blocks = (layout.block(rows[i : i + layout.block_rows]) for i in range(0, len(rows), layout.block_rows))
        store.write_shard(shard, layout, blocks)
    finish_store(store, attributes)
    Progress(store).remove()


def _length(content: npt.NDArray[Any] | Stream) -> int:
    return content.length if isinstance(content, Stream) else len(content)


def write_array(group: zarr.Group, name: str, content: npt.NDArray[Any] | Stream, dtype: str) -> None:
    """A new array in ``group``, in chunks of whole rows of about 2^20 values, each with its CRC-32C."""
    shape = (content.length,) if isinstance(content, Stream) else content.shape
    rows_per_chunk = BLOCK_VALUES // max(1, int(np.prod(shape[1:], initial=1)))
    array = group.create_array(
        name,
        shape=shape,
        chunks=(max(1, min(rows_per_chunk, shape[0])), *shape[1:]),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    pieces = content.pieces if isinstance(content, Stream) else [content]
    written = 0
    for piece in _whole_chunks(pieces, array.chunks[0]):
        array[written : written + len(piece)] = piece
        written += len(piece)
    if written != shape[0]:
        raise ValueError(f"{name}: {shape[0]} values announced, {written} came")


def _whole_chunks(pieces: Iterable[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    """The same values in pieces of whole chunks of ``size``, the rest last."""
    held: list[npt.NDArray[Any]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            joined = held[0] if len(held) == 1 else np.concatenate(held)
            whole = count // size * size
            yield joined[:whole]
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)
