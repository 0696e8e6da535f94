"""The record of a run: ``log.jsonl``, one JSON object a line; TensorBoard too where it is installed."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from fastlstm.files import naming, write_whole


class RunLog:
    """Appends events; on resuming at ``step``, events of later steps are dropped, since they will happen again.

    Without a run folder, as in all processes but the first, events are forgotten.
    """

    def __init__(self, run: Path | None, step: int) -> None:
        self._board: Any = None
        self._file: TextIO | None = None
        if run is None:
            return
        self._path = run / "log.jsonl"
        if self._path.exists():
            self._drop_after(step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = _tensorboard(run / "tensorboard", step)

    def _drop_after(self, step: int) -> None:
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError, TypeError):
                break  # the line that a kill cut in two
        write_whole(self._path, "".join(kept).encode())

    def __call__(self, event: str, step: int, **values: Any) -> None:
        if self._file is None:
            return
        with naming(self._path):
            self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path, step: int) -> Any:
    if util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
