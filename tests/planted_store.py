"""States stores whose truth is known: documents and cell states that a test chose, written with the store's writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastlstm.corpus.shards import Document
from fastlstm.states import ModelAttributes, States, StoreAttributes, TextAttributes, open_states
from fastlstm.states.storage import LocalStorage
from fastlstm.states.writer import write_store as write_whole_store


@dataclass(frozen=True)
class PlantedText:
    """Documents in the order train, valid, test; `split` gives each one's as 0, 1 or 2."""

    documents: Sequence[Document]
    split: Sequence[int]
    tagset: tuple[str, ...] | None = None
    kind: str = "grammar"

    @property
    def text(self) -> bytes:
        return b"".join(document.text for document in self.documents)

    @property
    def offset(self) -> npt.NDArray[np.int64]:
        return np.cumsum([0] + [len(document.text) for document in self.documents], dtype=np.int64)


def every_byte(planted: PlantedText) -> npt.NDArray[np.int64]:
    return np.arange(len(planted.text), dtype=np.int64)


def last_bytes(planted: PlantedText) -> npt.NDArray[np.int64]:
    return planted.offset[1:] - 1


def write_store(
    path: Path,
    planted: PlantedText,
    position: npt.NDArray[np.int64],
    states: npt.NDArray[np.float32],
    *,
    rows: str,
    units: Sequence[int] | None = None,
    untrained: bool = False,
    hidden_size: int | None = None,
    dtype: str = "float32",
) -> States:
    """Write `states` (N, U) of the bytes at `position` (N,) and open what was written."""
    offset, documents = planted.offset, planted.documents
    shown = tuple(units) if units is not None else tuple(range(states.shape[1]))
    ids = [document.id.encode() for document in documents]
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "position": position,
        "byte": np.frombuffer(planted.text, np.uint8)[position],
        "units": np.array(shown, np.int32),
        "text": np.frombuffer(planted.text, np.uint8),
        "document_offset": offset,
        "row_offset": np.searchsorted(position, offset).astype(np.int64),
        "document_label": np.array(
            [np.nan if document.label is None else document.label for document in documents], np.float32
        ),
        "document_split": np.array(planted.split, np.uint8),
        "document_id": np.array(ids).view(np.uint8).reshape(len(ids), -1),
    }
    if planted.tagset is not None:
        words = [
            (start + word.start, start + word.end, planted.tagset.index(word.tag))
            for start, document in zip(offset[:-1].tolist(), documents, strict=True)
            for word in document.words or ()
        ]
        table = np.array(words, np.int64).reshape(-1, 3)
        arrays |= {
            "word_start": table[:, 0],
            "word_end": table[:, 1],
            "word_tag": table[:, 2].astype(np.uint8),
        }
    attributes = StoreAttributes(
        format_version=1,
        model=ModelAttributes("a" * 64, 0 if untrained else 1000, hidden_size or states.shape[1], untrained),
        text=TextAttributes(
            sha256="b" * 64,
            kind=planted.kind,
            label_meaning="sentiment 0/1",
            tagset=planted.tagset,
            synthetic=planted.kind == "grammar",
            splits=("train", "valid", "test"),
            documents=None,
        ),
        rows=rows,
        units=None if units is None else shown,
        state="document",
        dtype=dtype,
        batch_size=1,
        versions={"fastlstm": "0", "torch": "0", "zarr": "0"},
        complete=False,
    )
    write_whole_store(LocalStorage(path), attributes, arrays, states.astype(np.float32))
    return open_states(path)
