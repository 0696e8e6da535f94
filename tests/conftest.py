"""Shared by all tests: the interpreter for Triton without a GPU, and where the real text lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before any kernel is imported: afterwards it is too late.
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FASTLSTM_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real text; tests that need it are skipped where it is not."""
    if not DATA.is_dir():
        pytest.skip(f"no real text at {DATA}: set FASTLSTM_DATA")
    return DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
