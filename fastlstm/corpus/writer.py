"""Writing a corpus folder: shard by shard, resumable, the same bytes however often the process was killed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.corpus.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    UNFINISHED,
    Manifest,
    ShardEntry,
    Source,
    canonical_json,
    entries_of,
    read_manifest,
    sha256_of_file,
    write_manifest,
)
from fastlstm.errors import InputError
from fastlstm.files import PARTIAL, naming, only_writer, sync, write_whole

SKIPPED = "skipped.jsonl"  # lines that were left out, one JSON object each
MAX_ID_BYTES = 255

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Word:
    """A word or punctuation mark: half-open byte range inside `Document.text`, and its tag."""

    start: int
    end: int
    tag: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document. text: as the model reads it, preprocessing done. label: stars, or 0/1 for a class."""

    id: str
    text: bytes
    label: float | None = None
    words: tuple[Word, ...] | None = None


class CorpusWriter:
    """Writes a corpus folder (format: `shards.py`); a context manager.

    A shard is closed after `documents_per_shard` documents of its split. Shards that a killed run with
    the same settings completed are kept: the documents given again are compared with them (by sha256)
    instead of written, so the caller always gives all documents, in the same order. A folder that holds a
    finished corpus of the same settings is compared in the same way; `finished` is then its manifest, for
    callers that need no comparison.

    kind, preprocessing, label_meaning, tagset, synthetic, settings: as in `Manifest`. label_meaning None: no labels,
    or `finish` tells. tagset None: no words. resume=False: begin anew where a run was killed. The folder belongs to
    the writer until it is closed. Raises InputError if the folder holds anything else, if another process is writing
    it, or if the documents given differ from those already written; OSError naming the file, on a full disk.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        kind: str,
        preprocessing: str,
        label_meaning: str | None = None,
        tagset: Sequence[str] | None = None,
        synthetic: bool = False,
        settings: Mapping[str, Any] | None = None,
        documents_per_shard: int = 80_000,
        resume: bool = True,
    ) -> None:
        if documents_per_shard < 1:
            raise InputError(f"documents_per_shard: got {documents_per_shard}, expected at least 1")
        if tagset is not None and not 0 < len(set(tagset)) == len(tagset) <= 256:
            raise InputError(f"tagset: got {len(tagset)} tags, expected 1 to 256 different ones")
        self.folder = Path(folder)
        self._documents_per_shard = documents_per_shard
        self._tag_index = None if tagset is None else {tag: i for i, tag in enumerate(tagset)}
        self._header: dict[str, Any] = json.loads(
            canonical_json(
                {
                    "format_version": FORMAT_VERSION,
                    "kind": kind,
                    "preprocessing": preprocessing,
                    "label_meaning": label_meaning,
                    "tagset": None if tagset is None else list(tagset),
                    "synthetic": synthetic,
                    "settings": {**(settings or {}), "documents_per_shard": documents_per_shard},
                }
            )
        )
        self.finished: Manifest | None = None
        self._kept: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
        self._closed: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
        self._open: dict[str, _OpenShard] = {}
        with ExitStack() as held:
            held.enter_context(only_writer(self.folder.resolve()))
            self._take_over(resume)
            self._held = held.pop_all()

    def _take_over(self, resume: bool) -> None:
        """Find what the folder holds already; leave it with `unfinished.json` or a manifest in it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: expected a folder to write a corpus to, found a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).exists():
            self.finished = read_manifest(self.folder)
            self._check_same(json.loads(canonical_json(dataclasses.asdict(self.finished))), "a finished corpus")
            for split, entries in self.finished.splits.items():
                self._kept[split] = list(entries)
            return
        state_path = self.folder / UNFINISHED
        if state_path.exists():
            header, splits = _read_state(state_path)
            if resume and any(splits.values()):
                self._check_same(header, "an unfinished corpus")
                for split, found in splits.items():
                    self._kept[split] = self._intact(found)
            else:
                for path in self.folder.iterdir():
                    if path.name.startswith(tuple(f"{split}-" for split in SPLITS)):
                        path.unlink()
        elif foreign := sorted(p.name for p in self.folder.iterdir() if not p.name.endswith(PARTIAL)):
            raise InputError(f"{self.folder}: not a corpus and not empty (holds {foreign[0]}): choose another folder")
        for path in self.folder.glob(f"*{PARTIAL}"):
            path.unlink()
        self._write_state()

    def _check_same(self, found: Mapping[str, Any], what: str) -> None:
        for name, value in self._header.items():
            other = found.get(name)
            if other == value or (name == "label_meaning" and value is None):
                continue
            if name == "settings" and isinstance(other, dict):
                name = next(key for key in sorted({*value, *other}) if value.get(key) != other.get(key))
                value, other = value.get(name), other.get(name)
            raise InputError(
                f"{self.folder}: holds {what} with {name} {_short(other)}, now {_short(value)}: "
                "choose another folder or delete it"
            )

    def _intact(self, entries: Sequence[ShardEntry]) -> list[ShardEntry]:
        """The leading shards whose files are as recorded; what follows a damaged one is written again."""
        kept: list[ShardEntry] = []
        for entry in entries:
            for ending, expected in ((".bytes", entry.sha256), (".index.npz", entry.index_sha256)):
                path = self.folder / (entry.name + ending)
                if not path.is_file() or sha256_of_file(path) != expected:
                    return kept
            kept.append(entry)
        return kept

    def _write_state(self) -> None:
        # A shard kept from an earlier run stays listed until its turn comes, so a second kill loses nothing.
        splits = {
            split: [dataclasses.asdict(e) for e in self._closed[split] + self._kept[split][len(self._closed[split]) :]]
            for split in SPLITS
        }
        state = {"header": self._header, "splits": splits}
        write_whole(self.folder / UNFINISHED, json.dumps(state, indent=2).encode("ascii") + b"\n")

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._held:
            for shard in self._open.values():
                shard.discard()
            self._open.clear()

    def add(self, split: str, document: Document) -> None:
        """Append a document; InputError if its words are not sorted, disjoint, inside it, of the tagset."""
        words = document.words or ()
        if words and self._tag_index is None:
            raise InputError(f"document {document.id!r}: has words, but the corpus has no tagset")
        tag_index = self._tag_index or {}
        if unknown := next((word.tag for word in words if word.tag not in tag_index), None):
            raise InputError(f"document {document.id!r}: tag {unknown!r} is not in the tagset")
        self.add_arrays(
            split,
            id=document.id,
            text=document.text,
            label=document.label,
            word_start=np.array([word.start for word in words], np.int64),
            word_end=np.array([word.end for word in words], np.int64),
            word_tag=np.array([tag_index[word.tag] for word in words], np.uint8),
        )

    def add_arrays(
        self,
        split: str,
        *,
        id: str,
        text: bytes,
        label: float | None = None,
        word_start: Integers | None = None,
        word_end: Integers | None = None,
        word_tag: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """`add` for words as arrays (W,): half-open byte offsets into `text`, indices into the tagset."""
        if split not in SPLITS:
            raise InputError(f"document {id!r}: split {split!r}, expected one of {', '.join(SPLITS)}")
        encoded_id = id.encode("utf-8")
        if not 0 < len(encoded_id) <= MAX_ID_BYTES or encoded_id.endswith(b"\0"):
            raise InputError(f"document id {_short(id)}: expected 1 to {MAX_ID_BYTES} bytes, not ending in NUL")
        if not text:
            raise InputError(f"document {id!r}: the text is empty")
        shard = self._open.get(split)
        if shard is None:
            shard = self._open[split] = self._new_shard(split)
        if word_start is not None and word_end is not None and word_tag is not None and len(word_start):
            if (
                not len(word_start) == len(word_end) == len(word_tag)
                or word_start[0] < 0
                or word_end[-1] > len(text)
                or bool((word_start >= word_end).any())
                or bool((word_start[1:] < word_end[:-1]).any())
                or int(word_tag.max()) >= len(self._tag_index or ())
            ):
                raise InputError(f"document {id!r}: words are not sorted, disjoint, inside the text and in the tagset")
            shard.add_words(word_start, word_end, word_tag)
        shard.add(encoded_id, text, label)
        if shard.documents == self._documents_per_shard:
            self._close(split)

    def _new_shard(self, split: str) -> _OpenShard:
        number = len(self._closed[split])
        kept = self._kept[split]
        if number >= len(kept) and self.finished is not None:
            raise InputError(f"{self.folder}: holds a finished corpus with fewer {split} documents: delete it first")
        name = f"{split}-{number:05d}"
        return _OpenShard(self.folder, name, self._tag_index is not None, write=number >= len(kept))

    def _close(self, split: str) -> None:
        shard = self._open[split]
        entry = shard.close()
        del self._open[split]
        number = len(self._closed[split])
        if number < len(self._kept[split]) and self._kept[split][number] != entry:
            raise InputError(f"{self.folder}: {entry.name} of an earlier run holds other text: delete the folder")
        self._closed[split].append(entry)
        if shard.write:
            self._write_state()

    def finish(
        self,
        sources: Sequence[Source] = (),
        skipped: int = 0,
        duplicates: int = 0,
        label_meaning: str | None = None,
    ) -> Manifest:
        """Close the last shards and write the manifest; InputError if no document was added.

        label_meaning: for a writer that was begun without one.
        """
        for split in SPLITS:
            if split in self._open:
                self._close(split)
            if len(self._closed[split]) < len(self._kept[split]):
                name = self._kept[split][len(self._closed[split])].name
                raise InputError(f"{self.folder}: {name} of an earlier run was not given again: delete the folder")
        splits = {split: tuple(entries) for split, entries in self._closed.items() if entries}
        if not splits:
            raise InputError(f"{self.folder}: no document was added: nothing to write a corpus from")
        manifest = Manifest(
            **{
                **self._header,
                "tagset": None if self._tag_index is None else tuple(self._tag_index),
                "label_meaning": label_meaning or self._header["label_meaning"],
            },
            sources=tuple(sources),
            skipped=skipped,
            duplicates=duplicates,
            splits=splits,
        )
        if self.finished is None:
            write_manifest(self.folder, manifest)
            (self.folder / UNFINISHED).unlink()
            self.finished = manifest
        elif manifest != self.finished:
            raise InputError(f"{self.folder}: holds a finished corpus of other sources: delete it first")
        return manifest


class _OpenShard:
    """A shard that still takes documents: text goes to a partial file (or nowhere, when only comparing)."""

    def __init__(self, folder: Path, name: str, with_words: bool, write: bool) -> None:
        self.write = write
        self.documents = 0
        self._path = folder / f"{name}.bytes"
        self._partial = folder / f"{name}.bytes{PARTIAL}"
        self._index_path = folder / f"{name}.index.npz"
        self._name = name
        self._file = self._partial.open("wb") if write else None
        self._digest = hashlib.sha256()
        self._offset = [0]
        self._label: list[float] = []
        self._id: list[bytes] = []
        self._words: tuple[list[Integers], list[Integers], list[Integers]] | None = ([], [], []) if with_words else None

    def add_words(self, start: Integers, end: Integers, tag: Integers) -> None:
        """Words of the document that `add` appends next."""
        if self._words is not None:
            self._words[0].append(start + self._offset[-1])
            self._words[1].append(end + self._offset[-1])
            self._words[2].append(tag)

    def add(self, id: bytes, text: bytes, label: float | None) -> None:
        self._digest.update(text)
        if self._file is not None:
            with naming(self._path):
                self._file.write(text)
        self._offset.append(self._offset[-1] + len(text))
        self._label.append(float("nan") if label is None else label)
        self._id.append(id)
        self.documents += 1

    def close(self) -> ShardEntry:
        index = _npz(self._index())
        if self._file is not None:
            with naming(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._partial.replace(self._path)
            write_whole(self._index_path, index)
            sync(self._path.parent)
        return ShardEntry(
            name=self._name,
            bytes=self._offset[-1],
            documents=self.documents,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    def discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk fails again for what is still buffered, and that is thrown away
                self._file.close()
            self._partial.unlink(missing_ok=True)

    def _index(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {
            "offset": np.array(self._offset, np.int64),
            "label": np.array(self._label, np.float32),
            "id": np.array(self._id, np.bytes_),
        }
        if self._words is not None:
            for name, dtype, parts in zip(
                ("word_start", "word_end", "word_tag"),
                (np.int64, np.int64, np.uint8),
                self._words,
                strict=True,
            ):
                arrays[name] = np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
        return arrays


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, tuple[ShardEntry, ...]]]:
    """Header and shards of an `unfinished.json`; InputError naming it if it is damaged."""
    try:
        state = json.loads(path.read_bytes())
        header, splits = state["header"], entries_of(state["splits"])
        if not isinstance(header, dict) or not set(splits) <= set(SPLITS):
            raise TypeError("not a header and the shards of splits")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error}): delete the folder {path.parent} to begin anew") from None
    return header, splits


def _npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """What np.savez writes, with fixed dates: newer Pythons put the time of writing into a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue())
    return buffer.getvalue()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
