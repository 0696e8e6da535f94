"""Text with every byte on the colour of one cell's value, as the reader of a page sees it.

Each byte carries tanh(c), c the cell state after reading the byte (Carvalho's figures; Radford et al. 2017, figure 4):
-1 is blue, 0 white, +1 red.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastlstm.states import States

BLUE, RED = "#4f83ee", "#ec6a5c"  # both carry dark letters at a contrast above 5:1
_SYMBOLS = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}  # the first two are in more typefaces than U+2400's symbols
LEVELS = 32  # steps of colour on each side of white


@dataclass(frozen=True)
class Glyph:
    """One character as it is shown, and tanh of the cell after its last byte; None: without colour."""

    text: str
    value: float | None

    @property
    def level(self) -> int:
        """The colour's number: 0 is -1 (blue), `LEVELS` is 0 (white), `2 * LEVELS` is +1 (red)."""
        return round(((self.value or 0.0) + 1) * LEVELS)


@dataclass(frozen=True)
class Piece:
    """Neighbouring characters under one tag, SPACE between words; `hit`: it is the tag that the reader looks for."""

    glyphs: tuple[Glyph, ...]
    tag: str
    hit: bool


@dataclass(frozen=True)
class ColouredDocument:
    """A document in pieces; one piece without a tag where tags are not shown."""

    id: str
    label: int | None
    pieces: tuple[Piece, ...]
    shortened: bool
    last: float  # the raw cell after the document's last byte


def colour(value: float) -> str:
    """Return '#rrggbb' of `value` in [-1, 1]: `BLUE` at -1, white at 0, `RED` at +1, linear between."""
    end = RED if value > 0 else BLUE
    share = min(abs(value), 1.0)
    channels = (int(end[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (channel - 255) * share):02x}" for channel in channels)


def palette() -> list[str]:
    """Return the colours of levels 0 to `2 * LEVELS`."""
    return [colour(level / LEVELS - 1) for level in range(2 * LEVELS + 1)]


def glyphs(text: bytes, values: npt.NDArray[np.floating] | None) -> list[Glyph]:
    """Cut UTF-8 `text` into characters; each takes the value of its last byte.

    values: (len(text),) tanh of the cell after each byte, or None. A byte that is not UTF-8 is shown as \\xNN, a
    control character by its symbol.
    """
    out: list[Glyph] = []
    start = 0
    while start < len(text):
        stop = start + _length(text, start)
        piece = text[start:stop]
        try:
            shown = visible(piece.decode())
        except UnicodeDecodeError:
            stop, shown = start + 1, f"\\x{text[start]:02x}"
        out.append(Glyph(shown, None if values is None else float(values[stop - 1])))
        start = stop
    return out


def visible(character: str) -> str:
    """Control and format characters as symbols: an invisible one would hide its colour or turn the text round."""
    code = ord(character)
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if code < 0x20:
        return chr(0x2400 + code)
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return f"U+{code:04X}"


def held_out(states: States) -> list[int]:
    """Documents of the test split that are not empty; of the validation split if there are none."""
    sizes = np.diff(states.document_offset)
    for split in (2, 1):
        found = np.flatnonzero((states.document_split == split) & (sizes > 0))
        if len(found):
            return [int(d) for d in found]
    return []


def labelled_documents(
    states: States, unit: int, *, each: int, longest: int, centre: float = 0.0
) -> list[ColouredDocument]:
    """Return the first `each` held-out documents of every label (0 and 1) that are at most `longest` bytes.

    If too few are that short, the first ones are shortened. The colour is tanh of the cell minus `centre`. `states`
    must store every byte and `unit`.
    """
    documents = held_out(states)
    chosen: list[int] = []
    for label in (0, 1):
        chosen += _pick(states, [d for d in documents if states.document_label[d] == label], each, longest)
    return [_document(states, d, unit, longest, centre, None, "") for d in chosen]


def tagged_documents(
    states: States,
    unit: int,
    *,
    tag: str,
    group: Callable[[str], str],
    count: int,
    longest: int,
    centre: float = 0.0,
) -> list[ColouredDocument]:
    """Return held-out documents cut into words with their tags, `tag` marked.

    group: a stored tag to the tag that the probe used. Documents where `tag` occurs come first. The colour is tanh
    of the cell minus `centre`. `states` must store every byte, words and `unit`.
    """
    if states.word_start is None or states.word_tag is None or states.attributes.text.tagset is None:
        return []
    wanted = [i for i, name in enumerate(states.attributes.text.tagset) if group(name) == tag]
    starts = states.word_start[np.isin(states.word_tag, wanted)]
    of = np.searchsorted(states.document_offset, starts, side="right") - 1
    holding = set(of.tolist())
    ordered = sorted(held_out(states), key=lambda d: d not in holding)
    return [_document(states, d, unit, longest, centre, group, tag) for d in _pick(states, ordered, count, longest)]


def _pick(states: States, documents: list[int], count: int, longest: int) -> list[int]:
    sizes = np.diff(states.document_offset)
    short = [d for d in documents if sizes[d] <= longest]
    return (short + [d for d in documents if sizes[d] > longest])[:count]


def _document(
    states: States,
    d: int,
    unit: int,
    longest: int,
    centre: float,
    group: Callable[[str], str] | None,
    tag: str,
) -> ColouredDocument:
    text = states.document_text(d)
    first, last = int(states.row_offset[d]), int(states.row_offset[d + 1])
    column = int(np.flatnonzero(states.units == unit)[0])
    cells = np.asarray(states.states[first:last, column], dtype=np.float32)
    shown = text[:longest]
    while shown != text and shown and text[len(shown)] & 0xC0 == 0x80:  # not in the middle of a character
        shown = shown[:-1]
    values = np.tanh(cells - np.float32(centre))
    pieces = tuple(
        Piece(tuple(glyphs(shown[start:stop], values[start:stop])), name, bool(tag) and name == tag)
        for start, stop, name in _spans(states, d, len(shown), group)
    )
    label = float(states.document_label[d])
    return ColouredDocument(
        states.document_ids[d],
        None if np.isnan(label) else int(label),
        pieces,
        len(shown) < len(text),
        float(cells[-1]),
    )


def _spans(states: States, d: int, size: int, group: Callable[[str], str] | None) -> Iterator[tuple[int, int, str]]:
    """Yield (start, stop, tag) that cover the first `size` bytes of document `d`; one span if no tags are asked for."""
    tagset = states.attributes.text.tagset
    if (
        group is None
        or states.word_start is None
        or states.word_end is None
        or states.word_tag is None
        or tagset is None
    ):
        yield 0, size, ""
        return
    offset = int(states.document_offset[d])
    words = range(*np.searchsorted(states.word_start, states.document_offset[d : d + 2]).tolist())
    done = 0
    for w in words:
        start, stop = int(states.word_start[w]) - offset, min(int(states.word_end[w]) - offset, size)
        if start >= size:
            break
        if start > done:
            yield done, start, "SPACE"
        yield start, stop, group(tagset[int(states.word_tag[w])])
        done = stop
    if done < size:
        yield done, size, "SPACE"


def _length(text: bytes, start: int) -> int:
    """Bytes of the UTF-8 character that begins at `start`, by its first byte."""
    first = text[start]
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
