"""What training and sampling left behind, as the report reads it: `log.jsonl`, `config.json`, samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlstm.errors import InputError

Event = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Events of one run in the order of their steps; `seconds` since its last start, None while it has not ended."""

    folder: Path
    start: Event
    train: list[Event]
    valid: list[Event]
    seconds: float | None
    config: dict[str, Any] | None


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
        InputError: there is no log, or a whole line of it is not an event.
    """
    log, config = folder / "log.jsonl", folder / "config.json"
    if not log.is_file():
        raise InputError(f"run: expected a run folder with log.jsonl, found none in {folder}")
    # A line still being written has no newline yet.
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0]
    events = sorted(_json_lines(log, whole, ("event", "step")), key=lambda event: int(event["step"]))
    kinds = {kind: [e for e in events if e["event"] == kind] for kind in ("start", "train", "valid", "end")}
    end = kinds["end"][-1:]
    return Run(
        folder,
        next(iter(kinds["start"]), {}),
        kinds["train"],
        kinds["valid"],
        float(end[0]["seconds"]) if end else None,
        _config(config) if config.is_file() else None,
    )


def read_samples(path: Path) -> list[Sample]:
    """Read what `fastlstm sample --out` wrote.

    Raises:
        InputError: there is no such file, or a line of it is not a sample.
    """
    if not path.is_file():
        raise InputError(f"samples: expected a file of JSON lines, found none at {path}")
    lines = _json_lines(path, path.read_text(encoding="utf-8"), ("prime", "temperature", "text"))
    return [
        Sample(
            str(line["prime"]),
            str(line["text"]),
            float(line["temperature"]),
            line.get("seed"),
            line.get("model_sha256"),
        )
        for line in lines
    ]


def _config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _json_lines(path: Path, text: str, keys: Sequence[str]) -> list[Event]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(value, dict) or not all(key in value for key in keys):
            raise InputError(f"{path}, line {number}: expected an object with {', '.join(keys)}, got {line[:60]}")
        found.append(value)
    return found
