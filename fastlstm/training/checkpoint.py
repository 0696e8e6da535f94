"""Checkpoints: a folder of safetensors and JSON, written beside and renamed; nothing in it is code.

step-00002000/
  weights.safetensors     the model
  training.safetensors    Adam's moments and the state (h, c) carried into the next window
  checkpoint.json         step, configuration, hashes
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import Tensor

from fastlstm.config import config_from_dict, config_to_dict
from fastlstm.errors import InputError
from fastlstm.files import naming, sync, write_whole
from fastlstm.model import ByteLM
from fastlstm.module import State
from fastlstm.training.config import TrainConfig
from fastlstm.training.start import build_model
from fastlstm.version import __version__

FORMAT_VERSION = 1
_STEP_FOLDER = "step-"
_HEADER_KEYS = {"format_version", "step", "weights_sha256", "training_sha256", "corpus_sha256", "config"}


@dataclass(frozen=True)
class ModelInfo:
    """What identifies the weights of a model: ``sha256`` of their safetensors bytes, and how they came about."""

    sha256: str
    step: int
    hidden_size: int
    config: dict[str, Any]


@dataclass(frozen=True)
class TrainingState:
    """What a run needs besides the weights to go on as if it had never stopped."""

    step: int  # updates done
    corpus_sha256: str
    config: TrainConfig
    state: State
    optimizer: dict[str, Tensor]


def _weights(model: ByteLM) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def save_checkpoint(run: Path, model: ByteLM, training: TrainingState, *, keep: int) -> Path:
    """Write ``run/checkpoints/step-N`` (complete or not at all) and remove all but the newest ``keep``."""
    return _write(run, _tensors(model, training), training, keep)


class CheckpointWriter:
    """Checkpoints written in a thread, from a copy made when they are asked for.

    Only the copy is waited for, on a GPU not even that: into pinned memory, in the order of the GPU's work.
    """

    def __init__(self, run: Path, *, keep: int) -> None:
        self._run = run
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copies: dict[str, Tensor] = {}
        self._writing: Future[Path] | None = None

    def save(self, model: ByteLM, training: TrainingState) -> None:
        """As ``save_checkpoint``, in the background, once the one before is written.

        If a weight is not finite nothing is written, so that a run that diverged keeps its good ones: the next call of
        any method raises ``InputError``, as it raises whatever else went wrong.
        """
        self.wait()
        tensors = _tensors(model, training)
        for name, tensor in tensors.items():
            if name not in self._copies:
                self._copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[name].copy_(tensor, non_blocking=True)
        copied: torch.cuda.Event | None = None
        if model.head.weight.is_cuda:
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        self._writing = self._thread.submit(self._write, training, copied)

    def written(self) -> Path | None:
        """The checkpoint that has been written since the last call, if any."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def wait(self) -> Path | None:
        """The checkpoint that is being written, once it is; None without one. Raises what its writing raised."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def _write(self, training: TrainingState, copied: torch.cuda.Event | None) -> Path:
        if copied is not None:
            copied.synchronize()
        for name, tensor in self._copies.items():
            if name.startswith("weights/") and not tensor.isfinite().all():
                raise diverged(f"{name.removeprefix('weights/')} is", training.step, self._run)
        return _write(self._run, self._copies, training, self._keep)


def _tensors(model: ByteLM, training: TrainingState) -> dict[str, Tensor]:
    """All that a checkpoint holds, by file and name, where it is."""
    weights = {f"weights/{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    optimizer = {f"training/optimizer.{name}": tensor for name, tensor in training.optimizer.items()}
    return weights | optimizer | {"training/state.h": training.state[0], "training/state.c": training.state[1]}


def _write(run: Path, tensors: Mapping[str, Tensor], training: TrainingState, keep: int) -> Path:
    folder = run / "checkpoints" / f"{_STEP_FOLDER}{training.step:08d}"
    if folder.is_dir():  # complete, and of the same step of the same run
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    header = {
        "format_version": FORMAT_VERSION,
        "fastlstm": __version__,
        "step": training.step,
        "weights_sha256": _write_tensors(partial / "weights.safetensors", tensors, "weights/"),
        "training_sha256": _write_tensors(partial / "training.safetensors", tensors, "training/"),
        "corpus_sha256": training.corpus_sha256,
        "config": config_to_dict(training.config),
    }
    write_whole(partial / "checkpoint.json", (json.dumps(header, indent=2) + "\n").encode())
    sync(partial)
    partial.rename(folder)
    sync(folder.parent)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], prefix: str) -> str:
    """Write the tensors whose names begin with ``prefix``, without it; the file's sha256.

    ``save_file`` lets other threads run while it writes; ``save`` stopped them for 0.7 of the 1.3 s of 230 MB.
    """
    part = {name.removeprefix(prefix): t.cpu().contiguous() for name, t in tensors.items() if name.startswith(prefix)}
    with naming(path):
        try:
            save_file(part, path)
        except SafetensorError as error:
            raise OSError(f"{path}: could not be written: {error}") from error
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()


def diverged(what: str, step: int, run: Path) -> InputError:
    """The error of a run whose numbers are no longer finite: ``what`` names them and ends with a verb."""
    return InputError(
        f"training diverged: {what} not finite at step {step}; the checkpoints of {run} are from before. "
        "Start in another folder with a lower optimizer.learning_rate or optimizer.clip"
    )


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob(f"{_STEP_FOLDER}*") if path.is_dir())


def find_checkpoint(path: str | Path) -> Path:
    """``path`` itself if it is a checkpoint, else the newest checkpoint of the run folder ``path``."""
    folder = Path(path)
    if (folder / "checkpoint.json").is_file():
        return folder
    found = checkpoints(folder)
    if not found:
        raise InputError(f"checkpoint {folder}: expected a checkpoint or a run folder with one, found neither")
    return found[-1]


def _header(folder: Path) -> tuple[dict[str, Any], TrainConfig]:
    path = folder / "checkpoint.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable checkpoint header: {error}") from error
    if not isinstance(header, dict) or not header.keys() >= _HEADER_KEYS:
        raise InputError(f"{path}: not a checkpoint header: expected the keys {', '.join(sorted(_HEADER_KEYS))}")
    if header.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: expected checkpoint format {FORMAT_VERSION}, got {header.get('format_version')}")
    return header, config_from_dict(TrainConfig, header["config"])


def _load_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
        tensors = load(data)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged or missing: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path}: sha256 differs from the one in checkpoint.json: the file is damaged")
    return tensors


def load_weights(model: ByteLM, folder: Path) -> None:
    """Load the weights of checkpoint ``folder`` into ``model``, checking shapes and hash."""
    path = folder / "weights.safetensors"
    tensors = _load_tensors(path, _header(folder)[0]["weights_sha256"])
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        name = next(name for name in sorted(wanted | found) if wanted.get(name) != found.get(name))
        raise InputError(
            f"{path}: {name}: expected shape {wanted.get(name)} for hidden size {model.hidden_size}, "
            f"got {found.get(name)}"
        )
    model.load_state_dict(tensors)


def load_model(path: str | Path, *, untrained: bool = False) -> tuple[ByteLM, ModelInfo]:
    """The model of a checkpoint (or of a run's newest), on the CPU, in evaluation mode.

    ``untrained=True`` gives the same architecture with the weights it started from. Raises ``InputError`` naming the
    file for anything that is not a whole checkpoint.
    """
    folder = find_checkpoint(path)
    header, config = _header(folder)
    if untrained:
        model = build_model(config.model)
        sha256, step = hashlib.sha256(_weights(model)).hexdigest(), 0
    else:
        with torch.device("meta"):  # half of the time went into random weights
            model = build_model(config.model)
        model.to_empty(device="cpu")
        load_weights(model, folder)
        sha256, step = header["weights_sha256"], header["step"]
    return model.eval(), ModelInfo(sha256, step, config.model.hidden_size, header["config"])


def load_training(folder: Path) -> TrainingState:
    """What the loop needs besides the weights to go on from checkpoint ``folder``."""
    header, config = _header(folder)
    tensors = _load_tensors(folder / "training.safetensors", header["training_sha256"])
    prefix = "optimizer."
    return TrainingState(
        step=header["step"],
        corpus_sha256=header["corpus_sha256"],
        config=config,
        state=(tensors["state.h"], tensors["state.c"]),
        optimizer={name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
    )
