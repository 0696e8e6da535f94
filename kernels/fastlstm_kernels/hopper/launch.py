"""Loading and launching the Hopper kernels through NVIDIA's Python bindings, on torch's current stream.

A launch is cooperative: all its blocks must be on the chip at once. Whether they can be is asked of the driver when a
module is loaded; a launch waits for the one before it on the same GPU, since two could hold half of the chip each.
NOTES.md says what CUDA promises, and which launches nothing orders.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlstm_kernels.hopper import binary
from fastlstm_kernels.hopper.arguments import TensorMapBytes
from fastlstm_kernels.hopper.plans import BACKWARD, FORWARD, LARGEST, MOST_BLOCKS
from fastlstm_kernels.launch import HOPPER

THREADS = 512
CLUSTER = {"forward": 2, "backward": 1}  # blocks
WAITED_FOR = (
    "",
    "a tile of h or d_gates",
    "room for a tile",
    "the other block's partial sums",
    "room for partial sums",
    "the step before of other blocks",
    "partial sums of other blocks",
    "partial sums to be stored",
)
STATUS_WORDS = 4  # see give_up in primitives.cuh
HAS_BINDINGS = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None

_loading = threading.RLock()
_launching = threading.Lock()


def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _checked(result: tuple[Any, ...]) -> Any:
    if int(result[0]) != 0:
        why = why_it_gave_up()
        raise RuntimeError(f"CUDA driver: {result[0].name}{'' if why is None else f'; {why}'}")
    return None if len(result) == 1 else result[1] if len(result) == 2 else result[1:]


# Written by a kernel that gives up, and read after it has ended the CUDA context: host memory, mapped for every GPU.
_status: ctypes.Array[ctypes.c_uint32] | None = None


def status_pointer() -> int:
    """Where kernels report; ``kernel`` has made it."""
    assert _status is not None
    return ctypes.addressof(_status)


def why_it_gave_up() -> str | None:
    """What a Hopper kernel of this process waited for when it gave up after 20 s; None if none did.

    A kernel that gives up ends the process's use of the GPU, and PyTorch then says no more than "unspecified launch
    failure", at whatever call comes next.
    """
    if _status is None or _status[0] == 0:
        return None
    waited, block, step, sub_batch = _status
    what = WAITED_FOR[waited] if waited < len(WAITED_FOR) else f"barrier {waited}"
    return (
        f"an LSTM kernel gave up after 20 s: block {block} waited for {what} at step {step}, "
        f"sub-batch {sub_batch}. Some blocks of the launch do not run: does another process hold multiprocessors?"
    )


@functools.cache
def _primary_context(device: int) -> Any:
    """The context that torch works in. Held as long as the process lives, as torch does."""
    driver = _driver()
    return _checked(driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(device))))


@contextlib.contextmanager
def _on(device: int) -> Iterator[None]:
    """With the GPU's context current on this thread: one of autograd's, for one, may have none yet."""
    driver = _driver()
    _checked(driver.cuCtxPushCurrent(_primary_context(device)))
    try:
        yield
    finally:
        _checked(driver.cuCtxPopCurrent())


@contextlib.contextmanager
def _capture_relaxed() -> Iterator[None]:
    """Allow what allocates and is no part of a graph that is being captured, by this thread or by another."""
    exchange = _driver().cuThreadExchangeStreamCaptureMode
    before = _checked(exchange(_driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
    try:
        yield
    finally:
        _checked(exchange(before))


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel, and its launch's configuration but for ``blocks`` and stream: making one takes 6 us."""

    function: Any
    configuration: Any


_kernels: dict[tuple[str, int, torch.dtype, int], dict[str, Kernel]] = {}


def kernel(direction: str, name: str, H: int, dtype: torch.dtype, device: int) -> Kernel:
    """The kernel on a GPU. The first call loads all of its module, and makes sure that whole launches fit on the chip.

    May be called on any thread, and while a graph is captured. Raises ``RuntimeError`` if it cannot run.
    """
    key = (direction, H, dtype, device)
    if key not in _kernels:
        with _loading, _on(device), _capture_relaxed():
            if key not in _kernels:
                _make_status()
                _kernels[key] = _load(direction, H, dtype)
    return _kernels[key][name]


def _make_status() -> None:
    global _status
    if _status is None:
        driver, size = _driver(), ctypes.sizeof(ctypes.c_uint32) * STATUS_WORDS
        address = int(_checked(driver.cuMemHostAlloc(size, driver.CU_MEMHOSTALLOC_PORTABLE)))
        ctypes.memset(address, 0, size)
        _status = (ctypes.c_uint32 * STATUS_WORDS).from_address(address)


def _load(direction: str, H: int, dtype: torch.dtype) -> dict[str, Kernel]:
    driver = _driver()
    module, code = _module(direction, H, dtype)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    kernels = {}
    for name, shared in binary.shared_memory(code).items():
        function = _checked(driver.cuModuleGetFunction(module, name.encode()))
        _checked(driver.cuFuncSetAttribute(function, attribute, shared))
        configuration = _configuration(shared, CLUSTER[direction])
        configuration.gridDimX = MOST_BLOCKS
        blocks = CLUSTER[direction] * _checked(driver.cuOccupancyMaxActiveClusters(function, configuration))
        if blocks < MOST_BLOCKS:
            raise RuntimeError(f"{name}: {blocks} blocks fit on this GPU, {MOST_BLOCKS} are needed")
        kernels[name] = Kernel(function, configuration)
    return kernels


def _module(direction: str, H: int, dtype: torch.dtype) -> tuple[Any, bytes]:
    """A loaded module and its machine code: what is shipped, or where the driver does not take that, NVRTC's."""
    load = _driver().cuModuleLoadData
    shipped = binary.shipped(direction, H, dtype)
    refused = ""
    if shipped is not None:
        result = load(shipped)
        if int(result[0]) == 0:
            return result[1], shipped
        refused = f"the driver does not take the shipped {binary.file_name(direction, H, dtype)} ({result[0].name}); "
    try:
        code = binary.compiled(direction, H, dtype)
        return _checked(load(code)), code
    except RuntimeError as error:
        raise RuntimeError(f"{refused}{error}") from error


def _configuration(shared: int, cluster: int) -> Any:
    driver = _driver()
    configuration = driver.CUlaunchConfig()
    configuration.gridDimY, configuration.gridDimZ = 1, 1
    configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ = THREADS, 1, 1
    configuration.sharedMemBytes = shared
    cooperative = driver.CUlaunchAttribute()
    cooperative.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    cooperative.value.cooperative = 1
    clusters = driver.CUlaunchAttribute()
    clusters.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    clusters.value.clusterDim.x, clusters.value.clusterDim.y, clusters.value.clusterDim.z = cluster, 1, 1
    configuration.attrs = [cooperative, clusters]
    configuration.numAttrs = 2
    return configuration


_last: dict[int, torch.cuda.Event] = {}


def launch(kernel: Kernel, blocks: int, arguments: ctypes.Structure, device: torch.device) -> None:
    """Queue a kernel on the current stream of ``device``, which must be the current device."""
    stream = torch.cuda.current_stream(device)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    # What a capture holds is not ordered by an event from outside, nor may others wait for one from inside.
    eager = not torch.cuda.is_current_stream_capturing()
    with _launching, _on(device.index):
        if eager and device.index in _last:
            stream.wait_event(_last[device.index])
        configuration = kernel.configuration
        configuration.gridDimX, configuration.hStream = blocks, stream.cuda_stream
        _checked(_driver().cuLaunchKernelEx(configuration, kernel.function, ctypes.addressof(parameters), 0))
        if eager:
            if device.index not in _last:
                _last[device.index] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            _last[device.index].record(stream)


def tensor_map(tensor: Tensor, sequences: int, columns: int) -> TensorMapBytes:
    """``tensor`` (T, B, N) for the copy engine, in boxes of 1 x ``sequences`` x ``columns``.

    Boxes with rows of 128 bytes are swizzled as the tensor cores read them, those with rows of 64 bytes so that what is
    written down a column spreads over the banks of shared memory.
    """
    T, B, N = tensor.shape
    return _encoded_map(tensor.get_device(), tensor.data_ptr(), tensor.dtype, T, B, N, sequences, columns)


# A map depends on nothing else, and a loop's tensors come back to the same addresses.
@functools.lru_cache(maxsize=256)
def _encoded_map(
    device: int, address: int, dtype: torch.dtype, T: int, B: int, N: int, sequences: int, columns: int
) -> TensorMapBytes:
    driver, size = _driver(), dtype.itemsize
    kinds, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    half = dtype == torch.float16
    with _on(device):
        encoded = _checked(
            driver.cuTensorMapEncodeTiled(
                kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16 if half else kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                3,
                address,
                [driver.cuuint64_t(n) for n in (N, B, T)],
                [driver.cuuint64_t(n) for n in (N * size, B * N * size)],
                [driver.cuuint32_t(n) for n in (columns, sequences, 1)],
                [driver.cuuint32_t(1)] * 3,
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzles.CU_TENSOR_MAP_SWIZZLE_128B if columns * size == 128 else swizzles.CU_TENSOR_MAP_SWIZZLE_64B,
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        )
    return TensorMapBytes.from_buffer_copy(ctypes.string_at(int(encoded.getPtr()), ctypes.sizeof(TensorMapBytes)))


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def device_refusal(device: int) -> str | None:
    """Why the kernels cannot run on a GPU, asked of the driver once; None if they can."""
    if torch.version.hip is not None:
        return "they need an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability != HOPPER:
        return f"they are for compute capability {HOPPER}, and this GPU has {capability}"
    if not HAS_BINDINGS:
        return "the package cuda-bindings is not installed: pip install 'fastlstm[hopper]'"
    try:
        driver = _driver()
        shared = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MPS_ENABLED
        if _checked(driver.cuDeviceGetAttribute(shared, _checked(driver.cuDeviceGet(device)))):
            return "under NVIDIA's Multi-Process Service another process may hold multiprocessors that a launch needs"
        for direction, plans in (("forward", FORWARD), ("backward", BACKWARD)):
            kernel(direction, plans[-1].kernel, LARGEST, torch.bfloat16, device)
    except Exception as error:  # a driver too old, bindings that find no driver, memory: each its own type
        return str(error) or type(error).__name__
    return None
