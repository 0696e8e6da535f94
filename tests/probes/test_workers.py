"""Rows on disk, several processes and a Dask cluster find what one matrix in memory does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from fastlstm.corpus.shards import Document
from fastlstm.errors import InputError
from fastlstm.states import States, open_states
from fastlstm_probes.l1 import L1LogisticOvR, StoreRows
from fastlstm_probes.l1.objective import Problem
from fastlstm_probes.l1.passes import Draw, LocalPasses
from fastlstm_probes.l1.workers import DaskPasses
from planted_store import PlantedText, every_byte, write_store

COUNT, UNITS = 21_000, 24  # six chunks of the store
TOL = 1e-8


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((COUNT, UNITS)) @ (np.eye(UNITS) + 0.3 * rng.standard_normal((UNITS, UNITS)))
    return (mixed + rng.standard_normal(UNITS)).astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def codes(cells: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    scores = np.stack([cells[:, 2], cells[:, 5] - cells[:, 7], cells[:, 11]], axis=1)
    return (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


@pytest.fixture(scope="module")
def store(cells: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> States:
    text = PlantedText([Document(f"d{i}", b"x" * 1000, None) for i in range(COUNT // 1000)], [0] * (COUNT // 1000))
    path = tmp_path_factory.mktemp("rows") / "store"
    return write_store(path, text, every_byte(text), cells, rows="all", dtype="float16")


@pytest.fixture(scope="module")
def in_memory(cells: np.ndarray, codes: np.ndarray) -> L1LogisticOvR:
    return L1LogisticOvR(C=0.5, tol=TOL).fit(cells, codes)


def problem(codes: np.ndarray) -> Problem:
    cost = torch.full((3,), 0.5, dtype=torch.float64)
    return Problem(torch.from_numpy(codes), torch.arange(3), cost, cost)


def test_rows_from_disk_are_the_matrix(store: States, cells: np.ndarray):
    index = np.sort(np.random.default_rng(2).choice(COUNT, 5000, replace=False))
    rows = StoreRows(store, index)
    read = np.concatenate([chunk.numpy() for _, chunk in rows.chunks()])
    np.testing.assert_array_equal(read, cells[index])
    kept = rows.in_memory()
    assert kept.X.dtype == torch.float16
    np.testing.assert_array_equal(kept.X.float().numpy(), cells[index])


def test_a_fit_from_disk_is_the_fit_in_memory(store: States, codes: np.ndarray, in_memory: L1LogisticOvR):
    # One byte of memory: nothing is kept, and a Hessian is of 1,024 drawn rows.
    model = L1LogisticOvR(C=0.5, tol=TOL, memory_limit=1).fit(StoreRows(store, np.arange(COUNT)), codes)
    np.testing.assert_allclose(model.objective_, in_memory.objective_, rtol=2 * TOL)
    np.testing.assert_allclose(model.coef_, in_memory.coef_, rtol=0, atol=1e-3 * np.abs(in_memory.coef_).max())
    assert model.converged_.all()
    start = np.hstack([model.coef_, model.intercept_[:, None]])
    again = L1LogisticOvR(C=0.5, tol=TOL, memory_limit=1)
    assert again.fit(StoreRows(store, np.arange(COUNT)), codes, start=start).n_iter_.max() <= 3


def test_sgd_learns_from_disk_chunk_by_chunk(store: States, cells: np.ndarray, codes: np.ndarray):
    settings = {"C": 0.5, "solver": "sgd", "tol": 1e-3, "penalise_intercept": False, "random_state": 0, "max_iter": 200}
    rows = StoreRows(store, np.arange(COUNT))
    with mock.patch.object(StoreRows, "in_memory", side_effect=MemoryError):
        chunked = L1LogisticOvR(memory_limit=1, **settings).fit(rows, codes)
    whole = L1LogisticOvR(**settings).fit(rows, codes)
    assert chunked.converged_.all()
    assert (chunked.n_iter_ > 5).all()
    # Neither is at the optimum (2 to 15 % above it), and both are about as near to it.
    np.testing.assert_allclose(chunked.objective_, whole.objective_, rtol=0.25)
    assert (chunked.predict(cells) == whole.predict(cells)).mean() > 0.9


def test_sgd_that_ran_out_of_epochs_says_so(store: States, codes: np.ndarray):
    rows = StoreRows(store, np.arange(COUNT))
    with pytest.warns(ConvergenceWarning, match="did not converge in 2 iterations"):
        model = L1LogisticOvR(memory_limit=1, solver="sgd", tol=1e-3, max_iter=2, random_state=0).fit(rows, codes)
    assert (model.n_iter_ == 2).all()


def test_drawn_rows_stand_for_all(store: States, codes: np.ndarray):
    passes = LocalPasses(StoreRows(store, np.arange(COUNT)), problem(codes))
    W = torch.zeros(UNITS + 1, 3, dtype=torch.float64)
    tags = torch.arange(3)
    curvature = torch.full((3,), 0.5 * COUNT / 4, dtype=torch.float64)
    sums, sample = passes.evaluate(W, tags, Draw(4000, curvature, 0))
    assert sample is not None
    # At 0 every row has the same chance: a binomial count, and weights that add up to the curvature.
    chance = 4000 / COUNT
    deviation = np.sqrt(COUNT * chance * (1 - chance))
    assert abs(len(sample.X) - 4000) < 5 * deviation
    total = sample.weights.double().sum(0)
    assert torch.all((total - sums.curvature).abs() < 5 * deviation * 0.125 / chance)


def test_a_damaged_chunk_ends_the_fit_and_the_reading(cells: np.ndarray, codes: np.ndarray, tmp_path: Path):
    text = PlantedText([Document("d", b"x" * 9000, None)], [0])
    damaged = write_store(tmp_path / "store", text, every_byte(text), cells[:9000], rows="all")
    files = [file for file in (damaged.path / "states").rglob("*") if file.is_file() and file.name != "zarr.json"]
    last = max(files, key=lambda file: tuple(int(part) for part in file.parts if part.isdigit()))
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(InputError, match="a chunk is damaged"):
        L1LogisticOvR(memory_limit=1).fit(StoreRows(open_states(damaged.path), np.arange(9000)), codes[:9000])
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.filterwarnings("ignore")  # of the cluster's own libraries
def test_a_cluster_finds_the_same(store: States, codes: np.ndarray, in_memory: L1LogisticOvR):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster.scheduler_address) as client,
    ):
        passes = DaskPasses(client, store.path, np.arange(COUNT), problem(codes), parts=2, memory_limit=1)
        model = L1LogisticOvR(tol=TOL, memory_limit=1).fit_passes(passes, np.arange(3))
    np.testing.assert_allclose(model.objective_, in_memory.objective_, rtol=1e-6)
    np.testing.assert_allclose(model.coef_, in_memory.coef_, rtol=0, atol=1e-3 * np.abs(in_memory.coef_).max())


def test_two_processes_find_the_same(store: States, codes: np.ndarray, in_memory: L1LogisticOvR, tmp_path: Path):
    np.save(tmp_path / "codes.npy", codes)
    script = Path(__file__).with_name("group_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += [str(store.path), str(tmp_path / "codes.npy"), str(tmp_path / "found")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (np.load(tmp_path / f"found-{rank}.npy") for rank in (0, 1))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[:, -1], in_memory.objective_, rtol=1e-6)
    np.testing.assert_allclose(first[:, :-2], in_memory.coef_, rtol=0, atol=1e-3 * np.abs(in_memory.coef_).max())
