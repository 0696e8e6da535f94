"""README's tables of states and probes: from the kept results, and what they say of a few rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import extraction_tables, records, tables


@pytest.mark.parametrize("name", extraction_tables.SECTIONS)
def test_readme_says_what_the_results_say(name: str) -> None:
    readme = (extraction_tables.ROOT / "README.md").read_text(encoding="utf-8")
    text = extraction_tables.SECTIONS[name](records.RESULTS)
    written = tables.insert(readme, text, begin=extraction_tables.begin(name))
    assert written == readme, "run: python bench/extraction_tables.py --write"


def test_numbers_are_under_their_device(tmp_path: Path) -> None:
    about = {"suite": "states", "gpu": "G", "torch": "2", "commit": "abc", "dtype": "float16"}
    slow = {"case": "write", "contestant": "fastlstm", "metric": "wall_ratio", "unit": "", "median": 2.5}
    fast = {"case": "extract", "contestant": "fastlstm", "metric": "throughput", "unit": "bytes/s", "median": 3e6}
    rows = [records.complete(about | slow | {"H": 8, "device": "cpu"})]
    rows += [records.complete(about | fast | {"H": 16, "device": "cuda"})]
    records.save(tmp_path / "states.csv", rows)
    text = extraction_tables.states(tmp_path)
    assert "| float16 | GPU, H = 16 | CPU, H = 8 |" in text
    assert "| time over that of raw files | - | 2.50× |" in text
    assert "| every state to the host, text | 3.00 MB/s | - |" in text


def test_findings_stand_beside_their_baselines_and_the_study(tmp_path: Path) -> None:
    pos = ["text,grouped,split,row,argmax,accuracy,model_sha256,model_step"]
    for grouped in ("True", "False"):
        for split in ("document", "byte"):
            for k, value in (("all", 0.8), ("20", 0.7), ("3", 0.6), ("1", 0.5)):
                pos += [
                    f"t,{grouped},{split},k={k},{rule},{value},abcdef0123456789,7000"
                    for rule in ("probability", "norm")
                ]
                pos[-1] = pos[-1].replace(str(value), "0.1")
            for name in (extraction_tables.BYTE_NGRAM, extraction_tables.UNTRAINED_ALL, extraction_tables.MAJORITY):
                pos.append(f"t,{grouped},{split},{name},,0.25,abcdef0123456789,7000")
            pos.append(f"t,{grouped},{split},online code,,,abcdef0123456789,7000")
    (tmp_path / "carvalho2018.csv").write_text("\n".join(pos) + "\n")
    (tmp_path / "radford2017.csv").write_text("row,valid,test,low,high\nall cells,0.75,0.72,0.7,0.74\n")
    tags = [
        f"t,{grouped},document,{tag},{q}" for grouped in ("True", "False") for tag, q in (("NN", 0.01), ("UH", 0.4))
    ]
    (tmp_path / "carvalho2018_tags.csv").write_text(
        "\n".join(["text,grouped,split,tag,best_cell_q", *tags[:-1]]) + "\n"
    )
    about = {"suite": "train", "case": extraction_tables.MODEL, "note": "90 s"}
    trained = [("loss", 1.5), ("throughput", 4.25e6)]
    records.save(
        tmp_path / "train.csv", [records.complete(about | {"metric": name, "median": value}) for name, value in trained]
    )
    text = extraction_tables.findings(tmp_path)
    assert "| grouped | document | 80.0 | 70.0 | 60.0 | 50.0 | 25.0 | 25.0 | 25.0 |" in text
    assert "| as they are | byte, the study's own | 83.9 | - | 56.5 | 39.9 | - | - | - |" in text
    assert "| all cells | 75.0 | 72.0 | 70.0 to 74.0 |" in text
    assert "Model abcdef012345, step 7,000, 4.2 MB/s, 1.50 bits per byte:\n90 s. Rows" in text
    assert "have 1 of 2 grouped tags (not `UH`) and 1 of 1 tags as they are." in text
    with (tmp_path / "carvalho2018.csv").open("a") as file:
        file.write("u,True,document,k=all,norm,0.5,abc,1\n")
    with pytest.raises(ValueError, match="expected one text, got t, u"):
        extraction_tables.findings(tmp_path)


def test_a_rival_has_its_objective_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"suite": "probes", "case": "large", "H": 8, "B": 1000, "dtype": "float32", "device": "cpu", "gpu": "C"}
    rows = [
        records.complete(shared | {"contestant": "fastlstm", "metric": "time", "T": 5, "median": 2}),
        records.complete(
            shared | {"contestant": "liblinear", "metric": "time", "T": 1, "median": 30, "note": "one tag"}
        ),
        records.complete(shared | {"contestant": "fastlstm", "metric": "objective_ratio", "p80": "0.99999999"}),
    ]
    records.save(tmp_path / "probes.csv", rows)
    text = extraction_tables.probes(tmp_path)
    assert "| 1,000 × 8 | memory | 5 | cpu | fastlstm | 2.0 | - | - |" in text
    assert "| 1,000 × 8 | memory | 1 | cpu | liblinear | 30.0 | - | 0.99999999 |" in text
    assert "liblinear, 1,000 rows: one tag." in text
    assert extraction_tables.main(["--results", str(tmp_path)]) == 2
    assert "found none" in capsys.readouterr().err
