"""Texts for the part-of-speech probes: lines tagged by NLTK, treebank sentences with their gold tags."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Literal

from fastlstm.corpus.shards import Document, Word, source_of
from fastlstm.corpus.sources import line_blocks
from fastlstm.corpus.wikitext import PREPROCESSING, paragraphs
from fastlstm.errors import InputError
from fastlstm_probes.concepts.labelling import (
    SPACE_AT_END,
    LabelSummary,
    check_documents,
    space_at_end,
    split_of,
    tagger_version,
    write_labelled,
)
from fastlstm_probes.concepts.penn import PENN_TAGS
from fastlstm_probes.concepts.tagging import nltk_data_missing, nltk_models, tag_text

# The treebank's files are bracketed trees, so that it spells brackets by name and escapes / and *.
BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LCB-": "{", "-RCB-": "}"}
BRACKET_TAGS = {"-LRB-": "(", "-RRB-": ")"}
EMPTY_CATEGORY = "-NONE-"


def label_lines(
    file: str | Path,
    out: str | Path,
    *,
    documents: int | None = None,
    tags: Literal["nltk", "none"] = "nltk",
    progress: bool = True,
) -> LabelSummary:
    """Write the lines of a text file (UTF-8) as a corpus of kind "lines", tagged by NLTK.

    Each of the first `documents` (None: all) lines that is neither blank nor a WikiText heading is a
    document, as `fastlstm prepare wikitext` makes it but for a space in place of the newline at its end.
    Splits are 80 % train, 10 % valid, 10 % test by a hash of the line's number and the file's name. The file
    may be a .gz or .zst archive.

    Raises InputError: no such file, nothing in it, a line that is not UTF-8 (named), NLTK's data missing.
    """
    check_documents(documents)
    if tags not in ("none", "nltk"):
        raise InputError(f"tags: got {tags!r}, expected none or nltk")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if tags == "nltk":
        nltk_models()
    source = source_of(path)
    total = sum(1 for _ in islice(paragraphs(path, line_blocks(path)), documents))
    if total == 0:
        raise InputError(f"{path}: no line with text in it")

    def labelled() -> Iterator[tuple[str, Document]]:
        for paragraph in islice(paragraphs(path, line_blocks(path)), documents):
            text = space_at_end(paragraph.text)
            words = tuple(tag_text(text.decode())) if tags == "nltk" else None
            yield split_of(paragraph.id), Document(paragraph.id, text, None, words)

    return write_labelled(
        out,
        labelled(),
        total=total,
        progress=progress,
        sources=[source],
        kind="lines",
        preprocessing=f"{PREPROCESSING} {SPACE_AT_END}",
        tagset=PENN_TAGS if tags == "nltk" else None,
        settings={
            "file": source.sha256,
            "documents": documents,
            "tags": tags,
            "tagger": tagger_version(tags),
        },
    )


def label_treebank(out: str | Path, *, documents: int | None = 1000, progress: bool = True) -> LabelSummary:
    """Write NLTK's sample of the Penn Treebank (Wall Street Journal) as a corpus of kind "treebank", gold
    tags.

    Each of the first `documents` (None: all 3,914) sentences is a document: newline and space, its words
    joined by single spaces as in Carvalho 2018 (the treebank has no other spacing), a space. The empty
    categories (-NONE-) are left out; in Carvalho's 136,784 bytes of 1,000 sentences they were still words of
    the text. Brackets, / and * are themselves, not the treebank's spellings of them, and brackets have the
    tags ( and ) that NLTK's tagger gives. Splits are 80 % train, 10 % valid, 10 % test by a hash of the
    sentence's id.

    Raises InputError if NLTK's data is missing.
    """
    check_documents(documents)
    from nltk.corpus import treebank  # here and not above: importing it takes a second

    try:
        files = treebank.fileids()
    except LookupError as error:
        raise nltk_data_missing(error) from error

    def labelled() -> Iterator[tuple[str, Document]]:
        for file in files:
            for number, sentence in enumerate(treebank.tagged_sents(file), 1):
                document_id = f"{Path(file).stem}-{number}"
                text, words = treebank_text(sentence)
                yield split_of(document_id), Document(document_id, text, None, words)

    return write_labelled(
        out,
        islice(labelled(), documents),
        total=documents,
        progress=progress,
        kind="treebank",
        preprocessing="treebank-1",
        tagset=PENN_TAGS,
        settings={"documents": documents, "nltk": version("nltk")},
    )


def treebank_text(sentence: list[tuple[str, str]]) -> tuple[bytes, tuple[Word, ...]]:
    """A sentence of (word, tag) pairs as text and words, as `label_treebank` says."""
    text = b"\n "
    words = []
    for written, tag in sentence:
        if tag == EMPTY_CATEGORY:
            continue
        word = BRACKETS.get(written, written).replace("\\/", "/").replace("\\*", "*").encode()
        words.append(Word(len(text), len(text) + len(word), BRACKET_TAGS.get(tag, tag)))
        text += word + b" "
    return text, tuple(words)
