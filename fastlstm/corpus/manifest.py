"""What a corpus folder says about itself: `manifest.json`, read strictly, written whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlstm.errors import InputError
from fastlstm.files import write_whole

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # what a run that has not finished was going to write, and the shards it has

_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}")
_HASH_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file the corpus was made from: its name without folders, size in bytes, sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardEntry:
    """One shard: `<name>.bytes` (its size, documents and sha256) and `<name>.index.npz` (its sha256)."""

    name: str
    bytes: int
    documents: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a corpus but the text.

    kind: "reviews", "wikitext", "grammar", "sst", "treebank" or "lines". preprocessing: name and version
    of what was done to the text. label_meaning: such as "stars 1-5", None without labels. tagset: names
    of the `word_tag` values, None without words. synthetic: the text was generated. skipped: malformed
    lines left out. duplicates: documents left out because an earlier one has the same text. settings: what else
    determines the content. splits: shards in order; an empty split is
    absent.
    """

    format_version: int
    kind: str
    preprocessing: str
    label_meaning: str | None
    tagset: tuple[str, ...] | None
    synthetic: bool
    sources: tuple[Source, ...]
    skipped: int
    duplicates: int
    settings: dict[str, Any]
    splits: dict[str, tuple[ShardEntry, ...]]

    def documents(self, split: str) -> int:
        """Documents in a split; 0 if it is absent."""
        return sum(entry.documents for entry in self.splits.get(split, ()))

    def bytes(self, split: str) -> int:
        """Bytes in a split; 0 if it is absent."""
        return sum(entry.bytes for entry in self.splits.get(split, ()))

    def text_sha256(self) -> str:
        """Identity of the text: sha256 of preprocessing, tag set, sizes and hashes of all shards.

        Names of files, sources and settings do not count: the same text from elsewhere is the same text.
        """
        content = {
            "preprocessing": self.preprocessing,
            "tagset": self.tagset,
            "splits": {
                split: [[e.documents, e.bytes, e.sha256, e.index_sha256] for e in entries]
                for split, entries in self.splits.items()
            },
        }
        return hashlib.sha256(canonical_json(content)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON in one spelling (sorted keys, no spaces, ASCII), for hashing and comparing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def source_of(path: Path) -> Source:
    """Name, size and sha256 of a file, read in blocks."""
    return Source(path.name, path.stat().st_size, sha256_of_file(path))


def sha256_of_file(path: Path, on_read: Callable[[int], object] | None = None) -> str:
    """sha256 of a file, hexadecimal; on_read is called with the size of every block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            if on_read is not None:
                on_read(len(block))
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a corpus folder, whole or not at all."""
    content = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_whole(folder / MANIFEST, content.encode("ascii"))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus folder.

    Raises InputError naming the folder or file if there is none or it is not of this format.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a corpus folder, found {'a file' if folder.exists() else 'nothing'}")
    if not path.is_file():
        raise InputError(f"{folder}: no {MANIFEST}: not a corpus, or one whose preparation has not finished")
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: corpus format version {version!r}, expected {FORMAT_VERSION}")
    names = {field.name for field in dataclasses.fields(Manifest)}
    if set(fields) != names:
        raise InputError(f"{path}: missing or unknown fields: {', '.join(sorted(set(fields) ^ names))}")
    try:
        manifest = Manifest(
            **{
                **fields,
                "tagset": None if fields["tagset"] is None else tuple(fields["tagset"]),
                "sources": tuple(Source(**source) for source in fields["sources"]),
                "splits": entries_of(fields["splits"]),
            }
        )
    except (TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: a field has the wrong form ({error})") from None
    for split, entries in manifest.splits.items():
        for entry in entries:
            if split not in SPLITS or not _SHARD_NAME.fullmatch(entry.name):
                raise InputError(f"{path}: shard {entry.name!r} of split {split!r} is not a valid name")
    return manifest


def entries_of(splits: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[ShardEntry, ...]]:
    """Shard entries from their JSON form, splits in the order train, valid, test, unknown ones last."""
    order = sorted(splits, key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))
    return {split: tuple(ShardEntry(**entry) for entry in splits[split]) for split in order}
