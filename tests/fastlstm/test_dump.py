"""``dump`` against one document at a time, and against being killed."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastlstm.cli import main
from fastlstm.corpus.shards import CorpusWriter, Document, Word
from fastlstm.errors import InputError
from fastlstm.model import ByteLM
from fastlstm.states import States, extraction, layout, open_states, packing, plan, shards, storage
from fastlstm.states import dump as dump_module
from fastlstm.states.dump import DumpSummary
from fastlstm.states.jobs import Worker
from fastlstm.states.plan import pack, plan_batches, plan_groups, plan_jobs
from fastlstm.states.rows import RowRule
from fastlstm.states.text import open_text
from fastlstm.training.checkpoint import TrainingState, save_checkpoint
from fastlstm.training.config import ModelConfig, TrainConfig
from tolerance import assert_as_good_as

H = 12
SPLITS = ("train", "valid", "test")
dump: Callable[..., DumpSummary] = functools.partial(dump_module.dump, progress=False, device="cpu")


def documents() -> list[tuple[str, Document]]:
    """Lengths from 1 to 900, one word and none, white space at both ends, bytes that are no UTF-8."""
    rng = np.random.default_rng(3)
    lengths = [1, 2, 3, 900, 40, 7, 350, 65, 64, 1, 128, 33, 5, 211, 90]
    texts = [bytes(rng.choice(list(b"ab c\n\xff"), size).tolist()) for size in lengths]
    texts += [b" \n ", b"word", b"\n one two  three\n"]
    return [
        (SPLITS[i % 3 if i else 0], Document(f"d{i}", text, label=None if i % 4 else float(i % 2)))
        for i, text in enumerate(texts)
    ]


def write_corpus(folder: Path, given: list[tuple[str, Document]], tagset: tuple[str, ...] | None = None) -> Path:
    with CorpusWriter(folder, kind="lines", preprocessing="none-1", tagset=tagset, documents_per_shard=4) as writer:
        for split, document in given:
            writer.add(split, document)
        writer.finish()
    return folder


def in_order(given: list[tuple[str, Document]]) -> list[Document]:
    return [document for split in SPLITS for where, document in given if where == split]


def write_checkpoint(
    run: Path, *, seed: int = 0, hidden_size: int = H, change: Callable[[ByteLM], None] | None = None
) -> Path:
    model = ByteLM(hidden_size, seed=seed)
    if change is not None:
        with torch.no_grad():
            change(model)
    zero = torch.zeros(1, 1, hidden_size)
    config = TrainConfig(model=ModelConfig(hidden_size=hidden_size, seed=seed))
    return save_checkpoint(run, model, TrainingState(3, "c" * 64, config, (zero, zero.clone()), {}), keep=1)


def livelier(model: ByteLM) -> None:
    """Weights as far from zero as trained ones, so that states differ in every byte."""
    for parameter in model.lstm.parameters():
        parameter *= 3


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing guards against power cuts only, and a busy disk takes 20 ms for each file."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "lines", documents())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"), change=livelier)


SMALL = {
    (extraction, "LANE_BYTES"): {"cpu": 64, "cuda": 64},
    (dump_module, "GROUP_VALUES"): {"cpu": 64 * H, "cuda": 64 * H},
    (plan, "READ_AGAIN"): 50,
    (packing, "WINDOW_VALUES"): {"cpu": 1, "cuda": 1},
    (packing, "MAX_STEPS"): 16,
    (layout, "BLOCK_ROWS"): 16,
    (layout, "SHARD_BLOCKS"): 2,
}


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many groups, batches, windows and shards in little text: 4 lanes have groups of 64 rows, batches of 256 bytes."""
    for (module, name), value in SMALL.items():
        monkeypatch.setattr(module, name, value)


def naive_positions(text: bytes, rule: str) -> list[int]:
    if rule == "all":
        return list(range(len(text)))
    if rule == "document":
        return [len(text) - 1]
    if rule == "word":
        return [i for i in range(len(text)) if not text[i : i + 1].isspace() and text[i + 1 : i + 2].strip() == b""]
    step = int(rule.removeprefix("every:"))
    return list(range(step - 1, len(text), step))


def naive_cells(model: ByteLM, given: list[bytes], *, running: bool) -> Tensor:
    """(M, H): every text read alone, byte after byte."""
    state, cells = None, []
    for text in given:
        ids = torch.frombuffer(bytearray(text), dtype=torch.uint8)[:, None]
        read, state = model.cells(ids, state if running else None)
        cells.append(read[:, 0])
    return torch.cat(cells)


def assert_states(store: States, model: ByteLM, given: list[Document], rule: str, *, running: bool = False) -> None:
    """float32 states as right as the naive loop's (a batch may sum in another order), float16 but for one rounding."""
    texts = [document.text for document in given]
    begins = np.cumsum([0] + [len(text) for text in texts])
    positions = [naive_positions(text, rule) for text in texts]
    expected = np.array([b + p for b, group in zip(begins, positions, strict=False) for p in group])
    np.testing.assert_array_equal(store.position, expected)
    np.testing.assert_array_equal(store.byte, np.frombuffer(b"".join(texts), np.uint8)[expected])
    np.testing.assert_array_equal(store.row_offset, np.cumsum([0] + [len(group) for group in positions]))
    np.testing.assert_array_equal(store.document_offset, begins)
    assert store.document_ids == [document.id for document in given]
    labels = [np.nan if document.label is None else document.label for document in given]
    np.testing.assert_array_equal(store.document_label, np.array(labels, np.float32))

    units = torch.from_numpy(store.units).long()
    naive = naive_cells(model, texts, running=running)[expected][:, units]
    truth = naive_cells(copy.deepcopy(model).double(), texts, running=running)[expected][:, units]
    stored = torch.from_numpy(np.asarray(store.states[...]))
    assert_as_good_as("states", stored, naive.to(stored.dtype), truth)
    assert truth.std() > 0.1  # something to be wrong about
    np.testing.assert_array_equal(store.read(0, store.rows), stored.float().numpy())


def model_of(checkpoint: Path) -> ByteLM:
    return dump_module.load_model(checkpoint)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rule", ["all", "document", "word", "every:1", "every:7", "every:60"])
@pytest.mark.usefixtures("small_steps")
def test_rows_are_those_of_one_document_at_a_time(
    checkpoint: Path, corpus: Path, tmp_path: Path, rule: str, dtype: str
) -> None:
    summary = dump(checkpoint, corpus, tmp_path / "store", rows=rule, dtype=dtype, batch_size=4)
    store = open_states(tmp_path / "store")
    assert_states(store, model_of(checkpoint), in_order(documents()), rule)
    assert (summary.rows, summary.text_bytes) == (store.rows, len(store.text))
    assert not summary.already_complete
    assert store.states.dtype == np.dtype(dtype)


def test_a_store_is_gone_on_with_by_as_many_threads_alone(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dump_module, "finish_store", killed)
        with pytest.raises(KeyboardInterrupt):
            dump(checkpoint, corpus, tmp_path / "store", batch_size=4)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(InputError, match=rf"versions\.threads is {threads}, now {threads + 1}"):
        dump(checkpoint, corpus, tmp_path / "store", batch_size=4)
    monkeypatch.undo()
    assert not dump(checkpoint, corpus, tmp_path / "store", batch_size=4).already_complete


@pytest.mark.gpu
@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("hidden_size", [H, 256])
@pytest.mark.parametrize("rule", ["all", "word", "every:7"])
def test_a_gpu_gives_the_same_states_and_goes_on_to_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, hidden_size: int
) -> None:
    run = write_checkpoint(tmp_path / "run", change=livelier, hidden_size=hidden_size)
    options: dict[str, Any] = {"rows": rule, "batch_size": 4, "device": "cuda"}
    dump(run, corpus, tmp_path / "whole", **options)
    store = open_states(tmp_path / "whole")
    assert store.attributes.precision == "fp16"
    texts = [document.text for document in in_order(documents())]
    rounded = naive_cells(model_of(run).half(), texts, running=False)[store.position]
    truth = naive_cells(model_of(run).double(), texts, running=False)[store.position]
    assert_as_good_as("states", torch.from_numpy(store.read(0, store.rows)), rounded, truth)
    with monkeypatch.context() as patch:
        mark, marked = dump_module.Progress.mark, []

        def killed(*arguments: Any) -> None:
            mark(*arguments)
            marked.append(arguments)
            if len(marked) == 3:
                raise KeyboardInterrupt

        patch.setattr(dump_module.Progress, "mark", killed)
        with pytest.raises(KeyboardInterrupt):
            dump(run, corpus, tmp_path / "killed", **options)
    dump(run, corpus, tmp_path / "killed", **options)
    assert open_states(tmp_path / "killed").read(0, store.rows).tobytes() == store.read(0, store.rows).tobytes()
    some = list(range(3, hidden_size, 5))
    dump(run, corpus, tmp_path / "some", units=some, **options)
    assert (open_states(tmp_path / "some").read(0, store.rows) == store.read(0, store.rows)[:, some]).all()


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("rule", ["all", "every:7"])
def test_running_state(checkpoint: Path, corpus: Path, tmp_path: Path, rule: str) -> None:
    dump(checkpoint, corpus, tmp_path / "store", rows=rule, dtype="float32", state="running")
    store = open_states(tmp_path / "store")
    assert_states(store, model_of(checkpoint), in_order(documents()), rule, running=True)
    assert (store.attributes.state, store.attributes.batch_size) == ("running", 1)
    dump(checkpoint, corpus, tmp_path / "fresh", rows=rule, dtype="float32")
    second = int(store.row_offset[1])
    fresh = open_states(tmp_path / "fresh").read(0, store.rows)
    np.testing.assert_allclose(fresh[:second], store.read(0, second), rtol=1e-4, atol=1e-6)
    assert not np.allclose(fresh[second:], store.read(second, store.rows), rtol=1e-4, atol=1e-6)


def test_default_sizes_give_the_same_states(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    dump(checkpoint, corpus, tmp_path / "store", dtype="float32")
    assert_states(open_states(tmp_path / "store"), model_of(checkpoint), in_order(documents()), "all")


@pytest.mark.usefixtures("small_steps")
def test_chosen_units_splits_and_documents(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    chosen = [documents()[i] for i in (0, 3, 6, 9, 12)] + [documents()[i] for i in (2, 5, 8, 11, 14)]
    dump(checkpoint, corpus, whole, splits=["test", "train"], documents=5)
    dump(checkpoint, corpus, part, splits=["test", "train"], documents=5, units=[7, 0, 11])
    store = open_states(part)
    assert store.attributes.text.splits == ("train", "test")
    assert_states(store, model_of(checkpoint), [document for _, document in chosen], "all")
    np.testing.assert_array_equal(store.document_split, [0] * 5 + [2] * 5)
    np.testing.assert_array_equal(store.units, [7, 0, 11])
    # To the bit: which cells are kept does not change how they are computed.
    np.testing.assert_array_equal(store.read(0, store.rows), open_states(whole).read(0, store.rows)[:, [7, 0, 11]])
    np.testing.assert_array_equal(store.column(11), open_states(whole).column(11))


def test_gold_words_come_back_as_byte_tags(checkpoint: Path, tmp_path: Path) -> None:
    tagset = ("DT", "NN", ".")
    first = Document("a", b"\n The dog. ", words=(Word(2, 5, "DT"), Word(6, 9, "NN"), Word(9, 10, ".")))
    second = Document("b", b" - ", words=())
    third = Document("c", b"\n dogs ", words=(Word(2, 6, "NN"),))
    given = [("train", first), ("train", second), ("valid", third)]
    folder = write_corpus(tmp_path / "tagged", given, tagset)
    dump(checkpoint, folder, tmp_path / "store", rows="word", dtype="float32")
    store = open_states(tmp_path / "store")
    assert store.attributes.text.tagset == tagset
    np.testing.assert_array_equal(store.row_offset, [0, 3, 3, 4])
    np.testing.assert_array_equal(store.position, [4, 8, 9, 11 + 3 + 5])
    expected = np.full(len(store.text), -1)
    for begin, document in ((0, first), (14, third)):
        for word in document.words or ():
            expected[begin + word.start : begin + word.end] = tagset.index(word.tag)
    np.testing.assert_array_equal(store.byte_tags(), expected)
    cells = naive_cells(model_of(checkpoint), [first.text, second.text, third.text], running=False)
    truth = naive_cells(model_of(checkpoint).double(), [first.text, second.text, third.text], running=False)
    rows = torch.from_numpy(store.position)
    assert_as_good_as("states", torch.from_numpy(store.read(0, 4)), cells[rows], truth[rows])


def test_untrained_is_another_model(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    dump(checkpoint, corpus, tmp_path / "store", rows="document", untrained=True, dtype="float32")
    store = open_states(tmp_path / "store")
    assert store.attributes.model.untrained
    assert store.attributes.model.step == 0
    naive = naive_cells(ByteLM(H), [document.text for document in in_order(documents())], running=False)
    truth = naive_cells(ByteLM(H).double(), [d.text for d in in_order(documents())], running=False)
    rows = torch.from_numpy(store.position)
    assert_as_good_as("states", torch.from_numpy(store.read(0, store.rows)), naive[rows], truth[rows])
    with pytest.raises(InputError, match=r"model\.sha256 is .*model\.untrained is True, now False"):
        dump(checkpoint, corpus, tmp_path / "store", rows="document", dtype="float32")


def counter(model: ByteLM) -> None:
    """Cell 5 counts the bytes "a" and forgets nothing; the other cells stay at zero."""
    for parameter in model.lstm.parameters():
        parameter.zero_()
    model.lstm.weight_ih_l0[2 * H + 5, ord("a")] = 30  # g
    model.lstm.bias_ih_l0[[5, H + 5]] = 30  # i, f


def endless(model: ByteLM) -> None:
    counter(model)
    model.lstm.bias_ih_l0[5] = torch.nan


def test_value_beyond_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_checkpoint(tmp_path / "run", change=counter)
    given = [("train", Document("short", b"aaaa")), ("train", Document("long", b"a" * 15 + b"b" * 30))]
    folder = write_corpus(tmp_path / "corpus", given)
    monkeypatch.setattr(packing, "MAX_STEPS", 16)
    # c counts the a's; a limit of 12 stands for the 65,504 that would take as many bytes.
    monkeypatch.setitem(shards.LARGEST, "float16", 12.0)
    with pytest.raises(
        InputError, match=r"document 'long', byte 12, unit 5: cell state 13 is beyond float16.*--dtype float32"
    ):
        dump(run, folder, tmp_path / "store")
    with pytest.raises(InputError, match="unfinished"):
        open_states(tmp_path / "store")
    dump(run, folder, tmp_path / "single", dtype="float32")
    assert open_states(tmp_path / "single").column(5).max() == 15
    dump(run, folder, tmp_path / "other", units=[0, 4, 6])  # what is not stored need not fit


@pytest.mark.usefixtures("small_steps")
def test_the_corrected_command_takes_over_a_store_without_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_checkpoint(tmp_path / "run", change=counter)
    monkeypatch.setitem(shards.LARGEST, "float16", 12.0)
    long = Document("long", b"a" * 13)
    for name, given in (("at once", [long]), ("later", [Document("early", b"b" * 300), long])):
        folder = write_corpus(tmp_path / f"corpus {name}", [("train", document) for document in given])
        with pytest.raises(InputError, match=r"document 'long', byte 12, unit 5: .* is beyond float16"):
            dump(run, folder, tmp_path / name, units=[5], batch_size=1)
    dump(run, tmp_path / "corpus at once", tmp_path / "at once", units=[5], batch_size=1, dtype="float32")
    assert open_states(tmp_path / "at once").column(5).tolist() == list(range(1, 14))
    # Rows that count are never thrown away.
    with pytest.raises(InputError, match="holds an unfinished store of other input: dtype is float16, now float32"):
        dump(run, tmp_path / "corpus later", tmp_path / "later", units=[5], batch_size=1, dtype="float32")


WRITER = """
import sys
from pathlib import Path
from fastlstm.files import only_writer
with only_writer(Path(sys.argv[1]).resolve()):
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_holds_without_a_store_is_refused(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        monkeypatch.setattr(storage, "PATIENCE", 0.0)
        with pytest.raises(InputError, match="store: another process is writing it"):
            dump(checkpoint, corpus, out, rows="document")
        assert not out.exists()
        other.communicate("")
    dump(checkpoint, corpus, out, rows="document")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_true_limit_of_float16(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", change=counter)
    folder = write_corpus(tmp_path / "corpus", [("train", Document("long", b"a" * 65_600))])
    with pytest.raises(InputError, match="document 'long', byte 65519, unit 5: cell state inf is beyond float16"):
        dump(run, folder, tmp_path / "store", rows="every:5", units=[5])


def test_value_that_is_not_finite(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", change=endless)
    folder = write_corpus(tmp_path / "corpus", [("train", Document("d", b"xa"))])
    for dtype in ("float16", "float32"):
        with pytest.raises(InputError, match="document 'd', byte 0, unit 5: cell state nan is not finite"):
            dump(run, folder, tmp_path / dtype, dtype=dtype)


def test_other_input_is_refused_by_name(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    dump(checkpoint, corpus, out, rows="document")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other_model = write_checkpoint(tmp_path / "run", seed=1)
    other_text = write_corpus(tmp_path / "other", documents()[1:])
    for arguments, options, message in (
        ((other_model, corpus), {}, r"model\.sha256 is"),
        ((checkpoint, other_text), {}, r"text\.sha256 is"),
        ((checkpoint, corpus), {"rows": "word"}, "rows is document, now word"),
        ((checkpoint, corpus), {"dtype": "float32"}, "dtype is float16, now float32"),
        ((checkpoint, corpus), {"documents": 2}, r"text\.documents is None, now 2"),
        ((checkpoint, corpus), {"splits": ["test"]}, r"text\.splits is"),
        ((checkpoint, corpus), {"units": [1]}, r"units is None, now \[1\]"),
        ((checkpoint, corpus), {"state": "running"}, "state is document, now running"),
    ):
        with pytest.raises(InputError, match=message):
            dump(*arguments, out, **{"rows": "document", **options})
    (tmp_path / "store.progress").mkdir()
    (tmp_path / "store.progress" / "group-00000000").write_bytes(b"left by a kill at the very end")
    assert dump(checkpoint, corpus, out, rows="document").already_complete
    assert not (tmp_path / "store.progress").exists()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "every:0"}, "rows: expected all, document, word, document-mean, word-mean or every:K"),
        ({"rows": "every:900"}, None),
        ({"rows": "every:901"}, "rows: every:901 picks no byte"),
        ({"rows": f"every:{10**18 - 1}"}, "picks no byte"),
        ({"rows": f"every:{10**18}"}, "rows: expected all, document, word, document-mean, word-mean or every:K"),
        ({"rows": "every:" + "9" * 5000}, "rows: expected all, document, word, document-mean, word-mean or every:K"),
        ({"units": [0, H]}, f"units: expected 0 to {H - 1}, got {H}"),
        ({"units": [1, 1]}, "units: expected different cells"),
        ({"dtype": "bfloat16"}, "dtype: expected float16 or float32, got 'bfloat16'"),
        ({"state": "carry"}, "state: expected document or running"),
        ({"splits": ["dev"]}, "splits: 'dev' is not in"),
        ({"documents": 0}, "documents: expected a positive number"),
        ({"batch_size": 0}, "batch_size: expected 1 to 65536, got 0"),
        ({"precision": "fp8"}, "precision: expected auto or fp32 or bf16 or fp16, got 'fp8'"),
        ({"keep": []}, "keep: expected states or statistics, got nothing"),
        ({"keep": ["h"]}, "keep: expected states or statistics, got 'h'"),
        ({"keep": ["statistics"], "state": "running"}, "statistics are of single states from zero, not of running"),
        ({"keep": ["statistics"], "rows": "word-mean"}, "not of word-mean rows"),
        ({"threads": 0}, "threads: expected >= 1, got 0"),
        ({"batch_size": 10**20}, f"batch_size: expected 1 to 65536, got {10**20}"),
    ],
)
def test_arguments_are_checked(
    checkpoint: Path, corpus: Path, tmp_path: Path, options: dict[str, object], message: str | None
) -> None:
    if message is None:
        assert dump(checkpoint, corpus, tmp_path / "store", **options).rows == 1
        return
    with pytest.raises(InputError, match=message):
        dump(checkpoint, corpus, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("small_steps")
def test_a_disk_that_is_really_full(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system in memory, as root may")
    try:
        with pytest.raises(OSError, match=r"No space left .*make room and run the same command again.*disk/store"):
            dump(checkpoint, corpus, disk / "store", batch_size=4)
        with pytest.raises(InputError, match="unfinished"):
            open_states(disk / "store")
        done = len(list((disk / "store.progress").glob("group-*")))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        dump(checkpoint, corpus, disk / "store", batch_size=4)
        dump(checkpoint, corpus, tmp_path / "store", batch_size=4)
        full, whole = (
            {path.relative_to(base): path.read_bytes() for path in base.rglob("*") if path.is_file()}
            for base in (disk / "store", tmp_path / "store")
        )
        assert full == whole
        assert done > 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "options", [{"rows": "all"}, {"rows": "word-mean"}, {"rows": "every:7", "state": "running"}, {"units": [5, 2]}]
)
def test_verify(checkpoint: Path, corpus: Path, tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    out = tmp_path / "store"
    options = {"batch_size": 4, "dtype": dtype, **options}
    with pytest.raises(InputError, match="store: expected a finished store to verify"):
        dump(checkpoint, corpus, out, verify=9, **options)
    dump(checkpoint, corpus, out, **options)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    verified = dump(checkpoint, corpus, out, verify=99, **options).verified
    assert verified is not None
    assert verified.problems == ()
    running = "state" in options
    assert verified.rows == open_states(out).rows
    assert verified.documents == (18 if running or options.get("rows") == "all" or "units" in options else 16)
    assert verified.chunks > verified.rows / 16
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    # A bit that fell over: the checksum knows.
    shard = out / "states" / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    verified = dump(checkpoint, corpus, out, verify=99, **options).verified
    assert verified is not None
    assert len(verified.problems) == 1
    assert "states, rows 32 to 64" in verified.problems[0]
    assert "checksum" in verified.problems[0]

    # Rows that were written with right checksums, and are not those of the model.
    store = open_states(out)
    values = np.concatenate([store.read(0, 1)] * store.rows).astype(dtype)
    whole = layout.Layout.of(store.rows, len(store.units), dtype)
    for number in range(whole.shards):
        rows = values[number * 32 : number * 32 + 32]
        blocks = (whole.block(rows[i : i + 16]) for i in range(0, len(rows), 16))
        storage.LocalStorage(out).write_shard(number, whole, blocks)
    verified = dump(checkpoint, corpus, out, verify=99, **options).verified
    assert verified is not None
    assert len(verified.problems) >= 10
    assert all("states differ by" in problem for problem in verified.problems)


def test_verify_on_the_command_line(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dump", str(checkpoint), str(corpus), "--out", str(tmp_path / "store"), "--quiet"]
    assert main([*command, "--verify"]) == 2
    assert main(command) == 0
    assert main([*command, "--verify", "5"]) == 0
    assert "5 documents" in capsys.readouterr().out
    text = tmp_path / "store" / "text" / "c" / "0"
    data = bytearray(text.read_bytes())
    data[100] ^= 1
    text.write_bytes(data)
    with pytest.raises(SystemExit, match="1"):
        main([*command, "--verify"])
    assert "store: text, rows 0 to" in capsys.readouterr().err


def test_lanes_hold_every_document_once_and_evenly() -> None:
    lengths = np.array([5, 0, 1, 9, 4, 4, 0, 2])
    lanes = pack(lengths, 3)
    assert sorted(document for lane in lanes for document in lane) == [0, 2, 3, 4, 5, 7]
    filled = [int(lengths[lane].sum()) for lane in lanes]
    assert filled == sorted(filled, reverse=True)
    assert filled == [9, 8, 8]
    assert pack(lengths[:3], 8) == [[0], [2]]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("name", ["all", "document", "word", "every:7", "every:60"])
@pytest.mark.parametrize("running", [False, True])
def test_groups_cover_the_rows_and_batches_the_text(corpus: Path, name: str, running: bool) -> None:
    text = open_text(dump_module.Corpus(corpus), SPLITS)
    rule = RowRule.parse(name)
    positions = rule.positions(text, 0, len(text))
    row_offset = rule.row_offset(text)
    offset = text.document_offset[[0, -1]] if running else text.document_offset
    rows = row_offset[[0, -1]] if running else row_offset
    groups = plan_groups(offset, rows, lambda row: rule.position(text, row_offset, row), 16)
    assert [group.first_row for group in groups] == list(range(0, len(positions), 16))
    assert [group.last_row for group in groups[:-1]] == [group.first_row for group in groups[1:]]
    assert groups[-1].last_row == len(positions)
    assert [job.start for job in plan_jobs(groups)[1:]] == [job.stop for job in plan_jobs(groups)[:-1]]
    if running and name == "all":
        assert len(plan_jobs(groups)) < len(groups) / 4
    for group in groups:
        begins = group.start
        if group.carried_in:
            assert begins == positions[group.first_row - 1] + 1
            assert groups[group.index - 1].carries_out
        else:
            assert begins in offset
            assert begins <= positions[group.first_row]
        carried = group.carried_in
        batches = list(plan_batches(group, offset, limit=128))
        for batch in batches:
            assert batch.begin[0] == begins
            np.testing.assert_array_equal(batch.begin[1:], batch.end[:-1])
            assert set(batch.begin[1:].tolist()) <= set(offset.tolist())
            assert (batch.end > batch.begin).all()
            assert batch.end[-1] - batch.begin[0] <= 128
            assert batch.carried_in == carried
            begins = int(batch.end[-1])
            carried = batch.carries_out
            assert carried or batch.last or begins in offset
        assert begins == group.stop == positions[group.last_row - 1] + 1
        assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
        assert carried == group.carries_out


def test_workers_share_the_jobs() -> None:
    for count in (1, 2, 3, 7):
        orders = [Worker(index, count).order(5) for index in range(count)]
        assert all(sorted(order) == list(range(5)) for order in orders)
    assert [Worker(index, 2).order(6) for index in (0, 1)] == [[0, 1, 2, 5, 4, 3], [3, 4, 5, 2, 1, 0]]
    assert Worker.parse("1/4") == Worker(1, 4)
    for text in ("4/4", "1", "a/b", "-1/4", "1/0"):
        with pytest.raises(InputError, match="worker: expected K/N"):
            Worker.parse(text)


def test_row_rules_do_not_depend_on_where_the_text_is_cut(corpus: Path) -> None:
    text = open_text(dump_module.Corpus(corpus), SPLITS)
    for name in ("all", "document", "word", "every:7"):
        rule = RowRule.parse(name)
        assert str(rule) == name
        whole = rule.positions(text, 0, len(text))
        for size in (1, 5, 64):
            cut = np.concatenate([rule.positions(text, start, stop) for start, stop in text.ranges(size)])
            np.testing.assert_array_equal(cut, whole)


# Runs in a process of its own: dumps in forked children, of which some are killed with SIGKILL just before their n-th
# file operation at the store or beside it (opening, renaming, making or removing). Prints how often each was killed.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from fastlstm.states import dump as dump_module, layout, packing, plan
from fastlstm.states.progress import Progress
from fastlstm.states.storage import LocalStorage

torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote; a power cut does
dump_module.WAIT = 0.01
for module, name, value in json.loads(sys.argv[5]):
    setattr(sys.modules[module], name, value)
checkpoint, corpus, out = sys.argv[1:4]
dump_module.load_model(checkpoint)[0].cells(torch.zeros(1, 1, dtype=torch.uint8))  # once for all children

def start(store, options, operations):
    child = os.fork()
    if child == 0:
        left = operations
        def count(event, arguments):
            nonlocal left
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and arguments and (
                str(arguments[0]).startswith(str(store))
            ):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        dump_module.dump(checkpoint, corpus, store, progress=False, device="cpu", threads=2, **options)
        os._exit(0)
    return child

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

report = {}
for name, options in json.loads(sys.argv[4]).items():
    assert wait(start(Path(out, "whole", name), options, -1)) == 0
    store = Path(out, "killed", name)
    draw = random.Random(0)
    beginning = [3, 60, 100]
    kills = {"while beginning": 0, "while dumping": 0, "half-written shards": 0}
    for attempt in range(100):
        progress = Progress(LocalStorage(store)).read()
        begun = progress is not None and progress.ready
        early = beginning.pop() if beginning and not begun else 190
        status = wait(start(store, options, draw.randint(8, 50 + 20 * max(0, attempt - 15)) if begun else early))
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills["while dumping" if begun else "while beginning"] += 1
        kills["half-written shards"] += len(list((store / "states").rglob("*.partial")))
    # Three at once, of which two die: the third goes on for them.
    store = Path(out, "shared", name)
    children = [start(store, options, operations) for operations in (-1, 25, 40)]
    assert wait(children[0]) == 0
    kills["workers"] = [wait(child) for child in children[1:]]
    report[name] = kills
print(json.dumps(report))
"""


def killed_again_and_again(
    checkpoint: Path, corpus: Path, folder: Path, jobs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    small = [(module.__name__, name, value) for (module, name), value in SMALL.items()]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, checkpoint, corpus, folder, json.dumps(jobs), json.dumps(small)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"TRITON_INTERPRET": "0"},  # plain PyTorch is quicker
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    for name in jobs:
        assert report[name]["while beginning"] >= 2
        assert report[name]["while dumping"] >= 3, report
        whole, killed, shared = (
            {path.relative_to(base): path.read_bytes() for path in base.rglob("*") if path.is_file()}
            for base in (folder / way / name for way in ("whole", "killed", "shared"))
        )
        assert killed == whole
        assert shared == whole
        assert open_states(folder / "killed" / name).rows > 100
    for way in ("whole", "killed", "shared"):
        assert sorted(path.name for path in (folder / way).iterdir()) == sorted(jobs)
    return report


JOBS: dict[str, dict[str, Any]] = {
    "running": {"rows": "every:3", "state": "running"},
    "chosen": {"rows": "every:3", "units": [3, 1], "dtype": "float32", "batch_size": 3},
    "words": {"rows": "word-mean", "batch_size": 4},
    "both": {"rows": "word", "keep": ["states", "statistics"], "batch_size": 3},
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_again_and_again_gives_the_same_bytes(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    killed_again_and_again(checkpoint, corpus, tmp_path, {"chosen": JOBS["chosen"]})


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_every_kind_of_dump_killed_again_and_again(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    report = killed_again_and_again(checkpoint, corpus, tmp_path, JOBS)
    assert sum(kills["while beginning"] + kills["while dumping"] for kills in report.values()) >= 20
    assert sum(kills["half-written shards"] for kills in report.values()) >= 1
    assert [status for kills in report.values() for status in kills["workers"]].count(-9) >= 1
