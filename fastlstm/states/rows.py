"""Which bytes of a text become rows of a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastlstm.errors import InputError
from fastlstm.states.text import Integers, Text

COUNT_BYTES = 1 << 22  # text looked at in one go while rows are counted
_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\v\f\r"))


@dataclass(frozen=True)
class RowRule:
    """A rule that picks positions in a text, from the text alone.

    "all": every byte. "document": the last byte of each document. "word": the last byte of each word: of the annotated
    words if the text has them, else of the runs of bytes that are not ASCII white space. "every:K": the bytes K - 1,
    2K - 1, ... of each document. "document-mean", "word-mean": the same positions, and a row is the mean over all bytes
    of the document or word that ends there.
    """

    name: str
    every: int = 1
    mean: bool = False

    @classmethod
    def parse(cls, rule: str) -> RowRule:
        """From its spelling on the command line; InputError if it is none."""
        if rule in ("all", "document", "word"):
            return cls(rule)
        if rule in ("document-mean", "word-mean"):
            return cls(rule.removesuffix("-mean"), mean=True)
        kind, _, number = rule.partition(":")
        if kind == "every" and number.isascii() and number.isdigit() and len(number) < 19 and int(number) > 0:
            return cls("every", int(number))
        raise InputError(
            f"rows: expected all, document, word, document-mean, word-mean or every:K with K from 1 "
            f"to 10^18 - 1, got {rule!r}"
        )

    def __str__(self) -> str:
        return f"every:{self.every}" if self.name == "every" else self.name + "-mean" * self.mean

    def positions(self, text: Text, start: int, stop: int) -> Integers:
        """The picked positions in start:stop of the text, int64, ascending."""
        if self.name == "all":
            return np.arange(start, stop)
        if self.name == "document":
            return _last_bytes(text.document_offset, start, stop)
        if self.name == "every":
            first = int(np.searchsorted(text.document_offset, start, side="right")) - 1
            last = int(np.searchsorted(text.document_offset, stop))
            offset = text.document_offset[first : last + 1]
            # Of each document, those before start, and up to stop.
            skipped = np.maximum(start - offset[:-1], 0) // self.every
            counts = (np.minimum(offset[1:], stop) - offset[:-1]) // self.every - skipped
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            picked: Integers = np.repeat(offset[:-1] + (skipped + 1) * self.every - 1, counts) + within * self.every
            return picked
        if text.words is not None:
            return _last_bytes(text.words.end, start, stop)
        return start + np.flatnonzero(_run_ends(text, start, stop))

    def begins(self, text: Text, start: int, stop: int) -> Integers:
        """Where the document or word of each of `positions` of start:stop begins, and last, the one that ``stop`` cuts.

        int64; ``start`` for one that began before; ``stop`` if ``stop`` cuts none.
        """
        documents = text.document_offset
        if self.name == "word" and text.words is not None:
            first, last = np.searchsorted(text.words.end, start, side="right"), np.searchsorted(text.words.start, stop)
            begins = text.words.start[first:last]
        elif self.name == "word":
            inside = ~_IS_SPACE[text.read(start, stop)]
            before = np.concatenate([[False], inside[:-1]])
            before[documents[slice(*np.searchsorted(documents, (start, stop)))] - start] = False
            begins = start + np.flatnonzero(inside & ~before)
        else:
            begins = documents[np.searchsorted(documents[1:], start, side="right") : np.searchsorted(documents, stop)]
        begins = np.maximum(begins, start)
        return begins if len(begins) > len(self.positions(text, start, stop)) else np.append(begins, stop)

    def position(self, text: Text, row_offset: Integers, row: int) -> int:
        """The picked position of index ``row``; ``row_offset`` as below."""
        if self.name == "all":
            return row
        document = int(np.searchsorted(row_offset, row, side="right")) - 1
        start, stop = (int(offset) for offset in text.document_offset[document : document + 2])
        return int(self.positions(text, start, stop)[row - int(row_offset[document])])

    def row_offset(self, text: Text) -> Integers:
        """int64 (D+1,): document d has the rows row_offset[d]:row_offset[d+1]."""
        offsets = np.zeros_like(text.document_offset)
        rows = 0
        for start, stop in text.ranges(COUNT_BYTES):
            positions = self.positions(text, start, stop)
            first, last = np.searchsorted(text.document_offset, (start, stop), side="right")
            offsets[first:last] = rows + np.searchsorted(positions, text.document_offset[first:last])
            rows += len(positions)
        return offsets


def _last_bytes(ends: Integers, start: int, stop: int) -> Integers:
    """Those last bytes of ranges with the given half-open, ascending ends that lie in start:stop."""
    first, last = np.searchsorted(ends, (start, stop), side="right")
    return ends[first:last] - 1


def _run_ends(text: Text, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Whether each byte of start:stop ends a run of bytes that are not white space; runs end with their document."""
    space = _IS_SPACE[text.read(start, min(stop + 1, len(text)))]
    ends = np.ones(stop - start, bool)  # the text's last byte has none after it
    ends[: len(space) - 1] = space[1 : stop - start + 1]
    ends[_last_bytes(text.document_offset, start, stop) - start] = True
    return ends & ~space[: stop - start]
