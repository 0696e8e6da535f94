"""Rankings find planted cells, the same probe judges them, and the best subset is the best of all."""

from __future__ import annotations

import csv
from itertools import combinations

import numpy as np
import pytest
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fastlstm.corpus.shards import Document, Word
from fastlstm_probes.cli import main
from fastlstm_probes.rank import _areas, best_subset, compare_rankings, mutual_information, rankings
from planted_store import PlantedText, every_byte, write_store


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Cell 2 knows most, on the smallest scale; 5 knows less; 8 is constant."""
    rng = np.random.default_rng(0)
    y = rng.random(800) > 0.6
    X = rng.standard_normal((800, 12))
    X[:, 2] += 2.5 * y
    X[:, 5] -= 1.2 * y
    X[:, 2] *= 0.3
    X[:, 8] = 4.0
    return X.astype(np.float32), y


def test_every_ranking_puts_the_planted_cells_first(data):
    for name, order in rankings(*data, C=1.0, seed=0).items():
        assert order[:2].tolist() == [2, 5], name
        assert sorted(order.tolist()) == list(range(12)), name


def test_areas_are_scikit_learns(data):
    X, y = data
    ties = np.round(X, 1)
    np.testing.assert_allclose(_areas(ties, y), [roc_auc_score(y, ties[:, j]) for j in range(12)], rtol=1e-12)


def test_mutual_information_is_scikit_learns(data):
    X, y = data
    quantiles = np.linspace(0, 1, 17)[1:-1]
    cut = np.stack([np.searchsorted(np.unique(np.quantile(c, quantiles)), c, side="right") for c in X.T], axis=1)
    expected = mutual_info_classif(cut, y, discrete_features=True) / np.log(2)
    np.testing.assert_allclose(mutual_information(X, y), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_best_subset_is_that_of_all_refits(data, k):
    X, y = data
    among = np.arange(6)
    standard = (X - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1)

    def loss(columns: tuple[int, ...]) -> float:
        model = LogisticRegression(C=1e3, tol=1e-8).fit(standard[:, columns], y)
        margin = np.where(y, 1, -1) * model.decision_function(standard[:, columns])
        return float(np.logaddexp(0, -margin).sum())

    expected = min(combinations(range(6), k), key=loss)
    assert tuple(best_subset(X, y, among, k, seed=0).tolist()) == expected


def test_the_same_probe_judges_all(data):
    X, y = data
    table = compare_rankings((X[:500], y[:500]), (X[500:], y[500:]), ks=(1, 2, 3, 20), progress=False)
    by_name = {one.name: one for one in table}
    assert len(by_name) == 6 + 3
    for one in table[:6]:
        assert sorted(one.average_precision) == [1, 2, 3]
        assert one.average_precision[2] > one.average_precision[1] > 0.75
    # The same two cells, so the same number whoever ranked them.
    assert {one.average_precision[2] for one in table[:6]} == set(
        by_name["best subset of 2"].average_precision.values()
    )


def test_one_command_ranks_a_tag(tmp_path, capsys):
    words = (Word(2, 5, "DT"), Word(6, 10, "NN"))
    text = PlantedText(
        [Document(f"d{i}", b"\n the lens ", None, words) for i in range(20)], [0] * 12 + [2] * 8, ("DT", "NN")
    )
    noun = np.tile((np.arange(11) >= 6) & (np.arange(11) < 10), 20)
    cells = np.random.default_rng(0).standard_normal((220, 5))
    cells[:, 2] += 3 * noun
    store = write_store(tmp_path / "store", text, every_byte(text), cells, rows="all", units=(10, 11, 12, 13, 14))
    out = tmp_path / "rankings.csv"
    assert main(["rank", str(store.path), "--tag", "NN", "--out", str(out), "--quiet"]) == 0
    assert "mean difference" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["cells"] for row in rows if row["k"] == "1"} == {"12"}
    assert all(float(row["average_precision"]) > 0.75 for row in rows)
    assert main(["rank", str(store.path), "--tag", "XX", "--out", str(out), "--quiet"]) == 2
    assert "tag: expected one of" in capsys.readouterr().err
