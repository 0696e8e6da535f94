"""What training and sampling left behind, as the report reads it: `log.jsonl`, `config.json`, samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastlstm.errors import InputError

Event = dict[str, Any]
Fields = dict[str, type]  # what a line must have: float takes whole numbers too

# What the report reads of each event (`fastlstm/training/log.py`) and of a sample.
_EVENTS: dict[str, Fields] = {
    "train": {"step": int, "bytes": int, "loss": float, "bytes_per_second": float},
    "valid": {"step": int, "loss": float, "accuracy": float},
    "end": {"step": int, "seconds": float},
    "health": {
        "step": int,
        "cell_p50": float,
        "cell_p99": float,
        "wide_cells": float,
        "saturated_input": float,
        "saturated_forget": float,
        "saturated_output": float,
    },
}
_SAMPLE: Fields = {"prime": str, "temperature": float, "text": str}


@dataclass(frozen=True)
class Run:
    """Events of one run in the order of their steps; `seconds` since its last start, None while it has not ended.

    model_sha256: of the weights of its newest checkpoint; None while it has none.
    """

    folder: Path
    start: Event
    train: list[Event]
    valid: list[Event]
    seconds: float | None
    config: dict[str, Any] | None
    model_sha256: str | None
    health: list[Event] = field(default_factory=list)
    profile: dict[str, Any] | None = None  # as `fastlstm train --profile` wrote it


@dataclass(frozen=True)
class Sample:
    """Text that a model wrote after `prime` (without it)."""

    prime: str
    text: str
    temperature: float
    seed: int | None
    model_sha256: str | None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: there is no log, a whole line of it is not an event, or the configuration or the newest checkpoint's
            header is damaged.
    """
    log, config, profile = folder / "log.jsonl", folder / "config.json", folder / "profile.json"
    if not log.is_file():
        raise InputError(f"run: expected a run folder with log.jsonl, found none in {folder}")
    # A line still being written has no newline yet.
    whole = log.read_bytes().rpartition(b"\n")[0]
    events = sorted(_json_lines(log, whole, _event_fields), key=lambda event: int(event["step"]))
    kinds = {kind: [e for e in events if e["event"] == kind] for kind in ("start", "train", "valid", "health", "end")}
    end = kinds["end"][-1:]
    return Run(
        folder,
        next(iter(kinds["start"]), {}),
        kinds["train"],
        kinds["valid"],
        float(end[0]["seconds"]) if end else None,
        _json_object(config) if config.is_file() else None,
        _newest_weights(folder),
        kinds["health"],
        _profile(profile) if profile.is_file() else None,
    )


def read_samples(path: Path) -> list[Sample]:
    """Read what `fastlstm sample --out` wrote.

    Raises:
        InputError: there is no such file, or a line of it is not a sample.
    """
    if not path.is_file():
        raise InputError(f"samples: expected a file of JSON lines, found none at {path}")
    lines = _json_lines(path, path.read_bytes(), lambda _: _SAMPLE)
    return [
        Sample(
            line["prime"],
            line["text"],
            float(line["temperature"]),
            line.get("seed"),
            line.get("model_sha256"),
        )
        for line in lines
    ]


def _event_fields(event: Event) -> Fields:
    return {"event": str} | _EVENTS.get(str(event.get("event")), {"step": int})


def _newest_weights(folder: Path) -> str | None:
    headers = sorted(folder.glob("checkpoints/step-*/checkpoint.json"))
    if not headers:
        return None
    sha256 = _json_object(headers[-1]).get("weights_sha256")
    if not isinstance(sha256, str):
        raise InputError(f"{headers[-1]}: expected a checkpoint header with weights_sha256, found none")
    return sha256


def _profile(path: Path) -> dict[str, Any]:
    profile = _json_object(path)
    if not isinstance(profile.get("fed"), float) or not isinstance(profile.get("parts"), dict):
        raise InputError(f"{path}: expected a profile with fed (float) and parts, found none")
    return profile


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _json_lines(path: Path, content: bytes, fields: Callable[[Event], Fields]) -> list[Event]:
    """The objects of the lines that are not blank; each must have the `fields` of its kind."""
    found = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 at byte {error.start}") from error
        except ValueError as error:
            raise InputError(f"{where}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected an object, got {type(value).__name__}")
        for name, type_ in fields(value).items():
            got = value.get(name)
            if type(got) is not type_ and not (type_ is float and type(got) is int):
                shown = type(got).__name__ if name in value else "none"
                raise InputError(f"{where}: expected {name} ({type_.__name__}), got {shown}")
        found.append(value)
    return found
