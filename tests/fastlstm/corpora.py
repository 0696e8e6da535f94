"""Small corpora for tests, written through the package's own writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastlstm.corpus.shards import Corpus, CorpusWriter, Document


def write_corpus(
    folder: Path, texts: dict[str, Sequence[bytes]], *, documents_per_shard: int = 1000, kind: str = "lines"
) -> Corpus:
    """A corpus of the given documents by split."""
    with CorpusWriter(folder, kind=kind, preprocessing="none-1", documents_per_shard=documents_per_shard) as writer:
        for split, documents in texts.items():
            for number, text in enumerate(documents):
                writer.add(split, Document(id=f"{split}-{number}", text=text))
        writer.finish()
    return Corpus(folder)


def random_text(documents: int, size: int, seed: int = 0) -> list[bytes]:
    """Documents of ``size`` random letters: bytes that differ, so that a wrong offset shows."""
    generator = np.random.default_rng(seed)
    return [generator.integers(97, 123, size, dtype=np.uint8).tobytes() for _ in range(documents)]
