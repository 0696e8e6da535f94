"""A corpus: the one format of text for training, evaluating, dumping and labelling.

A folder with, for every shard,

    train-00000.bytes       raw uint8, documents one after another, nothing between them
    train-00000.index.npz   offset int64 (n+1,); label float32 (n,), NaN = none; id bytes (n,), UTF-8; and,
                            when words are annotated, word_start, word_end int64 (W,) (half-open byte
                            ranges in the shard, sorted, disjoint) and word_tag uint8 (W,) (index into the
                            manifest's tagset)

and `manifest.json`, written last: a folder without it is unfinished. `writer.py` writes all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.corpus.manifest import (
    SPLITS,
    Manifest,
    ShardEntry,
    Source,
    read_manifest,
    sha256_of_file,
    source_of,
)
from fastlstm.corpus.writer import CorpusWriter, Document, Word
from fastlstm.errors import InputError

__all__ = [
    "SPLITS",
    "Corpus",
    "CorpusWriter",
    "Document",
    "Manifest",
    "Shard",
    "ShardEntry",
    "Source",
    "Word",
    "read_manifest",
    "source_of",
]


class Shard:
    """A shard, its text memory-mapped, both files verified against the manifest's sha256 when opened.

    bytes: uint8 (n,), read-only. offset: int64 (documents + 1,). label: float32 (documents,), NaN = none.
    ids: str per document. word_start, word_end: int64 (W,), word_tag: uint8 (W,), all None without
    annotated words. Raises InputError naming the file if its content is not what the manifest says.
    """

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        self.name = entry.name
        self.path = folder / f"{entry.name}.bytes"
        index_path = folder / f"{entry.name}.index.npz"
        _check_sha256(self.path, sha256_of_file(self.path), entry.sha256)
        _check_sha256(index_path, hashlib.sha256(index_path.read_bytes()).hexdigest(), entry.index_sha256)
        self.bytes: npt.NDArray[np.uint8] = np.memmap(self.path, dtype=np.uint8, mode="r")
        with np.load(index_path) as index:
            arrays: dict[str, npt.NDArray[Any]] = {name: index[name] for name in index.files}
        self.offset: npt.NDArray[np.int64] = arrays["offset"]
        self.label: npt.NDArray[np.float32] = arrays["label"]
        self.ids: list[str] = [id_.decode("utf-8") for id_ in arrays["id"].tolist()]
        self.word_start: npt.NDArray[np.int64] | None = arrays.get("word_start")
        self.word_end: npt.NDArray[np.int64] | None = arrays.get("word_end")
        self.word_tag: npt.NDArray[np.uint8] | None = arrays.get("word_tag")

    def __len__(self) -> int:
        return len(self.label)


class Corpus:
    """A finished corpus folder, opened for reading.

    folder: where it is. manifest: what it holds. sha256: identity of the text (`Manifest.text_sha256`).
    Raises InputError naming the folder or file: no or invalid manifest, a file missing or of the wrong size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for split in self.manifest.splits:
            for entry in self.shards(split):
                path = self.folder / f"{entry.name}.bytes"
                if not path.is_file():
                    raise InputError(f"{path}: missing, but listed in the manifest")
                if path.stat().st_size != entry.bytes:
                    raise InputError(f"{path}: {path.stat().st_size} bytes, the manifest says {entry.bytes}")
                if not (index := self.folder / f"{entry.name}.index.npz").is_file():
                    raise InputError(f"{index}: missing, but listed in the manifest")
        self.sha256 = self.manifest.text_sha256()

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of "train", "valid" or "test" in order; none if the split is absent."""
        if split not in SPLITS:
            raise InputError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        return self.manifest.splits.get(split, ())

    def open_shard(self, entry: ShardEntry) -> Shard:
        """Open a shard listed by `shards`; InputError naming the file if its sha256 is not the manifest's."""
        return Shard(self.folder, entry)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split in order, one shard open at a time."""
        for entry in self.shards(split):
            shard = self.open_shard(entry)
            for d in range(len(shard)):
                start, stop = int(shard.offset[d]), int(shard.offset[d + 1])
                label = float(shard.label[d])
                yield Document(
                    id=shard.ids[d],
                    text=shard.bytes[start:stop].tobytes(),
                    label=None if np.isnan(label) else label,
                    words=self.words(shard, d),
                )

    def words(self, shard: Shard, d: int) -> tuple[Word, ...] | None:
        """The annotated words of a shard's document `d`, in bytes of its text; None if words are not annotated."""
        if shard.word_start is None or shard.word_end is None or shard.word_tag is None:
            return None
        tagset = self.manifest.tagset or ()
        start, stop = int(shard.offset[d]), int(shard.offset[d + 1])
        first, last = np.searchsorted(shard.word_start, (start, stop)).tolist()
        return tuple(
            Word(s, e, tagset[tag])
            for s, e, tag in zip(
                (shard.word_start[first:last] - start).tolist(),
                (shard.word_end[first:last] - start).tolist(),
                shard.word_tag[first:last].tolist(),
                strict=True,
            )
        )


def _check_sha256(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise InputError(f"{path}: sha256 {found[:12]}…, the manifest says {expected[:12]}…: the file was changed")
