"""The Hopper kernels' host side without a GPU: machine code, its cache, loading and launching on a driver of our own.

The driver below refuses what CUDA's refuses: any call on a thread without a context, and what allocates while a graph
is captured, unless the thread's capture mode is relaxed.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import lzma
import os
import re
import stat
import struct
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlstm_kernels.hopper import backward, binary, forward, launch, plans

BF16 = torch.bfloat16
MOST_SHARED = 227 * 1024  # bytes of a block, on an H100
KEY = ("forward", 2048, BF16)


class Result(enum.IntEnum):
    SUCCESS = 0
    INVALID_CONTEXT = 201
    NO_BINARY_FOR_GPU = 209
    STREAM_CAPTURE_UNSUPPORTED = 900


class Namespace:
    """Whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        value = Namespace()
        setattr(self, name, value)
        return value


class Mode(enum.Enum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class Driver:
    """As much of cuda.bindings.driver as is used."""

    CU_MEMHOSTALLOC_PORTABLE = 1
    CUlaunchConfig = CUlaunchAttribute = Namespace
    CUstreamCaptureMode = Mode

    def __init__(self) -> None:
        self.here = threading.local()
        self.capturing, self.blocks, self.mps = False, 132, 0
        self.not_taken: set[bytes] = set()
        self.loaded: list[bytes] = []
        self.shared: dict[str, int] = {}
        self.launched: list[tuple[str, int, int, str]] = []
        self.memory: list[Any] = []
        self.order: list[str] = []
        self.in_launch = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("cu"):
            raise AttributeError(name)
        return Namespace()

    def contexts(self) -> list[str]:
        """Of this thread."""
        if not hasattr(self.here, "contexts"):
            self.here.contexts, self.here.mode = [], Mode.CU_STREAM_CAPTURE_MODE_GLOBAL
        stack: list[str] = self.here.contexts
        return stack

    def refused(self, *, allocates: bool = False) -> Result | None:
        if not self.contexts():
            return Result.INVALID_CONTEXT
        if allocates and self.capturing and self.here.mode != Mode.CU_STREAM_CAPTURE_MODE_RELAXED:
            return Result.STREAM_CAPTURE_UNSUPPORTED
        return None

    def cuDeviceGet(self, index: int) -> tuple[Any, ...]:  # noqa: N802
        return Result.SUCCESS, index

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Any, ...]:  # noqa: N802
        return Result.SUCCESS, self.mps

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        return Result.SUCCESS, f"primary of {device}"

    def cuCtxPushCurrent(self, context: str) -> tuple[Any, ...]:  # noqa: N802
        self.contexts().append(context)
        return (Result.SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:  # noqa: N802
        return Result.SUCCESS, self.contexts().pop()

    def cuThreadExchangeStreamCaptureMode(self, mode: Mode) -> tuple[Any, ...]:  # noqa: N802
        self.contexts()
        before, self.here.mode = self.here.mode, mode
        return Result.SUCCESS, before

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:  # noqa: N802
        if refused := self.refused(allocates=True):
            return refused, 0
        self.memory.append(ctypes.create_string_buffer(b"\xff" * size, size))
        return Result.SUCCESS, ctypes.addressof(self.memory[-1])

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:  # noqa: N802
        if refused := self.refused(allocates=True):
            return refused, None
        if image in self.not_taken:
            return Result.NO_BINARY_FOR_GPU, None
        self.loaded.append(image)
        return Result.SUCCESS, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[Any, ...]:  # noqa: N802
        return self.refused(allocates=True) or Result.SUCCESS, name.decode()

    def cuFuncSetAttribute(self, function: str, attribute: Any, value: int) -> tuple[Any, ...]:  # noqa: N802
        self.shared[function] = value
        return (self.refused() or Result.SUCCESS,)

    def cuOccupancyMaxActiveClusters(self, function: str, configuration: Any) -> tuple[Any, ...]:  # noqa: N802
        assert configuration.gridDimX == plans.MOST_BLOCKS
        return self.refused() or Result.SUCCESS, self.blocks // configuration.attrs[1].value.clusterDim.x

    def cuLaunchKernelEx(self, configuration: Any, function: str, parameters: int, extra: int) -> tuple[Any, ...]:  # noqa: N802
        assert self.in_launch == 0, "two threads at once"
        self.in_launch += 1
        if refused := self.refused():
            return (refused,)
        self.order.append("launch")
        self.launched.append((function, configuration.gridDimX, configuration.hStream, self.contexts()[-1]))
        self.in_launch -= 1
        return (Result.SUCCESS,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Ours in place of CUDA's, and nothing loaded yet."""
    made = Driver()
    monkeypatch.setattr(launch, "_driver", lambda: made)
    monkeypatch.setattr(launch, "_kernels", {})
    monkeypatch.setattr(launch, "_last", {})
    monkeypatch.setattr(launch, "_status", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "HAS_BINDINGS", True)
    cached = (launch._primary_context, launch.device_refusal)
    for function in cached:
        function.cache_clear()
    yield made
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize(
    ("direction", "H", "dtype"),
    [(direction, H, dtype) for direction in binary.DIRECTIONS for H in plans.COMPILED_SIZES for dtype in binary.DTYPES],
)
def test_shared_memory_is_read_from_machine_code(direction: str, H: int, dtype: torch.dtype) -> None:
    code = binary.shipped(direction, H, dtype)
    assert code is not None
    kernels = {plan.kernel for plan in {"forward": plans.FORWARD, "backward": plans.BACKWARD}[direction]}
    shared = binary.shared_memory(code)
    assert set(shared) == kernels
    # Half of a block's weights lie there: 4H x H of them over H / 16 blocks.
    assert all(H * 64 < size <= MOST_SHARED for size in shared.values()), shared


def test_shared_memory_of_an_address_other_than_zero() -> None:
    names = b"\0kernel_shared\0other\0"
    data = struct.pack("<ii", 7, 196_608)
    symbols = binary.SYMBOL.pack(0, 0, 0, 0, 0, 0) + binary.SYMBOL.pack(1, 1, 0, 1, 0x104, 4)
    symbols += binary.SYMBOL.pack(15, 1, 0, 1, 0x100, 4)
    at = [64, 64 + len(data), 64 + len(data) + len(names)]
    sections = binary.SECTION.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    sections += binary.SECTION.pack(0, 1, 2, 0x100, at[0], len(data), 0, 0, 4, 0)
    sections += binary.SECTION.pack(0, 3, 0, 0, at[1], len(names), 0, 0, 1, 0)
    sections += binary.SECTION.pack(0, 2, 0, 0, at[2], len(symbols), 2, 1, 8, 24)
    header = bytearray(64)
    struct.pack_into("<Q", header, 0x28, at[2] + len(symbols))
    struct.pack_into("<HH", header, 0x3C, 4, 2)
    assert binary.shared_memory(bytes(header) + data + names + symbols + sections) == {"kernel": 196_608}


def test_what_python_repeats_of_the_sources_agrees() -> None:
    texts = {path.name: path.read_text() for path in binary.FOLDER.glob("*.cu*")}
    waited = re.search(r"enum Waited : uint32_t \{([^}]*)\}", texts["primitives.cuh"])
    assert waited is not None
    assert len(waited[1].split(",")) == len(launch.WAITED_FOR) - 1
    assert f"constexpr int FLAG_STRIDE = {forward.FLAG_STRIDE};" in texts["primitives.cuh"]
    assert f"SLICES = {backward.SLICES};" in texts["backward.cu"]


@pytest.fixture
def a_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """NVRTC that notes with which options it was called."""
    asked: list[list[str]] = []
    nvrtc = types.SimpleNamespace(nvrtcVersion=lambda: (Result.SUCCESS, 13, 0))
    monkeypatch.setitem(sys.modules, "cuda", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(nvrtc=nvrtc))

    def compile_(_: object, direction: str, options: list[str]) -> bytes:
        asked.append(options)
        return f"{direction} {options}".encode()

    monkeypatch.setattr(binary, "_nvrtc", compile_)
    yield asked
    binary.compiled.cache_clear()


def compiled(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """As in a new process."""
    binary.compiled.cache_clear()
    return binary.compiled("forward", 512, BF16)


def test_what_nvrtc_made_is_kept(a_compiler: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(binary.CACHE, str(tmp_path / "kept"))
    before = os.umask(0o022)
    try:
        made = compiled(monkeypatch)
        (kept,) = (tmp_path / "kept").iterdir()
        assert stat.S_IMODE(kept.stat().st_mode) == 0o644
        assert compiled(monkeypatch) == made
        assert len(a_compiler) == 1
        kept.write_bytes(kept.read_bytes()[:-20])  # cut off
        assert compiled(monkeypatch) == made
        assert lzma.decompress(kept.read_bytes()) == made
        monkeypatch.setattr(binary, "ARCHITECTURE", "sm_100a")
        assert compiled(monkeypatch) != made
        assert len(list((tmp_path / "kept").iterdir())) == 2
    finally:
        os.umask(before)


def test_no_home_and_no_room_are_no_errors(
    a_compiler: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in (binary.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert compiled(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv(binary.CACHE, str(tmp_path / "file"))
    assert compiled(monkeypatch)
    assert len(a_compiler) == 2


def test_without_nvrtc_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RuntimeError, match=r"NVRTC cannot compile forward\.cu for H = 512: .*cuda"):
        compiled(monkeypatch)


def on_a_thread_of_its_own(call: Any) -> Any:
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(call())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


def test_a_thread_without_a_context_can_be_the_first_to_load(driver: Driver) -> None:
    first = on_a_thread_of_its_own(
        lambda: (launch.kernel("forward", "lstm_forward_2x64", 2048, BF16, 1), driver.contexts())
    )
    assert first[1] == [], "the thread is left as it was"
    assert launch.kernel("forward", "lstm_forward_2x64", 2048, BF16, 1) is first[0]
    assert len(driver.loaded) == 1


def test_a_module_can_be_loaded_while_a_graph_is_captured(driver: Driver) -> None:
    driver.capturing = True
    launch.kernel("forward", "lstm_forward_2x64", 2048, BF16, 0)
    assert driver.here.mode == Mode.CU_STREAM_CAPTURE_MODE_GLOBAL, "left as it was"
    code = binary.shipped(*KEY)
    assert code is not None
    assert driver.shared == binary.shared_memory(code)
    driver.capturing = False
    for plan in plans.FORWARD:  # all of them came with the first
        launch.kernel("forward", plan.kernel, 2048, BF16, 0)
    assert driver.loaded == [code]


def test_code_that_the_driver_does_not_take_is_compiled_again(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, other = binary.shipped(*KEY), binary.shipped("forward", 1536, BF16)
    assert shipped is not None
    assert other is not None
    driver.not_taken.add(shipped)
    monkeypatch.setattr(binary, "compiled", lambda *key: other)
    launch.kernel("forward", "lstm_forward_2x16", 2048, BF16, 0)
    assert driver.loaded == [other]
    assert driver.shared == binary.shared_memory(other)


def test_every_failure_of_the_driver_is_a_refusal(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal() -> str | None:
        launch.device_refusal.cache_clear()
        launch._kernels.clear()
        return launch.device_refusal(0)

    assert refusal() is None
    shipped = binary.shipped(*KEY)
    assert shipped is not None
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings", None)
        driver.not_taken.add(shipped)
        assert re.search(
            r"not take the shipped forward-2048-bf16.* \(NO_BINARY_FOR_GPU\); NVRTC cannot", str(refusal())
        )
        driver.not_taken.clear()
    driver.blocks = 127
    assert refusal() == "lstm_forward_2x64: 126 blocks fit on this GPU, 128 are needed"
    driver.mps = 1
    assert "Multi-Process Service" in str(refusal())
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_driver", lambda: (_ for _ in ()).throw(OSError("no libcuda.so.1")))
        assert refusal() == "no libcuda.so.1"
    with monkeypatch.context() as patch:
        patch.setattr(launch, "HAS_BINDINGS", False)
        assert "pip install 'fastlstm[hopper]'" in str(refusal())
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (8, device))
        launch.device_refusal.cache_clear()
        assert "this GPU has (8, 3)" in str(launch.device_refusal(3))


class Stream:
    def __init__(self, driver: Driver, number: int) -> None:
        self.driver, self.cuda_stream = driver, number

    def wait_event(self, event: Event) -> None:
        self.driver.order.append(f"{self.cuda_stream} waits for {event.recorded}")


class Event:
    recorded: int | None = None

    def record(self, stream: Stream) -> None:
        self.recorded = stream.cuda_stream
        stream.driver.order.append(f"recorded on {stream.cuda_stream}")


@pytest.fixture
def _streams(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream 1 on the main thread, another on every other."""

    def current(device: torch.device) -> Stream:
        return Stream(driver, 1 if threading.current_thread() is threading.main_thread() else 2)

    monkeypatch.setattr(torch.cuda, "current_stream", current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: driver.capturing)
    monkeypatch.setattr(torch.cuda, "Event", Event)


def launch_one(device: int = 0) -> None:
    kernel = launch.kernel("forward", "lstm_forward_2x64", 2048, BF16, device)
    launch.launch(kernel, 64, ctypes.c_int(), torch.device("cuda", device))  # type: ignore[arg-type]


@pytest.mark.usefixtures("_streams")
def test_a_launch_waits_for_the_one_before_it(driver: Driver) -> None:
    launch_one()
    on_a_thread_of_its_own(launch_one)
    launch_one(1)
    assert driver.order == [
        *("launch", "recorded on 1"),
        *("2 waits for 1", "launch", "recorded on 2"),
        *("launch", "recorded on 1"),
    ]
    name = "lstm_forward_2x64"
    assert driver.launched == [
        (name, 64, 1, "primary of 0"),
        (name, 64, 2, "primary of 0"),
        (name, 64, 1, "primary of 1"),
    ]
    assert driver.contexts() == []
    driver.order.clear()
    driver.capturing = True
    launch_one()
    assert driver.order == ["launch"]


@pytest.mark.usefixtures("_streams")
def test_threads_do_not_come_between_a_launch_and_its_event(driver: Driver) -> None:
    launch_one()
    driver.order.clear()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [launch_one() for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(driver.order) == 3 * 200
    for begin in range(0, 600, 3):
        waits, launched, recorded = driver.order[begin : begin + 3]
        assert "waits for" in waits
        assert launched == "launch"
        assert recorded == "recorded on 2"


def test_a_kernel_that_gave_up_is_heard_of(driver: Driver) -> None:
    assert launch.why_it_gave_up() is None
    launch.kernel("forward", "lstm_forward_2x64", 2048, BF16, 0)
    assert launch.why_it_gave_up() is None
    reported = (ctypes.c_uint32 * 4).from_address(launch.status_pointer())
    reported[:] = [5, 17, 3, 1]
    expected = r"gave up after 20 s: block 17 waited for the step before of other blocks at step 3, sub-batch 1"
    assert re.search(expected, str(launch.why_it_gave_up()))
    with pytest.raises(RuntimeError, match=rf"CUDA driver: INVALID_CONTEXT; .*{expected}"):
        launch._checked((Result.INVALID_CONTEXT,))
    reported[0] = 99
    assert "waited for barrier 99" in str(launch.why_it_gave_up())


def test_a_map_is_made_once_for_the_same_memory(driver: Driver) -> None:
    made: list[tuple[Any, ...]] = []

    def encode(*given: Any) -> tuple[Any, ...]:
        made.append(given)
        driver.memory.append(ctypes.create_string_buffer(bytes([len(made)] * 128), 128))
        # Seen on an H100: autograd's thread has no context yet when its first call is a backward.
        return driver.refused() or Result.SUCCESS, types.SimpleNamespace(
            getPtr=lambda: ctypes.addressof(driver.memory[-1])
        )

    driver.cuTensorMapEncodeTiled = encode
    driver.cuuint64_t = driver.cuuint32_t = int
    launch._encoded_map.cache_clear()
    tensor = torch.zeros(3, 2, 128, dtype=BF16)
    with contextlib.closing(types.SimpleNamespace(close=launch._encoded_map.cache_clear)):
        first, again = launch.tensor_map(tensor, 16, 64), launch.tensor_map(tensor, 16, 64)
        other = launch.tensor_map(tensor[:2], 16, 64)
    assert bytes(first) == bytes(again) != bytes(other)
    assert len(made) == 2
    assert made[0][2:6] == (tensor.data_ptr(), [128, 2, 3], [256, 512], [64, 16, 1])
