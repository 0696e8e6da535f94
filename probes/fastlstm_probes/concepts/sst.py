"""The binary sentences of the Stanford Sentiment Treebank (Socher et al. 2013), as the probe reads them."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator
from pathlib import Path

from fastlstm.corpus.reviews import SENTIMENT
from fastlstm.corpus.shards import Document, source_of
from fastlstm.errors import InputError
from fastlstm_probes.concepts.labelling import LabelSummary, write_labelled

FILES = {"train": "train_binary_sent.csv", "valid": "dev_binary_sent.csv", "test": "test_binary_sent.csv"}
COLUMNS = ["label", "sentence"]


def sst_text(sentence: str) -> bytes:
    """A sentence as Radford et al. 2017 give it to the model (`preprocess` in their `utils.py`), UTF-8."""
    return ("\n " + html.unescape(sentence).replace("\n", " ").strip() + " ").encode()


def label_sst(folder: str | Path, out: str | Path, *, progress: bool = True) -> LabelSummary:
    """Write SST as a corpus of kind "sst": one document per sentence, label 0 (negative) or 1 (positive).

    `folder` holds {train,dev,test}_binary_sent.csv with the columns label,sentence, as published with Radford
    et al. 2017 (6,920 / 872 / 1,821 sentences); the files are the splits, dev is "valid".

    Raises InputError naming the file, and the line where there is one, for a missing or empty file, other
    columns, a label that is not 0 or 1, an empty sentence, or bytes that are not UTF-8.
    """
    paths = {split: Path(folder) / name for split, name in FILES.items()}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected {', '.join(FILES.values())} in one folder")
    sources = [source_of(path) for path in paths.values()]
    return write_labelled(
        out,
        ((split, document) for split, path in paths.items() for document in _read(split, path)),
        total=None,
        progress=progress,
        sources=sources,
        kind="sst",
        preprocessing="sst-1",
        label_meaning=SENTIMENT,
        settings={"files": {source.name: source.sha256 for source in sources}},
    )


def _read(split: str, path: Path) -> Iterator[Document]:
    content = path.read_bytes()
    try:
        rows = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8: {error.reason}") from error
    try:
        if (header := next(rows, [])) != COLUMNS:
            found = repr(",".join(header)[:60]) if header else "nothing"
            raise InputError(f"{path}, line 1: got {found}, expected the columns {','.join(COLUMNS)}")
        number = -1
        for number, row in enumerate(rows):
            where = f"{path}, line {rows.line_num}"
            if len(row) != 2:
                raise InputError(f"{where}: got {len(row)} columns, expected 2")
            label, sentence = row
            if label not in ("0", "1"):
                raise InputError(f"{where}: got label {label[:20]!r}, expected 0 or 1")
            if not sentence.strip():
                raise InputError(f"{where}: the sentence is empty")
            yield Document(id=f"sst-{split}-{number}", text=sst_text(sentence), label=float(label))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not CSV: {error}") from error
    if number < 0:
        raise InputError(f"{path}: no sentences after the header")
