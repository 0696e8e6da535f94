"""Reviews that training did not read, with their sentiment and, if wanted, the tags of their words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fastlstm.corpus.reviews import SENTIMENT, STARS
from fastlstm.corpus.shards import Corpus, Document, Shard
from fastlstm.errors import InputError
from fastlstm_probes.concepts.labelling import (
    SPACE_AT_END,
    LabelSummary,
    TagSource,
    check_documents,
    hash_of,
    space_at_end,
    split_of,
    tagger_version,
    write_labelled,
)
from fastlstm_probes.concepts.penn import PENN_TAGS
from fastlstm_probes.concepts.tagging import nltk_models, tag_text


def label_reviews(
    corpus_folder: str | Path,
    out: str | Path,
    *,
    documents: int | None = None,
    splits: Sequence[str] = ("valid", "test"),
    tags: TagSource = "none",
    seed: int = 0,
    progress: bool = True,
) -> LabelSummary:
    """Write held-out reviews of a prepared corpus as a labelled text of the same kind.

    The reviews are `documents` (None: all) of the corpus's `splits`, by default those that training does not
    read, chosen and ordered by a hash of the id, so that any first part of them is a fair sample. Of reviews with the
    same text the first is taken and the others are counted. Their new splits are 80 % train, 10 % valid, 10 % test
    by a hash of the text: the same text is in the same split of every text labelled with this seed. The newline that
    ends a review is a space, as in the SST protocol. Label: 1 for more than 3 stars, 0 for fewer, none for 3 or no
    stars; labels that are 0/1 stay. Classes are not balanced: the summary counts them.

    tags: "none"; "nltk", NLTK's tags; "gold", the corpus's own. `seed` makes another choice and split.

    Raises InputError: no such corpus or splits without documents, labels of an unknown meaning, gold tags
    asked of a corpus without, a review that is not UTF-8, NLTK's data missing.
    """
    check_documents(documents)
    corpus = Corpus(corpus_folder)
    manifest = corpus.manifest
    if manifest.label_meaning not in (STARS, SENTIMENT, None):
        raise InputError(
            f"{corpus.folder}: labels mean {manifest.label_meaning!r}, expected {STARS!r} or {SENTIMENT!r}"
        )
    if tags not in ("none", "nltk", "gold"):
        raise InputError(f"tags: got {tags!r}, expected none, nltk or gold")
    if tags == "gold" and manifest.tagset is None:
        raise InputError(f"{corpus.folder}: no tagged words, so no gold tags; use nltk")
    if tags == "nltk":
        nltk_models()
    tagset = {"none": None, "nltk": PENN_TAGS, "gold": manifest.tagset}[tags]

    shards = [corpus.open_shard(entry) for split in splits for entry in corpus.shards(split)]
    places = sorted(
        (hash_of("order", seed, document_id), s, d)
        for s, shard in enumerate(shards)
        for d, document_id in enumerate(shard.ids)
    )
    if not places:
        raise InputError(f"{corpus.folder}: no documents in {' or '.join(splits)}")

    def text_of(shard: Shard, d: int) -> bytes:
        return space_at_end(shard.bytes[shard.offset[d] : shard.offset[d + 1]].tobytes())

    chosen: dict[str, tuple[Shard, int]] = {}  # by the sha256 of the text
    duplicates = 0
    for _, s, d in places:
        if len(chosen) == documents:
            break
        key = hashlib.sha256(text_of(shards[s], d)).hexdigest()
        duplicates += key in chosen
        chosen.setdefault(key, (shards[s], d))

    def labelled() -> Iterator[tuple[str, Document]]:
        for key, (shard, d) in chosen.items():
            text = text_of(shard, d)
            words = None
            if tags == "nltk":
                words = tuple(tag_text(_decode(text, f"{corpus.folder}: document {shard.ids[d]!r}")))
            elif tags == "gold":
                words = corpus.words(shard, d)
            label = sentiment(float(shard.label[d]), manifest.label_meaning)
            yield split_of(key, seed), Document(shard.ids[d], text, label, words)

    return write_labelled(
        out,
        labelled(),
        total=len(chosen),
        progress=progress,
        sources=manifest.sources,
        duplicates=duplicates,
        kind=manifest.kind,
        preprocessing=f"{manifest.preprocessing} {SPACE_AT_END}",
        label_meaning=manifest.label_meaning and SENTIMENT,
        tagset=tagset,
        synthetic=manifest.synthetic,
        settings={
            "corpus": corpus.sha256,
            "documents": documents,
            "splits": list(splits),
            "tags": tags,
            "tagger": tagger_version(tags),
            "seed": seed,
            "split_by": "text",
        },
    )


def sentiment(label: float, meaning: str | None) -> float | None:
    """A review's class from its label: 0.0 negative, 1.0 positive, None if it has none (or 3 stars, or
    NaN)."""
    if meaning is None or np.isnan(label):
        return None
    if meaning == SENTIMENT:
        return label
    return None if label == 3 else float(label > 3)


def _decode(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}: {error.reason}") from error
