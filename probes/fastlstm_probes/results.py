"""What a fit found, as frozen dataclasses, and their one file format: JSON with a kind and a version.

`save_result` writes `sentiment.json` or `part_of_speech.json`; `load_result` gives back an equal object.
Every number is a plain int, float or None (no NaN), arrays are lists, and `Provenance` says where all of it
came from.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

from fastlstm.errors import InputError
from fastlstm.files import write_whole
from fastlstm.states import States, TextAttributes
from fastlstm.version import __version__
from fastlstm_probes.concepts.penn import PENN_TAGS

FORMAT_VERSION = 4


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of one result come from."""

    store: str  # identity of the states store
    untrained_store: str | None  # identity of the store of the untrained model, if one was given
    model_sha256: str
    model_step: int
    text_sha256: str
    text_kind: str
    synthetic: bool  # the text was written by the project's own grammar
    tags: str  # of its words: "none", "nltk" (NLTK's tagger) or "gold" (the text's own)
    splits: list[str]  # of the text that were dumped
    documents: int | None  # dumped of each split, None: all
    rows: str  # the store's rule: which bytes have a row
    cells: list[int] | None  # dumped, None: all
    dtype: str  # of the stored states
    batch_size: int  # documents that were read side by side: decides the last bits of a state
    state: str  # "document": state zero at each document's start; "running": carried on
    seed: int
    split: str  # "document" or "byte": see splits.py
    max_iter: int  # limit given to the L1 solver
    solver: str  # "joint", or scikit-learn's "liblinear", "saga" or "sgd"
    controls: list[str]  # that were run: see controls.py
    versions: dict[str, str]  # of the fit; "store ..." of the dump


def provenance_of(
    store: States,
    *,
    untrained: States | None,
    seed: int,
    split: str,
    max_iter: int,
    solver: str,
    controls: Iterable[str] = (),
) -> Provenance:
    """Where a fit on `store` with these settings comes from."""
    attributes = store.attributes
    fitted_with = {
        "fastlstm": __version__,
        "numpy": np.__version__,
        "scikit-learn": str(sklearn.__version__),
        "torch": torch.__version__,
    }
    return Provenance(
        store=store.identity,
        untrained_store=untrained.identity if untrained is not None else None,
        model_sha256=attributes.model.sha256,
        model_step=attributes.model.step,
        text_sha256=attributes.text.sha256,
        text_kind=attributes.text.kind,
        synthetic=attributes.text.synthetic,
        tags=_tags_of(attributes.text),
        splits=list(attributes.text.splits),
        documents=attributes.text.documents,
        rows=attributes.rows,
        cells=None if attributes.units is None else list(attributes.units),
        dtype=attributes.dtype,
        batch_size=attributes.batch_size,
        state=attributes.state,
        seed=seed,
        split=split,
        max_iter=max_iter,
        solver=solver,
        controls=list(controls),
        versions=fitted_with | {f"store {name}": version for name, version in attributes.versions.items()},
    )


def _tags_of(text: TextAttributes) -> str:
    """Who tagged a text: a store does not say, but of the labelled texts only these have the whole Penn tagset."""
    if text.tagset is None:
        return "none"
    return "nltk" if text.tagset == PENN_TAGS and text.kind != "treebank" else "gold"


@dataclass(frozen=True)
class Score:
    """Accuracy (0..1) of one classifier; `test_low`..`test_high` is the 95 % Wilson interval of `test`."""

    name: str
    train: float | None
    valid: float | None
    test: float
    test_low: float
    test_high: float
    detail: str


@dataclass(frozen=True)
class Example:
    """One document that a classifier got wrong; `value` is the raw cell state it was judged by."""

    text: str
    label: int
    predicted: int
    value: float
    document: int  # index in the store


@dataclass(frozen=True)
class Histogram:
    """Counts of a neuron's raw cell state by class over the training rows.

    `edges` has one entry more than the counts; values beyond the first or last edge are in the outer bins.
    """

    edges: list[float]
    negative: list[int]
    positive: list[int]


@dataclass(frozen=True)
class SweepPoint:
    """One value of C in a sweep: `valid` is the accuracy on the validation documents that C is chosen by."""

    C: float
    valid: float
    nonzero: int
    converged: bool


@dataclass(frozen=True)
class SentimentResult:
    provenance: Provenance
    counts: dict[str, int]  # documents: "train", "valid", "test", "unlabelled" (left out)
    C: float
    sweep: list[SweepPoint]
    weights: list[float]  # one per stored unit
    intercept: float
    units: list[int]
    neuron: int  # unit id
    neuron_score: str  # name of the row of `scores` that judges it by `threshold`
    sign: int  # +1: a high value is positive sentiment; -1: a low value is
    threshold: float  # on the raw cell state, fitted on train; `misclassified` is judged by it
    scores: list[Score]
    histogram: Histogram
    misclassified: list[Example]  # test documents, the most confidently wrong first
    converged: bool  # of the fit that `weights` are
    gap: float  # its relative duality gap
    seconds: float


@dataclass(frozen=True)
class KResult:
    """All tags together on the test rows, with k cells a tag: the tag of the largest margin.

    `low`..`high` is the 95 % interval of the accuracy when documents are drawn anew (bootstrap by document).
    """

    k: str  # "all", "1", "2", ...
    accuracy: float
    precision: float  # weighted by the tags' true counts
    recall: float
    rule: str  # "norm": margins divided by ||w|| (the study's text); "probability": predict_proba (its code)
    low: float
    high: float


@dataclass(frozen=True)
class TagScore:
    """One tag against the rest on the test rows; precision and recall are 0 where they are 0/0."""

    k: str
    accuracy: float
    precision: float
    recall: float
    average_precision: float | None  # None: the tag is not in the test rows
    roc_auc: float | None
    mcc: float  # Matthews correlation; 0 where it is 0/0
    tuned_f1: float | None  # at the threshold of the best F1 on the validation rows; None: without them


@dataclass(frozen=True)
class BestCell:
    """The cell with a tag's best average precision on train rows, of either sign (`single_cells.py`), on test rows.

    It says yes where `sign * (value - threshold) > 0`; the threshold is that of the best F1 on train. Precision and
    recall are 0 where they are 0/0.
    """

    unit: int
    sign: int  # +1: high values are the tag; -1: low ones are
    threshold: float  # on the raw cell state
    train_average_precision: float  # on the train rows that the cells were ranked on
    precision: float
    recall: float
    average_precision: float | None  # None: the tag is not in the test rows


@dataclass(frozen=True)
class Stability:
    """Whether other text would have given a tag the same largest weights (`stability.py`)."""

    halves: dict[str, float | None]  # k -> share of the k largest in common to fits on two halves; None: no weights
    resamples: int  # draws of documents with replacement that were fitted
    same_top: float | None  # share of them whose largest weight is on the same cell as the fit's; None: it has none


@dataclass(frozen=True)
class TagRow:
    tag: str
    positive: int  # rows of the tag over the train rows used, valid and test
    negative: int
    features_used: int
    top: list[int]  # unit ids of the up to three largest |w| that are not zero
    by_k: list[TagScore]
    C: float
    weights: list[float]  # one per stored unit
    intercept: float
    best: BestCell  # chosen apart from the probe
    untrained_best: BestCell | None  # the untrained model's, chosen in the same way; None: none was given
    histogram: Histogram  # of the best cell
    converged: bool
    gap: float  # relative duality gap of the fit on all cells
    p: float | None  # that the best of all cells is chance (`controls.py`); None: not tested
    q: float | None  # false discovery rate of the list of tags up to this one
    stability: Stability | None  # None: not tested, or text of one document


@dataclass(frozen=True)
class Selectivity:
    """Accuracy less that on a control task of random labels per word type (`selectivity.py`), with k cells a tag.

    Of test rows of words whose type train has. `low`..`high` is the 95 % interval of `selectivity` when documents are
    drawn anew.
    """

    k: str
    accuracy: float
    control_accuracy: float
    selectivity: float
    low: float
    high: float
    rows: int
    train_rows: int  # that both tasks were fitted on
    word_types: int  # of train


@dataclass(frozen=True)
class DescriptionLength:
    """Online code of the tags of train rows given all cells (`description_length.py`), in bits."""

    rows: int
    classes: int
    bits_per_row: float
    uniform_bits_per_row: float  # log2 of the number of classes
    frequency_bits_per_row: float  # of the online code by the tags' frequencies alone, without cells
    compression: float  # uniform code over online code
    parts: list[int]  # rows of each part, the first of which is coded uniformly


@dataclass(frozen=True)
class PositionScore:
    """All tags together on test rows at one place in words (`positions.py`), with k cells a tag.

    `low`..`high` is the 95 % interval of the accuracy when documents are drawn anew.
    """

    position: str  # "first byte", "last byte", "word mean"
    k: str
    accuracy: float
    low: float
    high: float
    rows: int  # words, where rows are means
    train_rows: int  # that the classifiers were fitted on: for word means words


@dataclass(frozen=True)
class PartOfSpeechResult:
    provenance: Provenance
    group: bool
    C: float | None  # as asked; None: chosen per tag on the validation rows
    rows: dict[str, int]  # "train", "valid", "test"; "train_available" before the limit on rows
    ranking_rows: int  # train rows that the best cells were chosen on
    overall: list[KResult]
    baselines: list[Score]
    selectivity: list[Selectivity]  # empty: not tested, or no test row of a word that train has
    description_length: DescriptionLength | None  # None: not tested, or text of one document
    positions: list[PositionScore]  # empty: not tested, or no row of a word
    tags: list[TagRow]  # the most frequent first
    units: list[int]
    seconds: float


Result = SentimentResult | PartOfSpeechResult

_KINDS: dict[str, type[SentimentResult] | type[PartOfSpeechResult]] = {
    "sentiment": SentimentResult,
    "part_of_speech": PartOfSpeechResult,
}


def result_path(folder: str | Path, type_: type[Result]) -> Path:
    """Where a result of this type is: `<folder>/sentiment.json` or `<folder>/part_of_speech.json`."""
    return Path(folder) / f"{next(kind for kind, known in _KINDS.items() if known is type_)}.json"


def save_result(folder: str | Path, result: Result) -> Path:
    """Write the result into `folder` (made if missing) beside its name, then rename; the path comes back."""
    path = result_path(folder, type(result))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"kind": path.stem, "format_version": FORMAT_VERSION, **dataclasses.asdict(result)}
    write_whole(path, (json.dumps(content, allow_nan=False, indent=1) + "\n").encode())
    return path


def load_result(path: str | Path) -> Result:
    """The result in the file.

    Raises:
        InputError: the file is not a result of this version; names the file, what it has, what was expected.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not a result file: {error}") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in _KINDS:
        raise InputError(f"{path}: expected a result of kind {' or '.join(_KINDS)}, found kind {kind!r}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format version {version!r}, this program reads version {FORMAT_VERSION}: fit again")
    fields = {name: value for name, value in content.items() if name not in ("kind", "format_version")}
    try:
        return typing.cast(Result, _decode(_KINDS[kind], fields, kind))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not a whole result: {error}") from error


def _decode(expected: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as `expected`, a type of the fields above, or a ValueError naming the place."""
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        hints = typing.get_type_hints(expected)
        if not isinstance(value, dict) or set(value) != set(hints):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where}: expected the fields {sorted(hints)}, got {got}")
        return expected(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in hints})
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is types.UnionType:
        if value is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _decode(inner, value, where)
    if origin is list and isinstance(value, list):
        return [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if expected is float and type(value) is int:
        return float(value)
    if origin is not None or type(value) is not expected:
        name = getattr(expected, "__name__", str(expected))
        raise ValueError(f"{where}: expected {name}, got {type(value).__name__}")
    return value
