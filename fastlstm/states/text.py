"""The text of a dump: documents chosen from a corpus, as one sequence of bytes that stays on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastlstm.corpus.shards import SPLITS, Corpus
from fastlstm.errors import InputError

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Words:
    """Annotated words: start, end int64 (W,), half-open in the text, ascending; tag uint8 (W,)."""

    start: Integers
    end: Integers
    tag: Bytes


@dataclass(frozen=True)
class Text:
    """M bytes of D documents, one after another, memory-mapped; everything else is held in memory.

    segments: uint8 arrays whose concatenation is the text, with segment_offset int64 (S+1,). document_offset int64
    (D+1,); label float32 (D,), NaN = none; split uint8 (D,), index into SPLITS; ids: one per document; words: None
    unless the corpus has them.
    """

    segments: tuple[Bytes, ...]
    segment_offset: Integers
    document_offset: Integers
    label: npt.NDArray[np.float32]
    split: Bytes
    ids: tuple[str, ...]
    words: Words | None

    def __len__(self) -> int:
        return int(self.document_offset[-1])

    def read(self, start: int, stop: int) -> Bytes:
        """A copy of the bytes start:stop."""
        first = int(np.searchsorted(self.segment_offset, start, side="right")) - 1
        parts = []
        for segment, offset in zip(self.segments[first:], self.segment_offset[first:].tolist(), strict=False):
            if offset >= stop:
                break
            parts.append(segment[max(0, start - offset) : stop - offset])
        return np.concatenate(parts) if parts else np.empty(0, np.uint8)

    def tags(self, start: int, stop: int) -> Bytes:
        """(stop - start,): the tag of the word that covers each byte of start:stop, 255 where none does."""
        tags = np.full(stop - start, 255, np.uint8)
        if self.words is not None:
            first, last = np.searchsorted(self.words.end, start, side="right"), np.searchsorted(self.words.start, stop)
            begin = np.maximum(self.words.start[first:last], start) - start
            length = np.minimum(self.words.end[first:last], stop) - start - begin
            within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            tags[np.repeat(begin, length) + within] = np.repeat(self.words.tag[first:last], length)
        return tags

    def ranges(self, size: int) -> Iterator[tuple[int, int]]:
        """The text cut into (start, stop) of ``size`` bytes, the last one shorter."""
        for start in range(0, len(self), size):
            yield start, min(start + size, len(self))


def choose_splits(corpus: Corpus, splits: Sequence[str] | None) -> tuple[str, ...]:
    """The wanted splits (None = all there are) in the order train, valid, test; InputError if one is not there."""
    present = tuple(split for split in SPLITS if corpus.shards(split))
    if splits is None:
        return present
    if not splits:
        raise InputError("splits: expected at least one of train, valid, test, got none")
    for split in splits:
        if split not in present:
            raise InputError(f"splits: {split!r} is not in {corpus.folder} (it has {', '.join(present)})")
    return tuple(split for split in present if split in splits)


def open_text(corpus: Corpus, splits: Sequence[str], documents: int | None = None) -> Text:
    """The first ``documents`` (None = all) of each of ``splits``; every shard it needs is verified and mapped."""
    if documents is not None and documents < 1:
        raise InputError(f"documents: expected a positive number, got {documents}")
    segments: list[Bytes] = []
    segment_offset = [0]
    offsets: list[Integers] = [np.zeros(1, np.int64)]
    labels: list[npt.NDArray[np.float32]] = []
    split_of: list[Bytes] = []
    ids: list[str] = []
    words: list[Words] = []
    for split in splits:
        wanted = documents
        for entry in corpus.shards(split):
            if wanted == 0:
                break
            shard = corpus.open_shard(entry)
            taken = len(shard) if wanted is None else min(wanted, len(shard))
            wanted = None if wanted is None else wanted - taken
            base, size = segment_offset[-1], int(shard.offset[taken])
            segments.append(shard.bytes[:size])
            segment_offset.append(base + size)
            offsets.append(shard.offset[1 : taken + 1] + base)
            labels.append(shard.label[:taken])
            split_of.append(np.full(taken, SPLITS.index(split), np.uint8))
            ids.extend(shard.ids[:taken])
            if shard.word_start is not None and shard.word_end is not None and shard.word_tag is not None:
                last = int(np.searchsorted(shard.word_start, size))
                words.append(Words(shard.word_start[:last] + base, shard.word_end[:last] + base, shard.word_tag[:last]))
    return Text(
        segments=tuple(segments),
        segment_offset=np.array(segment_offset, np.int64),
        document_offset=np.concatenate(offsets),
        label=np.concatenate(labels),
        split=np.concatenate(split_of),
        ids=tuple(ids),
        words=_join(words) if corpus.manifest.tagset is not None else None,
    )


def _join(parts: Sequence[Words]) -> Words:
    return Words(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.tag for part in parts]),
    )
