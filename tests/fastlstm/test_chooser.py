"""Which kernel runs, and what is said about it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastlstm import LSTM, backends, explain, functional
from fastlstm.backends import CUDNN_FASTER, VARIABLE, Call, MeasuredRow, choose, warn_of_fallback
from fastlstm_kernels.eager import HAS_ONEDNN
from recurrences import DEVICE

BF16 = Call(hidden_size=2048, batch_size=128, dtype=torch.bfloat16, capability=(9, 0))
WIDE = Call(hidden_size=4096, batch_size=128, dtype=torch.bfloat16, capability=(9, 0))
LARGE = WIDE._replace(batch_size=2048, training=True)


def replace(call: Call, **changes: Any) -> Call:
    return call._replace(**changes)


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(backends, "HAS_TRITON", True)


@pytest.fixture(autouse=True)
def _an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever GPU there is: the Hopper kernels' own question to the driver is answered as on an H100."""
    monkeypatch.setattr(backends, "_hopper_device_refusal", lambda index: None)


@pytest.fixture
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpreter: what a machine with a GPU would choose."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("_on_a_gpu")
@pytest.mark.parametrize(
    ("call", "backend", "reason"),
    [
        (BF16, "hopper", r"resident weights, measured faster near H=2048 B=128 torch\.bfloat16: 8\.03 against 15\.3"),
        (replace(BF16, cells=True, resets=True, lengths=True, ids=True, training=True), "hopper", "resident weights"),
        (replace(BF16, hidden_size=1024), "hopper", "4.23 against 6.20 at H=1024 B=128"),
        (replace(BF16, hidden_size=1024, batch_size=16), "triton", "the fused kernels"),
        (replace(BF16, batch_size=512), "hopper", "31.4 against 32.1 at H=2048 B=512"),
        (replace(BF16, batch_size=512, steps=64), "triton", "the fused kernels"),
        (replace(BF16, hidden_size=1024, batch_size=512), "triton", "the fused kernels"),
        (replace(BF16, hidden_size=1024, batch_size=2048), "hopper", "47.5 against 51.3"),
        (replace(BF16, batch_size=512, training=True), "hopper", "106 against 120 at H=2048 B=512"),
        (replace(BF16, hidden_size=1024, batch_size=512, training=True), "hopper", "160 against 176 at H=1024 B=2048"),
        (replace(BF16, hidden_size=2000), "triton", r"do not serve it: they hold .* and H is 2000"),
        (replace(BF16, hidden_size=1792), "triton", r"do not serve it: they come compiled for H = 1024, 1536, 2048"),
        (replace(BF16, hidden_size=1280), "triton", "the fused kernels"),
        (replace(BF16, capability=(8, 0)), "triton", r"are for compute capability \(9, 0\), and this GPU has \(8, 0\)"),
        (WIDE, "triton", r"the fused kernels; .* near H=4096 B=128 torch\.bfloat16"),
        (LARGE, "cudnn", "377 against 393 at H=4096 B=512"),
        (replace(LARGE, training=False), "triton", "the fused kernels"),
        (replace(LARGE, hidden_size=2048, capability=(8, 0)), "cudnn", "461 against 502 at H=2048 B=2048"),
        (replace(LARGE, cells=True), "triton", "cuDNN may be faster .* but cuDNN returns no c_t"),
        (replace(LARGE, resets=True), "triton", "cuDNN has no resets"),
        (replace(LARGE, ids=True), "triton", "cuDNN reads dense inputs"),
        (replace(LARGE, compiling=True), "triton", "torch.compile takes cuDNN's LSTM apart"),
        (replace(BF16, steps=1), "triton", "the fused kernels"),
        (replace(BF16, steps=31), "triton", "the fused kernels"),
        (replace(BF16, steps=32), "hopper", "resident weights"),
        (replace(BF16, dtype=torch.float64), "torch", "they have no torch.float64"),
        (replace(BF16, capability=(7, 5)), "cudnn", r"needs compute capability \(8, 0\), and this GPU has \(7, 5\)"),
        (replace(BF16, capability=(7, 5), cells=True), "torch", "compute capability"),
        (replace(BF16, device="cpu"), "torch", "plain PyTorch on cpu"),
        (replace(BF16, device="cpu", dtype=torch.float32, training=True), "torch", "plain PyTorch on cpu"),
        (replace(BF16, device="cpu", dtype=torch.float32, resets=True), "torch", "plain PyTorch on cpu"),
    ],
)
def test_the_choice_follows_the_measured_rows(call: Call, backend: str, reason: str) -> None:
    choice = choose(call)
    assert choice.backend == backend
    assert re.search(reason, choice.reason), choice.reason
    assert choice.fallback == ("cannot run this call" in choice.reason)
    assert str(choice) == f"{backend}: {choice.reason}"


@pytest.mark.usefixtures("_on_a_gpu")
@pytest.mark.parametrize(
    ("call", "backend", "message"),
    [
        (replace(BF16, cells=True), "cudnn", "backend='cudnn' cannot run this call: cuDNN returns no c_t"),
        (replace(BF16, lengths=True), "cudnn", "cuDNN has no lengths="),
        (replace(BF16, recompute=True), "cudnn", "recompute=True would do nothing"),
        (replace(BF16, device="cpu"), "cudnn", "cuDNN needs an NVIDIA GPU, and the tensors are on cpu"),
        (replace(BF16, device="cpu"), "triton", "they need an NVIDIA GPU, and the tensors are on cpu"),
        (replace(BF16, dtype=torch.float64), "triton", "they have no torch.float64"),
        (BF16, "fastest", "backend: expected 'auto', 'hopper', 'triton', 'cudnn' or 'torch', got 'fastest'"),
        (WIDE, "hopper", r"backend='hopper' cannot run this call: they hold the weights of H = .* and H is 4096"),
        (replace(BF16, dtype=torch.float32), "hopper", "they have no torch.float32"),
        (replace(BF16, device="cpu"), "hopper", "they need an NVIDIA GPU, and the tensors are on cpu"),
    ],
)
def test_a_forced_kernel_that_cannot_run_says_why(call: Call, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(call, backend)


def test_other_sizes_run_on_the_hopper_kernels_when_forced() -> None:
    assert str(choose(replace(BF16, hidden_size=1280), "hopper")) == "hopper: forced by backend"


def test_the_gpu_of_the_tensors_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_hopper_device_refusal", lambda index: f"GPU {index} has no room" if index else None)
    assert choose(BF16, "hopper").backend == "hopper"
    with pytest.raises(ValueError, match="cannot run this call: GPU 3 has no room"):
        choose(replace(BF16, device_index=3), "hopper")
    monkeypatch.setattr("fastlstm.functional.capability_of", lambda device: (9, 0))
    weights = [torch.zeros(4 * 256, columns, device=torch.device("meta")) for columns in (5, 256)]

    class OnAGpu:
        """A weight on the second GPU, as far as ``describe`` looks."""

        device, dtype, shape, requires_grad = torch.device("cuda", 1), torch.float32, weights[0].shape, False

    seen = functional.describe(
        weights[0].new_zeros(3, 2, 5),
        [OnAGpu(), weights[1]],  # type: ignore[list-item]
        num_layers=1,
        bidirectional=False,
        batch_first=False,
        resets=False,
        lengths=False,
        cells=False,
        recompute=False,
    )
    assert (seen.device, seen.device_index, seen.capability) == ("cuda", 1, (9, 0))


def test_the_interpreter_stands_in_for_a_gpu_but_only_when_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    call = Call(hidden_size=8, batch_size=2, dtype=torch.float32, device="cpu")
    assert choose(call).backend == "torch"
    assert choose(call, "triton").backend == "triton"
    with pytest.raises(ValueError, match=r"interpreter multiplies torch\.bfloat16 wrongly"):
        choose(replace(call, dtype=torch.bfloat16), "triton")


def test_the_variable_forces_and_the_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cudnn")
    assert str(choose(BF16)) == "cudnn: forced by FASTLSTM_BACKEND"
    assert str(choose(BF16, "triton")) == "triton: forced by backend"
    with pytest.raises(ValueError, match="FASTLSTM_BACKEND='cudnn' cannot run this call: cuDNN needs an NVIDIA GPU"):
        LSTM(5, 4)(torch.zeros(2, 1, 5))
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(ValueError, match="FASTLSTM_BACKEND: expected 'auto'"):
        choose(BF16)
    monkeypatch.setenv(VARIABLE, "")
    assert choose(BF16).backend == "hopper"


def test_without_triton_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    assert str(choose(WIDE)) == "cudnn: the Triton kernels cannot run this call: the package triton is not installed"
    assert choose(replace(WIDE, resets=True)).backend == "torch"
    assert choose(BF16).backend == "hopper"
    with pytest.raises(ValueError, match="the Triton kernels compute the gates again for them, and the package triton"):
        choose(replace(BF16, recompute=True), "hopper")
    with pytest.raises(ValueError, match="the package triton is not installed"):
        choose(BF16, "triton")


def test_a_choice_is_remembered_with_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose(WIDE)
    assert choose(WIDE) is first
    monkeypatch.setattr(torch.backends.cudnn, "enabled", not torch.backends.cudnn.enabled)
    assert choose(WIDE) is not first


@pytest.mark.parametrize("row", CUDNN_FASTER, ids=lambda row: row.evidence)
def test_no_row_hides_another(row: MeasuredRow) -> None:
    call = Call(int(row.H[0]), int(row.B[0]), row.dtypes[0], steps=1 if row.T == (1, 1) else 128)
    call = call._replace(batch_size=max(8, call.batch_size), hidden_size=max(128, call.hidden_size))
    covering = [other for other in CUDNN_FASTER if other.covers(replace(call, training=bool(row.training)))]
    assert covering[:1] == [row]


@pytest.fixture
def _no_warning_yet() -> Iterator[None]:
    backends._warn_once.cache_clear()
    yield
    backends._warn_once.cache_clear()


@pytest.mark.usefixtures("_no_warning_yet")
def test_a_fallback_warns_once_for_each_reason() -> None:
    choice = choose(replace(BF16, dtype=torch.float64))
    with pytest.warns(UserWarning, match=r"fastlstm runs 'torch': .* they have no torch\.float64"):
        warn_of_fallback(choice.backend, choice.reason)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_fallback(choice.backend, choice.reason)


@pytest.mark.usefixtures("_no_warning_yet")
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:torch\.")
def test_a_fallback_warns_once_under_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    fallback = backends.Choice("torch", "as if on a GPU of long ago", True)
    monkeypatch.setattr("fastlstm.functional.choose", lambda call, backend: fallback)
    torch._dynamo.reset()
    lstm, said = LSTM(5, 4), []
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (3, 6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compiled(torch.zeros(T, 2, 5))
        said += [str(one.message) for one in caught if "fastlstm" in str(one.message)]
    assert said == ["fastlstm runs 'torch': as if on a GPU of long ago"]


def test_explain_takes_an_lstm_or_sizes() -> None:
    lstm = LSTM(5, 4, batch_first=True)
    assert explain(lstm, torch.zeros(3, 2, 5), return_cells=True).backend == "torch"
    forced = LSTM(5, 4, backend="triton", device=DEVICE)
    assert str(explain(forced, torch.zeros(3, 2, 5, device=DEVICE))) == "triton: forced by backend"
    assert explain(hidden_size=2048, batch_size=128, dtype=torch.bfloat16).backend == "hopper"
    assert explain(hidden_size=1024, batch_size=16, dtype=torch.float16, resets=True).backend == "triton"
    assert explain(hidden_size=1024, batch_size=16, dtype=torch.float16, backend="torch").backend == "torch"
    with pytest.raises(TypeError, match="hidden"):
        explain(hidden=2048, batch_size=128, dtype=torch.bfloat16)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="input: expected the tensor"):
        explain(lstm)  # type: ignore[call-overload]


def test_explain_sees_what_the_call_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Call] = []
    monkeypatch.setattr("fastlstm.module.choose", lambda call, backend: seen.append(call))
    lstm = LSTM(256, 4, batch_first=True, recompute=True, bidirectional=True, num_layers=2)
    resets = torch.zeros(3, 2, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        explain(lstm, torch.zeros(3, 2, dtype=torch.uint8), resets=resets, lengths=torch.ones(3), return_cells=True)
    assert seen == [
        Call(
            hidden_size=4,
            batch_size=3,
            dtype=torch.bfloat16,
            device="cpu",
            steps=2,
            input_size=256,
            num_layers=2,
            bidirectional=True,
            ids=True,
            resets=True,
            lengths=True,
            cells=True,
            training=True,
            recompute=True,
        )
    ]


def test_a_plain_call_does_not_import_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fastlstm\n"
        "x = torch.zeros(2, 3, 5, requires_grad=True)\n"
        "fastlstm.LSTM(5, 4)(x)[0].sum().backward()\n"
        "import fastlstm_kernels.eager\n"
    )
    # The packages may come from pytest's own path, not from an installation.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


@pytest.mark.gpu
def test_a_gpu_chooses_as_it_says() -> None:
    lstm = LSTM(128, 256, device="cuda", dtype=torch.float16)
    x = torch.zeros(3, 16, 128, device="cuda", dtype=torch.float16)
    assert explain(lstm, x).backend == "triton"
    assert explain(lstm, x, return_cells=True).backend == "triton"
    assert explain(lstm, torch.zeros(3, 16, device="cuda", dtype=torch.uint8)).backend == "triton"
    wide = LSTM(128, 4096, device="cuda", dtype=torch.float16)
    assert explain(wide, x.new_zeros(3, 512, 128)).backend == "cudnn"
    double = LSTM(5, 4, device="cuda", dtype=torch.float64)
    backends._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="fastlstm runs 'torch'"):
        double(torch.zeros(3, 2, 5, device="cuda", dtype=torch.float64))


@pytest.mark.skipif(not HAS_ONEDNN, reason="needs torch with oneDNN on x86")
def test_a_cpu_runs_onednn_where_it_can() -> None:
    choice = choose(replace(BF16, device="cpu", dtype=torch.float32, cells=True, lengths=True))
    assert str(choice) == "torch: oneDNN's LSTM, as in torch.nn.LSTM on a CPU, from 4 steps on"
