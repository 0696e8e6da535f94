"""Real data for the tests of the probes: used where it is, a stated skip where it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import nltk
import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The data folder; a test that needs a file of it skips when that file is absent."""
    root = Path(__file__).resolve().parents[2]
    return root / os.environ.get("FASTLSTM_DATA", "../shared/data")


@pytest.fixture(scope="session")
def nltk_data(data_folder: Path) -> Iterator[None]:
    """NLTK's data, from the data folder or where NLTK looks for it anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(data_folder / "nltk_data"), *nltk.data.path])
        for resource in (
            "taggers/averaged_perceptron_tagger_eng",
            "tokenizers/punkt_tab/english",
            "corpora/treebank.zip",
        ):
            try:
                nltk.data.find(resource)
            except LookupError:
                pytest.skip(f"NLTK's {resource} is not there (set NLTK_DATA or FASTLSTM_DATA)")
        yield
