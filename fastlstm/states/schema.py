"""What a states store is: a Zarr v3 group that holds cell states, the text they were read from, and their origin.

With N rows, U units, M bytes of text, D documents, W annotated words, ids of at most L bytes:

    states           (N, U)   float16 | float32  cell state c after the row's byte was read; never NaN or infinite
    position         (N,)     int64    index into `text` of the row's byte, ascending
    byte             (N,)     uint8    text[position]
    units            (U,)     int32    which cells of the layer the columns are
    text             (M,)     uint8    all documents, one after another: train, then valid, then test
    document_offset  (D+1,)   int64    document d is text[document_offset[d]:document_offset[d+1]]
    row_offset       (D+1,)   int64    its rows are row_offset[d]:row_offset[d+1]
    document_label   (D,)     float32  NaN = none
    document_split   (D,)     uint8    0 train, 1 valid, 2 test
    document_id      (D, L)   uint8    UTF-8, padded with zeros
    word_start       (W,)     int64    index into `text`; the three word arrays only if the text has words
    word_end         (W,)     int64    half-open
    word_tag         (W,)     uint8    index into text.tagset

The group's attribute "fastlstm_states" is a `StoreAttributes`. Nothing is compressed, every chunk has a CRC-32C, and
nothing depends on when, where, by how many workers or in how many attempts a store was written: equal inputs give equal
bytes. How `states` lies in files: `layout.py`. Statistics of the rows, where they were asked for: `statistics.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastlstm.corpus.manifest import canonical_json
from fastlstm.errors import InputError

FORMAT_VERSION = 1
ATTRIBUTE = "fastlstm_states"
BLOCK_ROWS = 4096  # rows of a chunk of `states`
BLOCK_VALUES = 1 << 20  # values of a chunk of any other array
STATISTICS = "statistics"  # the group of a store that `statistics.py` describes
PROGRESS = ".progress"  # ending of the folder beside an unfinished store

StateRule = Literal["document", "running"]
StoredDtype = Literal["float16", "float32"]
Precision = Literal["fp32", "bf16", "fp16"]
STATE_RULES: tuple[StateRule, ...] = get_args(StateRule)
STORED_DTYPES: tuple[StoredDtype, ...] = get_args(StoredDtype)
Keep = Literal["states", "statistics"]
KEEPS: tuple[Keep, ...] = get_args(Keep)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

WORD_ARRAYS = ("word_start", "word_end", "word_tag")
# Every array but `states`: its dimensions and dtype.
ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "position": (("N",), "int64"),
    "byte": (("N",), "uint8"),
    "units": (("U",), "int32"),
    "text": (("M",), "uint8"),
    "document_offset": (("D+1",), "int64"),
    "row_offset": (("D+1",), "int64"),
    "document_label": (("D",), "float32"),
    "document_split": (("D",), "uint8"),
    "document_id": (("D", "L"), "uint8"),
    "word_start": (("W",), "int64"),
    "word_end": (("W",), "int64"),
    "word_tag": (("W",), "uint8"),
}


@dataclass(frozen=True)
class ModelAttributes:
    """The model that read the text. sha256: of its weights. step: of training. untrained: seeded initial weights."""

    sha256: str
    step: int
    hidden_size: int
    untrained: bool


@dataclass(frozen=True)
class TextAttributes:
    """The text. sha256, kind, label_meaning, tagset, synthetic: of its corpus; the rest says what was taken of it.

    splits: in the order train, valid, test. documents: the first so many of each split, None = all.
    """

    sha256: str
    kind: str
    label_meaning: str | None
    tagset: tuple[str, ...] | None
    synthetic: bool
    splits: tuple[str, ...]
    documents: int | None


@dataclass(frozen=True)
class StoreAttributes:
    """Where a store comes from: with the weights and the text themselves, all that determines its content.

    rows: "all", "document", "word" or "every:K" (`rows.py`). units: the columns, None = every cell. state: "document"
    (zero before each document) or "running" (carried through all documents). batch_size: lanes of text read together,
    1 for a running state; it decides the last bits of a state. precision: of weights and h, "fp32", "bf16" or "fp16"
    (c and the sums are float32 in any). keeps: "states", "statistics" or both. versions: of fastlstm, torch
    and zarr, and on a CPU how many threads torch had.
    """

    format_version: int
    model: ModelAttributes
    text: TextAttributes
    rows: str
    units: tuple[int, ...] | None
    state: str
    dtype: str
    batch_size: int
    versions: dict[str, str]
    complete: bool
    precision: str = "fp32"
    keeps: tuple[str, ...] = ("states",)

    def to_json(self) -> dict[str, Any]:
        """The value of the group's attribute."""
        values: dict[str, Any] = dataclasses.asdict(self)
        lists = ((values, "units"), (values, "keeps"), (values["text"], "tagset"), (values["text"], "splits"))
        for holder, name in lists:
            holder[name] = None if holder[name] is None else list(holder[name])
        return values

    @classmethod
    def from_json(cls, values: Any, store: str) -> StoreAttributes:
        """Read strictly; InputError naming ``store`` if the value is of another version or form."""
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(f"{store}: states format version {version!r}, expected {FORMAT_VERSION}")
        try:
            text = dict(values["text"])
            text["splits"] = tuple(text["splits"])
            text["tagset"] = None if text["tagset"] is None else tuple(text["tagset"])
            units = None if values["units"] is None else tuple(values["units"])
            return cls(
                **{
                    **values,
                    "model": ModelAttributes(**values["model"]),
                    "text": TextAttributes(**text),
                    "units": units,
                    "keeps": tuple(values.get("keeps", ("states",))),
                }
            )
        except (TypeError, KeyError) as error:
            raise InputError(f"{store}: an attribute is missing or has the wrong form ({error})") from None

    @property
    def identity(self) -> str:
        """sha256 over everything but ``complete``: names the store in results."""
        values = self.to_json()
        del values["complete"]
        return hashlib.sha256(canonical_json(values)).hexdigest()


def differences(found: StoreAttributes, wanted: StoreAttributes) -> list[str]:
    """What differs but ``complete``, one line for each: "model.sha256 is 1f2e3d4c5b6a, now 0a1b2c3d4e5f"."""
    old, new = _flat(found.to_json()), _flat(wanted.to_json())
    return [
        f"{name} is {_short(old.get(name))}, now {_short(new.get(name))}"
        for name in {**old, **new}
        if name != "complete" and old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
