"""The recipes: from stores to tables in one command, every number traceable, a killed run goes on."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fastlstm.corpus.shards import Document, Word
from fastlstm.errors import InputError
from fastlstm.states import States
from fastlstm_probes import recipes
from fastlstm_probes.baselines import BYTE_NGRAM, random_cells
from fastlstm_probes.cli import main
from fastlstm_probes.recipes import Settings, carvalho2018
from fastlstm_probes.results import PartOfSpeechResult, load_result, result_path
from planted_store import PlantedText, every_byte, last_bytes, write_store

QUIET = Settings(progress=False, controls=("ngram", "mdl"))


def _text(sentence: bytes) -> PlantedText:
    words = (Word(2, 5, "DT"), Word(6, 10, "NN"), Word(11, 14, "VBD"))
    documents = [Document(f"d{i}", b"\n " + sentence, float(i % 2), words) for i in range(60)]
    return PlantedText(documents, [0] * 30 + [1] * 10 + [2] * 20, ("DT", "NN", "VBD"), kind="lines")


def _store(path: Path, sentence: bytes) -> States:
    """Cells 0 and 1 know the nouns and the space, cell 2 is noise."""
    text = _text(sentence)
    rng = np.random.default_rng(len(sentence))
    place = np.tile(np.arange(len(sentence) + 2), 60)
    noun = (place >= 6) & (place < 10)
    space = np.isin(np.frombuffer(text.text, np.uint8), (10, 32))
    cells = np.stack([2.0 * noun - 1, 2.0 * space - 1, np.zeros(len(place))], axis=1)
    cells += 0.3 * rng.standard_normal(cells.shape)
    return write_store(path, text, every_byte(text), cells, rows="all")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[States]:
    folder = tmp_path_factory.mktemp("stores")
    return [_store(folder / "short", b"the lens saw"), _store(folder / "long", b"the lens saw it all")]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_carvalho_is_one_command(stores: list[States], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="expected each text once"):
        carvalho2018([stores[0], stores[0]], tmp_path, settings=QUIET)
    out = tmp_path / "out"
    assert main(["fit", "carvalho2018", str(stores[0].path), "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    rows = _rows(out / "overall.csv")
    assert {(row["split"], row["grouped"]) for row in rows} == {
        (split, grouped) for split in ("document", "byte") for grouped in ("True", "False")
    }
    for row in rows:
        assert row["store"] == stores[0].identity
        assert row["model_sha256"] == stores[0].attributes.model.sha256
        assert "scikit-learn=" in row["versions"]
    assert {row["row"] for row in rows} >= {"k=all", "k=1", "k=2", "k=3", "k=20", "majority tag"}
    (folder,) = out.glob("*-document-grouped")
    result = load_result(result_path(folder, PartOfSpeechResult))
    assert isinstance(result, PartOfSpeechResult)
    classifiers = {f"k={one.k}" for one in result.overall}
    shown = [row for row in rows
             if (row["split"], row["grouped"]) == ("document", "True") and row["row"] in classifiers]  # fmt: skip
    assert [float(row["accuracy"]) for row in shown] == [one.accuracy for one in result.overall]
    of_row = {row["row"]: row for row in rows if (row["split"], row["grouped"]) == ("document", "True")}
    for task in result.selectivity:
        true, control = of_row[f"k={task.k}, words of train"], of_row[f"k={task.k}, control task"]
        assert float(true["selectivity"]) == task.selectivity
        assert float(true["accuracy"]) - float(control["accuracy"]) == pytest.approx(task.selectivity)
    assert float(of_row["online code"]["bits_per_row"]) == result.description_length.bits_per_row
    assert float(of_row["online code"]["compression"]) == pytest.approx(result.description_length.compression)
    for place in result.positions:
        assert float(of_row[f"k={place.k}, {place.position}"]["accuracy"]) == place.accuracy
    assert {random_cells(k) for k in (1, 2, 3, 5, 10, 20)} | {BYTE_NGRAM} < set(of_row)
    tags = _rows(out / "tags.csv")
    assert {row["halves_overlap"] for row in tags if row["k"] == "1" and row["tag"] == "NN"} == {"1.0"}
    assert {row["halves_overlap"] for row in tags if row["k"] == "all"} == {""}
    assert {row["resamples_same_top"] for row in tags if row["tag"] == "NN"} == {"1.0"}
    (noun,) = (row for row in _rows(out / "tags.csv")
               if (row["tag"], row["k"], row["split"], row["grouped"]) == ("NN", "1", "document", "True"))  # fmt: skip
    assert (noun["top_cells"].split()[0], float(noun["average_precision"]) > 0.95) == ("0", True)
    assert (folder / "report.html").is_file()


def test_a_killed_recipe_goes_on_to_the_same_bytes(stores: list[States], tmp_path: Path, monkeypatch):
    whole = carvalho2018(stores[:1], tmp_path / "whole", settings=QUIET)
    real, made = recipes.fit_part_of_speech, []

    def killed(*arguments, **settings):
        made.append(settings["split"])
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(recipes, "fit_part_of_speech", killed)
    with pytest.raises(KeyboardInterrupt):
        carvalho2018(stores[:1], tmp_path / "killed", settings=QUIET)
    again = carvalho2018(stores[:1], tmp_path / "killed", settings=QUIET)
    assert len(made) == 5  # two before the kill, the one that was killed, and two after it
    for one, other in zip(whole, again, strict=True):
        assert one.relative_to(tmp_path / "whole") == other.relative_to(tmp_path / "killed")
        if one.suffix == ".csv":
            assert one.read_bytes() == other.read_bytes()
    with pytest.raises(InputError, match="is of other stores, settings or versions"):
        carvalho2018(stores[:1], tmp_path / "killed", settings=Settings(seed=7, progress=False))
    with pytest.raises(InputError, match="is of other stores, settings or versions"):
        carvalho2018(stores[:1], tmp_path / "killed", settings=Settings(controls=("mdl",), progress=False))


def test_radford_is_one_command(tmp_path: Path):
    documents = [Document(f"d{i}", b"\n good " if i % 2 else b"\n poor ", float(i % 2)) for i in range(80)]
    text = PlantedText(documents, [0] * 40 + [1] * 20 + [2] * 20, kind="sst")
    rng = np.random.default_rng(0)
    cells = rng.standard_normal((80, 4))
    cells[:, 3] = np.tile([-1.0, 1.0], 40) + 0.1 * cells[:, 3]
    store = write_store(tmp_path / "store", text, last_bytes(text), cells, rows="document")
    out = tmp_path / "out"
    assert main(["fit", "radford2017", str(store.path), "--out", str(out), "--quiet"]) == 0
    rows = _rows(out / "sentiment.csv")
    (neuron,) = (row for row in rows if row["row"].startswith("one neuron: best train threshold"))
    assert neuron["detail"].startswith("cell 3")
    assert float(neuron["test"]) == 1.0
    assert {row["store"] for row in rows} == {store.identity}
    assert (out / "report.html").is_file()
