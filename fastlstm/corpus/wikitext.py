"""WikiText: raw or tokenised files, headings and blank lines removed, every paragraph a document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastlstm.corpus.sources import LineBlock
from fastlstm.errors import InputError

ENDINGS = (".tokens", ".raw", ".txt")
PREPROCESSING = "seed-wikitext-1"
NO_HEADING_RUN = 50

# Carvalho 2018, preprocess_data: lines that are dropped.
_DROPPED = re.compile(r"( )*$|( = ).")
_TITLE = re.compile(r" = (?!= ).* = *$")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph. text: bytes as the model reads them; article: what must stay in one split."""

    id: str
    text: bytes
    article: str


def split_of_file(path: Path) -> str | None:
    """The split a file's name tells (WikiText's own files): "train", "valid" or "test", else None."""
    found = [split for split in ("train", "valid", "test") if split in path.name.lower()]
    return found[0] if len(found) == 1 else None


def preprocess(line: str) -> bytes:
    """A kept line as the model reads it: newline, its own leading space, the line, newline (UTF-8).

    The published preprocessing of Carvalho 2018; a line that has no leading space gets one.
    """
    return ("\n " + line.removeprefix(" ") + "\n").encode("utf-8")


def paragraphs(path: Path, blocks: Iterator[LineBlock]) -> Iterator[Paragraph]:
    """The paragraphs of a file in order.

    An article begins at a heading of the first level (` = Title = `). In a text whose headings were
    removed, runs of 50 paragraphs count as articles. Raises InputError naming file and line for a line
    that is not UTF-8.
    """
    article = None
    kept = 0
    for block in blocks:
        lines = block.data.split(b"\n")
        for number, raw in enumerate(lines, start=block.first_line):
            try:
                line = raw.decode("utf-8").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {number}: not UTF-8 (byte {error.start} of the line)") from None
            if _DROPPED.match(line):
                if _TITLE.match(line):
                    article = f"{path.name}\0{number}\0{line.strip(' =')}"
                continue
            unit = article or f"{path.name}\0{kept // NO_HEADING_RUN}"
            yield Paragraph(f"{path.name[-60:]}:{number}", preprocess(line), unit)
            kept += 1
