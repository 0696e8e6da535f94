"""README's tables of states and probes: from the kept results, and what they say of a few rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import extraction_tables, records, tables


@pytest.mark.parametrize("name", extraction_tables.SECTIONS)
def test_readme_says_what_the_results_say(name: str) -> None:
    readme = (extraction_tables.ROOT / "README.md").read_text(encoding="utf-8")
    text = extraction_tables.SECTIONS[name](records.load(records.RESULTS / f"{name}.csv"))
    written = tables.insert(readme, text, begin=extraction_tables.begin(name))
    assert written == readme, "run: python bench/extraction_tables.py --write"


def test_numbers_are_under_their_device() -> None:
    about = {"suite": "states", "gpu": "G", "torch": "2", "commit": "abc", "dtype": "float16"}
    slow = {"case": "write", "contestant": "fastlstm", "metric": "wall_ratio", "unit": "", "median": 2.5}
    fast = {"case": "extract", "contestant": "fastlstm", "metric": "throughput", "unit": "bytes/s", "median": 3e6}
    rows = [records.complete(about | slow | {"H": 8, "device": "cpu"})]
    rows += [records.complete(about | fast | {"H": 16, "device": "cuda"})]
    text = extraction_tables.states(rows)
    assert "| float16 | GPU, H = 16 | CPU, H = 8 |" in text
    assert "| time over that of raw files | - | 2.50× |" in text
    assert "| every state to the host, text | 3.00 MB/s | - |" in text


def test_a_rival_has_its_objective_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"suite": "probes", "case": "large", "H": 8, "B": 1000, "dtype": "float32", "device": "cpu", "gpu": "C"}
    rows = [
        records.complete(shared | {"contestant": "fastlstm", "metric": "time", "T": 5, "median": 2}),
        records.complete(shared | {"contestant": "liblinear", "metric": "time", "T": 1, "median": 30}),
        records.complete(shared | {"contestant": "fastlstm", "metric": "objective_ratio", "p80": "0.99999999"}),
    ]
    text = extraction_tables.probes(rows)
    assert "| 1,000 × 8 | memory | 5 | cpu | fastlstm | 2.0 | - | - |" in text
    assert "| 1,000 × 8 | memory | 1 | cpu | liblinear | 30.0 | - | 0.99999999 |" in text
    assert extraction_tables.main(["--results", str(tmp_path)]) == 2
    assert "found none" in capsys.readouterr().err
