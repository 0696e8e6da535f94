"""From what is published (or generated) to a corpus folder: `prepare_reviews`, `prepare_wikitext`, `prepare_grammar`.

All three may be killed at any moment and run again: the folder ends with the same bytes. Lines that were left out
stand in `skipped.jsonl` beside the shards, one JSON object each: file, line (from 1), reason.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Never

from tqdm import tqdm

from fastlstm.corpus import grammar, reviews, wikitext
from fastlstm.corpus.duplicates import SeenTexts
from fastlstm.corpus.manifest import (
    SPLITS,
    Manifest,
    Source,
    canonical_json,
    sha256_of_file,
)
from fastlstm.corpus.parallel import ordered_map, worker_count
from fastlstm.corpus.reviews import Review, SkippedLine
from fastlstm.corpus.sources import LineBlock, find_sources, line_blocks
from fastlstm.corpus.splits import CountedSplits, Fractions, HashSplits, key_hash
from fastlstm.corpus.writer import SKIPPED, CorpusWriter, Document
from fastlstm.errors import InputError
from fastlstm.files import PARTIAL, naming

_log = logging.getLogger(__name__)

# Below this size the text is read twice, so that the shares of its splits are exact and none is empty.
_SMALL_SOURCE_BYTES = 16 << 20
_SMALL_DOCUMENTS = 100_000
_GRAMMAR_BLOCK = 1_000


def prepare_reviews(
    sources: Sequence[Path],
    out: Path,
    *,
    reviews_per_shard: int = 80_000,
    valid_fraction: float = 0.01,
    test_fraction: float = 0.01,
    max_bad_lines: int = 100,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Reviews (layouts: `reviews.py`; plain, .gz or .zst; files and folders) to a corpus of kind "reviews".

    Labels are stars (1-5), or 0/1 where the lines have a class instead. Reviews of one product (or, without a
    product, with one id) are in one split. A review whose text is that of an earlier one, byte for byte, is left out,
    whatever its stars and its product, and counted in `Manifest.duplicates`: publishers list one review under many
    products, and a text must not be in two splits. (Carvalho 2018 kept them all.) Malformed lines are left out, at
    most `max_bad_lines` of them; records whose text is empty are left out and not counted as malformed. limit: the
    first so many reviews that are kept. workers: processes, default all cores for more than 16 MiB of files; the
    result does not depend on it. Memory: 16 bytes a review for the duplicates, and one open shard of each split.

    Raises InputError naming the file: no such file, a truncated or damaged archive, too many malformed lines, no
    review at all, stars and classes mixed; or naming the folder, if it holds another corpus.
    """
    if max_bad_lines < 0:
        raise InputError(f"max_bad_lines: got {max_bad_lines}, expected at least 0")
    if limit is not None and limit < 1:
        raise InputError(f"limit: got {limit}, expected at least 1")
    fractions = Fractions(valid_fraction, test_fraction)
    paths = find_sources(sources, reviews.ENDINGS, out)
    small_files = sum(path.stat().st_size for path in paths) <= _SMALL_SOURCE_BYTES
    processes = worker_count(workers, small_files)
    small = small_files or (limit is not None and limit <= _SMALL_DOCUMENTS)

    def read(description: str, keep: Callable[[Path, Review], None]) -> _LeftOut:
        with _SkippedLog(out) as log:
            return _read_reviews(paths, processes, limit, max_bad_lines, description, progress, keep, log)

    found = _hash_sources(paths, progress)
    with CorpusWriter(
        out,
        kind="reviews",
        preprocessing=reviews.PREPROCESSING,
        settings={
            "sources_sha256": _identity(found),
            "valid_fraction": valid_fraction,
            "test_fraction": test_fraction,
            "limit": limit,
        },
        documents_per_shard=reviews_per_shard,
    ) as writer:
        if writer.finished:
            return writer.finished
        split_of: HashSplits | CountedSplits = HashSplits(fractions)
        if small:
            counts: Counter[int] = Counter()
            read("counting", lambda path, review: counts.update((review.key,)))
            split_of = CountedSplits(counts, fractions)

        meaning: str | None = None

        def keep(path: Path, review: Review) -> None:
            nonlocal meaning
            meaning = meaning or review.label_meaning
            if review.label_meaning not in (None, meaning):
                raise InputError(
                    f"{path}, line {review.line}: the label is {review.label_meaning}, but the first labelled review "
                    f"has {meaning}: prepare the two kinds apart"
                )
            writer.add_arrays(split_of(review.key), id=review.id, text=review.text, label=review.label)

        left_out = read("preparing", keep)
        manifest = writer.finish(found, left_out.malformed, left_out.duplicates, meaning)
    _warn_of_empty_splits(manifest, fractions)
    return manifest


def prepare_wikitext(
    sources: Sequence[Path],
    out: Path,
    *,
    lines_per_shard: int = 9_000,
    valid_fraction: float = 0.01,
    test_fraction: float = 0.01,
    progress: bool = True,
) -> Manifest:
    """WikiText files (.tokens, .raw, .txt; plain, .gz or .zst; files and folders) to a corpus of kind "wikitext".

    Headings and blank lines are removed, each paragraph is a document without a label. If every file's name holds
    "train", "valid" or "test", and one is a train file, those are the splits; else whole articles are divided by
    the fractions. Raises InputError naming the file for text that is not UTF-8, a damaged archive, no paragraph.
    """
    fractions = Fractions(valid_fraction, test_fraction)
    paths = find_sources(sources, wikitext.ENDINGS, out)
    own_splits = [wikitext.split_of_file(path) for path in paths]
    by_file = None not in own_splits and "train" in own_splits
    found = _hash_sources(paths, progress)
    settings: dict[str, Any] = {"sources_sha256": _identity(found)}
    if not by_file:
        settings |= {"valid_fraction": valid_fraction, "test_fraction": test_fraction}
    with CorpusWriter(
        out,
        kind="wikitext",
        preprocessing=wikitext.PREPROCESSING,
        settings={**settings, "split_by": "file" if by_file else "article"},
        documents_per_shard=lines_per_shard,
    ) as writer:
        if writer.finished:
            return writer.finished
        split_of: HashSplits | CountedSplits = HashSplits(fractions)
        if not by_file and sum(source.bytes for source in found) <= _SMALL_SOURCE_BYTES:
            counts = Counter(
                key_hash(p.article) for path in paths for p in wikitext.paragraphs(path, line_blocks(path))
            )
            split_of = CountedSplits(counts, fractions)
        with _bytes_bar(paths, "preparing", progress) as bar:
            for path, own_split in zip(paths, own_splits, strict=True):
                for paragraph in wikitext.paragraphs(path, line_blocks(path, bar.update)):
                    split = own_split if by_file and own_split else split_of(key_hash(paragraph.article))
                    writer.add(split, Document(paragraph.id, paragraph.text))
        manifest = writer.finish(found)
    _warn_of_empty_splits(manifest, fractions)
    return manifest


def prepare_grammar(
    out: Path,
    *,
    reviews: int = 40_000,
    seed: int = 0,
    reviews_per_shard: int = 80_000,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.1,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Generated reviews (`grammar.py`) with sentiment labels 0/1 and Penn tags, kind "grammar", marked synthetic.

    A review is about 145 bytes. Reviews 0 .. reviews - 1 of the seed; each is divided by hash of its id.
    """
    if reviews < 1:
        raise InputError(f"reviews: got {reviews}, expected at least 1")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: got {seed}, expected 0 to 2**64 - 1")
    fractions = Fractions(valid_fraction, test_fraction)
    small = reviews <= _SMALL_DOCUMENTS
    processes = worker_count(workers, small)
    with CorpusWriter(
        out,
        kind="grammar",
        preprocessing=grammar.PREPROCESSING,
        label_meaning="sentiment 0/1",
        tagset=grammar.tagset(),
        synthetic=True,
        settings={
            "reviews": reviews,
            "seed": seed,
            "valid_fraction": valid_fraction,
            "test_fraction": test_fraction,
        },
        documents_per_shard=reviews_per_shard,
    ) as writer:
        if writer.finished:
            return writer.finished
        split_of: HashSplits | CountedSplits = HashSplits(fractions)
        if small:
            split_of = CountedSplits({key_hash(_grammar_id(seed, r)): 1 for r in range(reviews)}, fractions)
        blocks = ((first, min(_GRAMMAR_BLOCK, reviews - first)) for first in range(0, reviews, _GRAMMAR_BLOCK))
        with tqdm(total=reviews, desc="generating", unit="review", unit_scale=True, disable=not progress) as bar:
            for block in ordered_map(functools.partial(_generate, seed), blocks, processes):
                _add_block(writer, seed, block, split_of)
                bar.update(len(block.label))
        manifest = writer.finish()
    _warn_of_empty_splits(manifest, fractions)
    return manifest


def _grammar_id(seed: int, review: int) -> str:
    return f"grammar-{seed}-{review}"


def _generate(seed: int, block: tuple[int, int]) -> grammar.GrammarBlock:
    return grammar.generate(seed, *block)


def _add_block(writer: CorpusWriter, seed: int, block: grammar.GrammarBlock, split_of: Callable[[int], str]) -> None:
    offset, words = block.offset.tolist(), block.word_offset.tolist()
    for r, label in enumerate(block.label.tolist()):
        id = _grammar_id(seed, block.first + r)
        own = slice(words[r], words[r + 1])
        writer.add_arrays(
            split_of(key_hash(id)),
            id=id,
            text=block.text[offset[r] : offset[r + 1]],
            label=label,
            word_start=block.word_start[own] - offset[r],
            word_end=block.word_end[own] - offset[r],
            word_tag=block.word_tag[own],
        )


class _LeftOut(NamedTuple):
    """How many lines of a pass are malformed, and how many reviews have the text of an earlier one."""

    malformed: int
    duplicates: int


def _read_reviews(
    paths: Sequence[Path],
    processes: int,
    limit: int | None,
    max_bad_lines: int,
    description: str,
    progress: bool,
    keep: Callable[[Path, Review], None],
    log: _SkippedLog,
) -> _LeftOut:
    """Pass every review with a new text to `keep` in order, every line without a review to the log."""
    kept = malformed = duplicates = 0
    seen = SeenTexts()
    with _bytes_bar(paths, description, progress) as bar:

        def blocks() -> Iterator[LineBlock]:
            for path in paths:
                yield from line_blocks(path, bar.update)

        for path, lines in ordered_map(_parse, blocks(), processes):
            for line in lines:
                if isinstance(line, Review):
                    if not seen.first(line.digest):
                        duplicates += 1
                        continue
                    keep(path, line)
                    kept += 1
                    if kept == limit:
                        return _LeftOut(malformed, duplicates)
                    continue
                log.write(path, line)
                malformed += line.malformed
                if malformed > max_bad_lines:
                    raise InputError(
                        f"{path}, line {line.line}: {line.reason}; more than {max_bad_lines} malformed lines "
                        "(max_bad_lines)"
                    )
            bar.set_postfix_str(f"{kept:,} reviews, {duplicates:,} duplicates, {malformed} malformed", refresh=False)
    for path in paths:
        if path.stat().st_size == 0:
            log.write(path, SkippedLine(0, "empty file", malformed=False))
            _log.warning("%s: the file is empty", path)
    if not kept:
        raise InputError(
            f"{paths[0] if len(paths) == 1 else f'{len(paths)} files'}: no review found ({malformed} malformed lines)"
        )
    return _LeftOut(malformed, duplicates)


def _parse(block: LineBlock) -> tuple[Path, list[Review | SkippedLine]]:
    return block.path, reviews.parse_block(block)


def _bytes_bar(paths: Sequence[Path], description: str, progress: bool) -> tqdm[Never]:
    total = sum(path.stat().st_size for path in paths)
    bar: tqdm[Never] = tqdm(total=total, desc=description, unit="B", unit_scale=True, disable=not progress)
    return bar


def _hash_sources(paths: Sequence[Path], progress: bool) -> list[Source]:
    with _bytes_bar(paths, "hashing sources", progress) as bar:
        return [Source(path.name, path.stat().st_size, sha256_of_file(path, bar.update)) for path in paths]


def _identity(sources: Sequence[Source]) -> str:
    """One hash of all sources, order included: a killed run goes on only with the same ones."""
    return hashlib.sha256(canonical_json([[s.name, s.bytes, s.sha256] for s in sources])).hexdigest()


def _warn_of_empty_splits(manifest: Manifest, fractions: Fractions) -> None:
    wanted = {"train": True, "valid": fractions.valid > 0, "test": fractions.test > 0}
    for split in SPLITS:
        if wanted[split] and not manifest.documents(split):
            total = sum(manifest.documents(other) for other in SPLITS)
            _log.warning("the %s split is empty: %d documents are too few to divide, or of too few kinds", split, total)


class _SkippedLog:
    """`skipped.jsonl`, written only if there is something to write, and also when preparing fails."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SKIPPED
        self._partial = folder / (SKIPPED + PARTIAL)

    def __enter__(self) -> _SkippedLog:
        self._file = self._partial.open("w", encoding="ascii")
        return self

    def write(self, path: Path, line: SkippedLine) -> None:
        entry = {"file": str(path), "line": line.line, "reason": line.reason, "malformed": line.malformed}
        with naming(self._path):
            self._file.write(json.dumps(entry) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with naming(self._path):
            self._file.close()
        if self._partial.stat().st_size:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()
            self._path.unlink(missing_ok=True)
