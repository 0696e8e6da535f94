"""SST is read as Radford et al. 2017 read it, and a damaged file is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlstm.corpus.shards import Corpus
from fastlstm.errors import InputError
from fastlstm_probes.concepts import label_sst
from fastlstm_probes.concepts.sst import sst_text

GOOD = {
    "train": 'label,sentence\n1,"A fine, fine film"\n0,Dull.\n',
    "dev": "label,sentence\n0,Awful\n",
    "test": 'label,sentence\n1,"She said ""yes"", twice"\n',
}


def write_sst(folder: Path, **changed: str | bytes) -> Path:
    folder.mkdir()
    for name, content in {**GOOD, **changed}.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}_binary_sent.csv").write_bytes(data)
    return folder


def test_text_is_the_protocols() -> None:
    assert sst_text(" Fish &amp; chips,\nagain é ") == "\n Fish & chips, again é ".encode()


def test_documents_labels_and_splits(tmp_path: Path) -> None:
    summary = label_sst(write_sst(tmp_path / "sst"), tmp_path / "out", progress=False)
    corpus = Corpus(tmp_path / "out")
    found = {s: [(d.text, d.label) for d in corpus.documents(s)] for s in ("train", "valid", "test")}
    assert found == {
        "train": [(b"\n A fine, fine film ", 1.0), (b"\n Dull. ", 0.0)],
        "valid": [(b"\n Awful ", 0.0)],
        "test": [(b'\n She said "yes", twice ', 1.0)],
    }
    assert corpus.manifest.kind == "sst"
    assert corpus.manifest.label_meaning == "sentiment 0/1"
    assert corpus.manifest.tagset is None
    assert [source.name for source in corpus.manifest.sources][1] == "dev_binary_sent.csv"
    assert summary.documents == {"train": 2, "valid": 1, "test": 1}
    assert summary.labels["train"] == {"negative": 1, "positive": 1, "none": 0}
    assert summary.bytes == sum(len(text) for texts in found.values() for text, _ in texts)
    assert summary.words == 0


@pytest.mark.parametrize(
    ("dev", "expected"),
    [
        ("", "line 1: got nothing, expected the columns label,sentence"),
        ("sentence,label\na,1\n", "line 1: got 'sentence,label', expected the columns label,sentence"),
        ("label,sentence\n", "no sentences after the header"),
        ("label,sentence\n1,good\n2,odd\n", "line 3: got label '2', expected 0 or 1"),
        ('label,sentence\n1,"two\nlines"\n,x\n', "line 4: got label '', expected 0 or 1"),
        ("label,sentence\n1\n", "line 2: got 1 columns, expected 2"),
        ("label,sentence\n1,a,b\n", "line 2: got 3 columns, expected 2"),
        ("label,sentence\n1,  \n", "line 2: the sentence is empty"),
        ('label,sentence\n1,"never closed\n', "line 2: not CSV"),
        (b"label,sentence\n1,caf\xe9 noir\n", "line 2: not UTF-8"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, dev: str | bytes, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        label_sst(write_sst(tmp_path / "sst", dev=dev), tmp_path / "out", progress=False)
    message = str(caught.value)
    assert "dev_binary_sent.csv" in message
    assert expected in message
    assert "\n" not in message
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_sst(tmp_path / "sst")
    (folder / "test_binary_sent.csv").unlink()
    with pytest.raises(InputError, match=r"test_binary_sent\.csv: no such file"):
        label_sst(folder, tmp_path / "out", progress=False)


def test_real_sst_has_its_published_counts(data_folder: Path, tmp_path: Path) -> None:
    if not (data_folder / "sst").is_dir():
        pytest.skip("sst is not in the data folder (FASTLSTM_DATA)")
    summary = label_sst(data_folder / "sst", tmp_path / "out", progress=False)
    assert summary.documents == {"train": 6920, "valid": 872, "test": 1821}
    assert {split: counts["positive"] for split, counts in summary.labels.items()} == {
        "train": 3610,
        "valid": 444,
        "test": 909,
    }
    assert all(counts["none"] == 0 for counts in summary.labels.values())
    first = next(Corpus(tmp_path / "out").documents("valid"))
    assert first.text == b"\n One long string of cliches. "
