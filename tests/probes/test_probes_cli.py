"""fastlstm-probes as people call it: help, tables, one-line errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastlstm.corpus.shards import Document, Word
from fastlstm_probes.cli import main
from fastlstm_probes.results import PartOfSpeechResult, SentimentResult, load_result
from planted_store import PlantedText, every_byte, last_bytes, write_store

COMMANDS = [
    "label sst",
    "label reviews",
    "label lines",
    "label treebank",
    "fit sentiment",
    "fit pos",
    "report",
]


def _text(kind: str) -> PlantedText:
    """Documents of two tagged words; odd ones are positive."""
    documents = [
        Document(f"d{i}", b"\n the lens ", float(i % 2), (Word(2, 5, "DT"), Word(6, 10, "NN"))) for i in range(60)
    ]
    return PlantedText(documents, [0] * 30 + [1] * 10 + [2] * 20, ("DT", "NN"), kind)


@pytest.fixture(params=["grammar", "sst"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def documents_store(kind: str, tmp_path: Path) -> Path:
    text = _text(kind)
    cells = np.random.default_rng(0).standard_normal((60, 3))
    cells[:, 1] = np.arange(60) % 2 - 0.5 + 0.05 * cells[:, 1]
    return write_store(tmp_path / "documents", text, last_bytes(text), cells, rows="document", units=(4, 8, 9)).path


@pytest.fixture
def bytes_store(kind: str, tmp_path: Path) -> Path:
    text = _text(kind)
    in_noun = np.tile([0] * 6 + [1] * 4 + [0], 60)
    cells = np.random.default_rng(0).standard_normal((len(in_noun), 3))
    cells[:, 2] = in_noun + 0.05 * cells[:, 2]
    return write_store(tmp_path / "bytes", text, every_byte(text), cells, rows="all", units=(4, 8, 9)).path


def test_fit_sentiment_prints_a_table_and_writes_the_result(documents_store, kind, tmp_path, capsys):
    assert main(["fit", "sentiment", str(documents_store), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert ("synthetic grammar text" in output) == (kind == "grammar")
    assert "neuron: cell 8, high is positive" in output
    result = load_result(tmp_path / "out" / "sentiment.json")
    assert isinstance(result, SentimentResult)
    for score in result.scores:
        (line,) = (line for line in output.splitlines() if line.startswith(score.name + " "))
        assert f" {100 * score.test:.1f} " in line
        assert f"{100 * score.test_low:.1f}-{100 * score.test_high:.1f}" in line


def test_fit_pos_prints_a_table_and_writes_the_result(bytes_store, kind, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["fit", "pos", str(bytes_store), "--out", str(out), "--quiet", "--C", "1"]
    assert main([*arguments, "--max-rows", "all", "--no-group", "--split", "byte"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert ("synthetic grammar text" in output) == (kind == "grammar")
    assert "split by byte" in output
    result = load_result(out / "part_of_speech.json")
    assert isinstance(result, PartOfSpeechResult)
    assert not result.group
    assert {row.C for row in result.tags} == {1.0}
    (noun,) = (row for row in result.tags if row.tag == "NN")
    assert noun.top[0] == 9
    (line,) = (line for line in output.splitlines() if line.startswith("NN "))
    assert line.split()[:2] == ["NN", "240"]


@pytest.mark.parametrize("kind", ["grammar"], indirect=True)
def test_controls_are_chosen_by_name_and_printed(bytes_store, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["fit", "pos", str(bytes_store), "--out", str(out), "--quiet"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    result = load_result(out / "part_of_speech.json")
    assert isinstance(result, PartOfSpeechResult)
    assert result.description_length is not None
    assert f"{result.description_length.bits_per_row:.3f} given all cells" in output
    for heading in ("selectivity, test, %", "place in the word, test, %", "1 random cell per tag", "byte n-gram"):
        assert heading in output
    (line,) = (line for line in output.splitlines() if line.startswith("NN "))
    assert line.split()[-2:] == ["100.0", "100.0"]
    assert main([*arguments, "--controls", "ngram,chance", "positions"]) == 0
    output = capsys.readouterr().out
    assert "byte n-gram" in output
    assert "place in the word" in output
    assert "selectivity" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("NN "))
    assert line.split()[-2:] == ["-", "-"]
    assert load_result(out / "part_of_speech.json").provenance.controls == ["ngram", "positions", "chance"]
    assert main([*arguments, "--controls", "none"]) == 0
    assert "byte n-gram" not in capsys.readouterr().out
    assert "controls: expected names of ngram, random" in _error([*arguments, "--controls", "mdl,colour"], capsys)


def test_warnings_are_one_line_on_stderr(documents_store, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])  # the command line's, not pytest's "error"
        arguments = ["fit", "sentiment", str(documents_store), "--out", str(tmp_path), "--quiet"]
        assert main([*arguments, "--max-iter", "1", "--solver", "liblinear"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastlstm-probes: warning: ")
    assert "did not converge in 1 iterations" in line


@pytest.mark.parametrize("kind", ["sst"], indirect=True)
def test_text_without_labels_can_be_skipped(kind, documents_store, tmp_path, capsys):
    text = _text(kind)
    bare = PlantedText([replace(document, label=None) for document in text.documents], text.split, kind=kind)
    store = write_store(tmp_path / "bare", bare, last_bytes(bare), np.zeros((60, 2)), rows="document").path
    arguments = ["--out", str(tmp_path / "out"), "--quiet"]
    assert "has a label: label text" in _error(["fit", "sentiment", str(store), *arguments], capsys)
    assert main(["fit", "sentiment", str(store), *arguments, "--skip-unlabelled"]) == 0
    assert capsys.readouterr().out == f"{store}: its text has no labels: nothing to fit\n"
    assert not (tmp_path / "out" / "sentiment.json").exists()
    assert main(["fit", "sentiment", str(documents_store), *arguments, "--skip-unlabelled"]) == 0
    assert (tmp_path / "out" / "sentiment.json").is_file()


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    assert errors.startswith("fastlstm-probes: error: ")
    return errors.removeprefix("fastlstm-probes: error: ").rstrip("\n")


def test_user_errors_are_one_line_and_status_2(tmp_path, capsys):
    missing, out = str(tmp_path / "missing"), str(tmp_path / "out")
    for arguments in (
        ["fit", "sentiment", missing, "--out", out],
        ["fit", "pos", missing, "--out", out],
        ["label", "lines", missing, "--out", out],
        ["label", "sst", missing, "--out", out],
        ["label", "reviews", missing, "--out", out],
        ["report", "--results", missing, "--out", out, "--states", missing],
    ):
        assert missing in _error([*arguments, *([] if arguments[0] == "report" else ["--quiet"])], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["sst"], indirect=True)
def test_the_wrong_store_says_what_to_do(bytes_store, documents_store, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    assert "dump the text again with rows 'document'" in _error(["fit", "sentiment", str(bytes_store), *out], capsys)
    assert "dump the text again with rows 'all'" in _error(["fit", "pos", str(documents_store), *out], capsys)


@pytest.mark.parametrize("kind", ["sst"], indirect=True)
def test_an_out_that_is_a_file_is_a_user_error_before_the_fit(documents_store, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr("fastlstm_probes.sentiment.fit_sentiment", None)
    assert str(file) in _error(["fit", "sentiment", str(documents_store), "--out", str(file), "--quiet"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "pos", "s", "--out", "o", "--C", "-1"], "expected a number above 0 or 'sweep', got -1"),
        (["fit", "pos", "s", "--out", "o", "--max-rows", "0"], "expected at least 1, got 0"),
        (["fit", "pos", "s", "--out", "o", "--seed", "-3"], "expected 0 to 2^31 - 1, got -3"),
        (["fit", "pos", "s", "--out", "o", "--max-rows", "many"], "--max-rows: invalid"),
        (["fit", "colour", "s"], "invalid choice: 'colour'"),
        ([], "required"),
    ],
)
def test_wrong_arguments_have_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_defaults_and_units(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--out" in text
    assert "(default: None)" not in text
    expected = {
        "label reviews": "splits of the corpus to take reviews from (default: valid test)",
        "label treebank": "documents to label, or 'all' (default: 1000)",
        "fit sentiment": "fits that did not converge are marked (default: 200)",
        "fit pos": "those of whole documents, or 'all' (default: all)",
    }
    assert expected.get(command, "") in text


def test_help_loads_none_of_the_heavy_libraries():
    program = (
        "import sys\nfrom fastlstm_probes.cli import main\n"
        "try:\n    main(['fit', 'pos', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(repr({'torch', 'sklearn', 'zarr', 'nltk'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
