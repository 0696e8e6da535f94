"""What the labelled texts have in common: how they are split, written and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from fastlstm.corpus.shards import SPLITS, Corpus, CorpusWriter, Document, Source
from fastlstm.errors import InputError

TagSource = Literal["none", "nltk", "gold"]

SPACE_AT_END = "space-at-end-1"
"""What `space_at_end` adds to the name of a text's preprocessing."""

TRAIN_SHARE, VALID_SHARE = 0.8, 0.1  # the rest is test


@dataclass(frozen=True)
class LabelSummary:
    """What a labelled text holds.

    documents: documents per split. labels: per split, documents that are "negative", "positive" or without a
    label ("none"). duplicates: documents left out because a document that is in has the same text. tags: words
    per tag, commonest first; empty without words. bytes, words: of the whole text.
    """

    folder: Path
    documents: dict[str, int]
    labels: dict[str, dict[str, int]]
    duplicates: int
    tags: dict[str, int]
    bytes: int
    words: int


def split_of(key: str, seed: int = 0) -> str:
    """The split of a document, by a hash of its key: 80 % "train", 10 % "valid", 10 % "test".

    The key is the document's id, or the sha256 of its text where equal texts must not be parted.

    The hash is not the one that made the splits of a prepared corpus: all of its "test" documents would share
    a range of that one.
    """
    share = hash_of("split", seed, key) / 2**64
    if share < TRAIN_SHARE:
        return "train"
    return "valid" if share < TRAIN_SHARE + VALID_SHARE else "test"


def space_at_end(text: bytes) -> bytes:
    """A document with a space in place of the newline that ends it, so that its last state is read after a
    space.

    As SST sentences end in Radford et al. 2017; no other byte moves.
    """
    return text[:-1] + b" " if text.endswith(b"\n") else text


def hash_of(purpose: str, seed: int, key: str) -> int:
    """64 bits of the sha256 of a document's key; another number for another purpose or seed."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def tagger_version(tags: TagSource) -> str | None:
    """Where the tags of a text come from, for its settings: tags of another NLTK are another text."""
    return f"nltk {version('nltk')} averaged_perceptron_tagger_eng" if tags == "nltk" else None


def check_documents(documents: int | None) -> None:
    """InputError unless a number of documents is None (all) or at least 1."""
    if documents is not None and documents < 1:
        raise InputError(f"documents: got {documents}, expected at least 1")


def write_labelled(
    out: str | Path,
    documents: Iterable[tuple[str, Document]],
    *,
    total: int | None,
    progress: bool,
    sources: Sequence[Source] = (),
    duplicates: int = 0,
    **header: Any,
) -> LabelSummary:
    """Write (split, document) pairs as a corpus folder and count what it holds.

    total: how many pairs to expect, for the progress bar. duplicates: documents left out as the same text.
    header: arguments of `CorpusWriter`. A folder that
    holds the finished text of the same header is left as it is. Raises InputError if it holds anything else.
    """
    with CorpusWriter(out, **header) as writer:
        if writer.finished is None:
            bar = tqdm(documents, "label", total, unit=" documents", smoothing=0, disable=not progress)
            for split, document in bar:
                writer.add(split, document)
            writer.finish(sources, duplicates=duplicates)
    return summarise(out)


def summarise(folder: str | Path) -> LabelSummary:
    """Count the documents, labels and tags of a labelled text; its files are verified on the way."""
    corpus = Corpus(folder)
    tagset = corpus.manifest.tagset or ()
    words_of_tag = np.zeros(len(tagset), np.int64)
    documents: dict[str, int] = {}
    labels: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        documents[split] = corpus.manifest.documents(split)
        labels[split] = {"negative": 0, "positive": 0, "none": 0}
        for entry in corpus.shards(split):
            shard = corpus.open_shard(entry)
            labels[split]["negative"] += int((shard.label == 0).sum())
            labels[split]["positive"] += int((shard.label == 1).sum())
            labels[split]["none"] += int(np.isnan(shard.label).sum())
            if shard.word_tag is not None:
                words_of_tag += np.bincount(shard.word_tag, minlength=len(tagset))
    commonest_first = np.argsort(-words_of_tag, kind="stable").tolist()
    return LabelSummary(
        folder=Path(folder),
        documents=documents,
        labels=labels,
        duplicates=corpus.manifest.duplicates,
        tags={tagset[i]: int(words_of_tag[i]) for i in commonest_first if words_of_tag[i]},
        bytes=sum(corpus.manifest.bytes(split) for split in SPLITS),
        words=int(words_of_tag.sum()),
    )
