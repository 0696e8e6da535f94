"""Reviews as they are published: one JSON object per line, in the layouts of the public Amazon sets.

Text is `reviewText` (UCSD/McAuley 2014 and 2018) or `text` (2023, plain JSON lines); stars are `overall`,
`stars` or `rating`; a class is `label` (0 or 1; stars win where a line has both, `label` wins over
`rating`). Some 2014 files hold Python dictionaries instead of JSON; those lines are read too.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastlstm.corpus.duplicates import text_digest
from fastlstm.corpus.sources import LineBlock
from fastlstm.corpus.splits import key_hash
from fastlstm.corpus.writer import MAX_ID_BYTES

ENDINGS = (".json", ".jsonl", ".ndjson")
PREPROCESSING = "seed-reviews-1"
STARS = "stars 1-5"
SENTIMENT = "sentiment 0/1"


@dataclass(frozen=True, slots=True)
class Review:
    """A review. text: preprocessed bytes; label_meaning: STARS, SENTIMENT, or None without a label; key:
    hash of the product, or of the id where no product is known; digest: of the text; line: where it stood."""

    line: int
    id: str
    text: bytes
    label: float | None
    label_meaning: str | None
    key: int
    digest: int


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A line without a usable review. malformed: False if it is a record whose text is empty."""

    line: int
    reason: str
    malformed: bool = True


class _BadLineError(Exception):
    """Why a line is malformed."""


def preprocess(text: str) -> bytes:
    """Text as the model reads it (Carvalho 2018): newlines to spaces, stripped, newline + space before,
    newline after.

    UTF-8. Raises UnicodeEncodeError for lone surrogates, which JSON escapes can hold.
    """
    return ("\n " + text.replace("\n", " ").strip() + "\n").encode("utf-8")


def parse_block(block: LineBlock) -> list[Review | SkippedLine]:
    """The reviews, malformed lines and empty texts of a block, in order; blank lines are ignored."""
    return list(_parsed(block))


def _parsed(block: LineBlock) -> Iterator[Review | SkippedLine]:
    for number, line in enumerate(block.data.split(b"\n"), start=block.first_line):
        if not line or line.isspace():
            continue
        try:
            yield _review(number, _record(line))
        except _BadLineError as error:
            yield SkippedLine(number, str(error))


def _record(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _BadLineError(f"not UTF-8 (byte {error.start} of the line)") from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.startswith("{'"):
            raise _BadLineError(f"not JSON ({error})") from None
        try:
            with warnings.catch_warnings():
                # Escapes such as \_ in a customer's text: a DeprecationWarning before Python 3.12.
                warnings.simplefilter("ignore", SyntaxWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                record = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise _BadLineError("neither JSON nor a Python dictionary") from None
    if not isinstance(record, dict):
        raise _BadLineError(f"a JSON {type(record).__name__}, expected an object")
    return record


def _review(line: int, record: dict[str, Any]) -> Review | SkippedLine:
    text = record.get("reviewText", record.get("text"))
    label, label_meaning = _label(record)
    if text is None and label is not None:
        # The 2018 files leave `reviewText` out where a customer gave stars alone.
        return SkippedLine(line, "empty text", malformed=False)
    if text is None:
        raise _BadLineError("no reviewText and no text")
    if not isinstance(text, str):
        raise _BadLineError(f"text is a {type(text).__name__}, expected a string")
    try:
        encoded = preprocess(text)
    except UnicodeEncodeError:
        raise _BadLineError("the text holds a lone surrogate: not Unicode text") from None
    if len(encoded) == len("\n \n"):
        return SkippedLine(line, "empty text", malformed=False)
    product = _name(record, "parent_asin", "asin", "product_id")
    id = _id(record, product) or _digest(encoded)
    return Review(line, id, encoded, label, label_meaning, key_hash(product or id), text_digest(encoded))


def _label(record: dict[str, Any]) -> tuple[float | None, str | None]:
    for name, low, high, meaning in (
        ("overall", 1, 5, STARS),
        ("stars", 1, 5, STARS),
        ("label", 0, 1, SENTIMENT),
        ("rating", 1, 5, STARS),
    ):
        value = record.get(name)
        if value is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high or (meaning == SENTIMENT and number not in (0, 1)):
            raise _BadLineError(f"{name} is {str(value)[:40]!r}, expected {'0 or 1' if high == 1 else '1 to 5'}")
        return number, meaning
    return None, None


def _id(record: dict[str, Any], product: str | None) -> str | None:
    id = _name(record, "review_id", "id")
    reviewer, time = _name(record, "reviewerID", "user_id"), _name(record, "unixReviewTime", "timestamp")
    if id is None and product and reviewer and time:
        id = f"{product}/{reviewer}/{time}"
    if id is None:
        return None
    encoded = id.encode("utf-8", "surrogatepass")
    if len(encoded) > MAX_ID_BYTES or "\0" in id or not id.isprintable():
        return _digest(encoded)
    return id


def _name(record: dict[str, Any], *names: str) -> str | None:
    for name in names:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()[:24]
