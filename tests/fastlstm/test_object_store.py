"""Dumps into an object store: moto's S3 server, which the test starts."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_dump import SMALL, documents, dump, livelier, write_checkpoint, write_corpus

from fastlstm.cli import main
from fastlstm.errors import InputError
from fastlstm.states import open_states, open_statistics
from fastlstm.states.jobs import Worker
from fastlstm.states.storage import storage_at

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("moto") is None or importlib.util.find_spec("obstore") is None,
    reason="needs moto's S3 server and obstore: pip install 'moto[server]' 'fastlstm[s3]'",
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                request = urllib.request.Request(f"{url}/bucket", method="PUT")
                with urllib.request.urlopen(request, timeout=5):
                    break
            except OSError:
                assert process.poll() is None, "moto's server ended"
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for (module, name), value in SMALL.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return "s3://bucket/folder"


def test_the_same_store_as_in_a_folder(bucket: str, tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", change=livelier)
    corpus = write_corpus(tmp_path / "corpus", documents())
    options = {"rows": "every:7", "batch_size": 4, "keep": ["states", "statistics"]}
    dump(run, corpus, tmp_path / "store", **options)
    url = f"{bucket}/store.zarr"
    with pytest.raises(InputError, match=r"store\.zarr: expected a states store, found nothing"):
        open_states(url)
    dump(run, corpus, url, **options)
    here, there = open_states(tmp_path / "store"), open_states(url)
    assert there.identity == here.identity
    np.testing.assert_array_equal(there.read(0, there.rows), here.read(0, here.rows))
    np.testing.assert_array_equal(there.column(5), here.column(5))
    np.testing.assert_array_equal(np.concatenate(list(there.scan(9))), np.concatenate(list(here.scan(9))))
    np.testing.assert_array_equal(open_statistics(url).top_context, open_statistics(tmp_path / "store").top_context)
    verified = dump(run, corpus, url, verify=5, **options).verified
    assert verified is not None
    assert verified.problems == ()
    assert dump(run, corpus, url, **options).already_complete
    with pytest.raises(InputError, match="rows is every:7, now all"):
        dump(run, corpus, url, batch_size=4)
    # To the byte, and nothing beside it.
    files = {path.relative_to(tmp_path / "store").as_posix(): path for path in (tmp_path / "store").rglob("*")}
    storage = storage_at(url)
    for name, path in files.items():
        if path.is_file():
            assert storage.read(name) == path.read_bytes(), name
    assert storage.beside(".progress").is_empty()


def test_workers_and_a_dead_one(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two workers dies after its first group; the first does what is missing."""
    run = write_checkpoint(tmp_path / "run", change=livelier)
    corpus = write_corpus(tmp_path / "corpus", documents())
    options = {"rows": "word", "batch_size": 3}
    dump(run, corpus, tmp_path / "store", **options)
    url = f"{bucket}/shared.zarr"

    class DeathError(Exception):
        pass

    from fastlstm.states.progress import Progress

    mark, marked = Progress.mark, []

    def dying(progress: Progress, group: int, tensors: object) -> None:
        if marked:
            raise DeathError
        mark(progress, group, tensors)  # type: ignore[arg-type]
        marked.append(group)

    with monkeypatch.context() as context:
        context.setattr(Progress, "mark", dying)
        with pytest.raises(DeathError):  # worker 0 begins the store
            dump(run, corpus, url, worker=Worker(0, 2), **options)
    with pytest.raises(InputError, match="unfinished"):
        open_states(url)
    dump(run, corpus, url, worker=Worker(1, 2), **options)
    here, there = open_states(tmp_path / "store"), open_states(url)
    np.testing.assert_array_equal(there.read(0, there.rows), here.read(0, here.rows))
    assert len(marked) == 1


def test_a_store_that_does_not_answer_is_one_line(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "run", "corpus", "--out", "s3://no-such-bucket/x"]) == 2
    with pytest.raises(OSError, match="s3://no-such-bucket/x: "):
        open_states("s3://no-such-bucket/x")


def test_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InputError, match=r"s3://bucket/x: object stores need obstore: pip install 'fastlstm\[s3\]'"):
        open_states("s3://bucket/x")
    monkeypatch.undo()
    with pytest.raises(InputError, match="nonsense://x"):
        open_states("nonsense://x")
