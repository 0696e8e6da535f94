"""Loading and launching the Hopper kernels through NVIDIA's Python bindings, on torch's current stream.

A launch is cooperative: all its blocks must be on the chip at once. Whether they can be is asked of the driver once for
each device; a launch waits for the one before it on another stream, since two could hold half of the chip each.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlstm_kernels.hopper import binary
from fastlstm_kernels.hopper.arguments import TensorMapBytes
from fastlstm_kernels.hopper.plans import BACKWARD, FORWARD, LARGEST, MOST_BLOCKS

THREADS = 512
CAPABILITY = (9, 0)
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
HAS_BINDINGS = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None


def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _checked(result: tuple[Any, ...]) -> Any:
    if int(result[0]) != 0:
        raise RuntimeError(f"CUDA driver: {result[0]!s}{_given_up()}")
    return result[1] if len(result) == 2 else result[1:]


@functools.cache
def _status() -> Tensor:
    """Where a kernel says that it gave up a wait: pinned, so that it outlives the CUDA context."""
    return torch.zeros(4, dtype=torch.int32, pin_memory=True)


def _given_up() -> str:
    waited, block, step, sub_batch = _status().tolist()
    if waited == 0:
        return ""
    return (
        f"; an LSTM kernel gave up after 20 s: block {block} waited for {WAITED_FOR[waited]} at step {step}, "
        f"sub-batch {sub_batch}. Some blocks of the launch do not run: does another process hold multiprocessors?"
    )


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel: its handle, the shared memory of a block in bytes, the blocks of a cluster."""

    function: Any
    shared: int
    cluster: int


@functools.cache
def kernel(direction: str, name: str, H: int, dtype: torch.dtype, device: int) -> Kernel:
    """Load a kernel on a device and make sure that a whole launch of it fits on the chip."""
    driver = _driver()
    module = _module(direction, H, dtype, device)
    function = _checked(driver.cuModuleGetFunction(module, name.encode()))
    address, size = _checked(driver.cuModuleGetGlobal(module, f"{name}_shared".encode()))
    shared = ctypes.c_int()
    _checked((*driver.cuMemcpyDtoH(ctypes.addressof(shared), address, size), None))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked((*driver.cuFuncSetAttribute(function, attribute, shared.value), None))
    loaded = Kernel(function, shared.value, 2 if direction == "forward" else 1)
    clusters = _checked(driver.cuOccupancyMaxActiveClusters(function, _configuration(loaded, MOST_BLOCKS, 0)))
    if clusters * loaded.cluster < MOST_BLOCKS:
        raise RuntimeError(f"{name}: {clusters * loaded.cluster} blocks fit on this GPU, {MOST_BLOCKS} are needed")
    return loaded


@functools.cache
def _module(direction: str, H: int, dtype: torch.dtype, device: int) -> Any:
    return _checked(_driver().cuModuleLoadData(binary.code(direction, H, dtype)))


def _configuration(kernel: Kernel, blocks: int, stream: int) -> Any:
    driver = _driver()
    configuration = driver.CUlaunchConfig()
    configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ = blocks, 1, 1
    configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ = THREADS, 1, 1
    configuration.sharedMemBytes = kernel.shared
    configuration.hStream = stream
    cooperative = driver.CUlaunchAttribute()
    cooperative.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    cooperative.value.cooperative = 1
    cluster = driver.CUlaunchAttribute()
    cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    cluster.value.clusterDim.x, cluster.value.clusterDim.y, cluster.value.clusterDim.z = kernel.cluster, 1, 1
    configuration.attrs = [cooperative, cluster]
    configuration.numAttrs = 2
    return configuration


_last: dict[int, tuple[torch.cuda.Stream, torch.cuda.Event]] = {}


def launch(kernel: Kernel, blocks: int, arguments: ctypes.Structure, device: torch.device) -> None:
    """Queue a kernel on the current stream of ``device``, which must be the current device."""
    stream = torch.cuda.current_stream(device)
    capturing = torch.cuda.is_current_stream_capturing()
    if not capturing and device.index in _last and _last[device.index][0] != stream:
        stream.wait_event(_last[device.index][1])
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    configuration = _configuration(kernel, blocks, stream.cuda_stream)
    _checked((*_driver().cuLaunchKernelEx(configuration, kernel.function, ctypes.addressof(parameters), 0), None))
    if not capturing:
        event = _last[device.index][1] if device.index in _last else torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        _last[device.index] = (stream, event)


def tensor_map(tensor: Tensor, sequences: int, columns: int) -> TensorMapBytes:
    """``tensor`` (T, B, N) for the copy engine, in boxes of 1 x ``sequences`` x ``columns``.

    Boxes of 128-byte rows are swizzled as the tensor cores read them, narrower ones lie in shared memory as they are.
    """
    driver = _driver()
    kinds, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    half = tensor.dtype == torch.float16
    T, B, N = tensor.shape
    size = tensor.element_size()
    encoded = _checked(
        driver.cuTensorMapEncodeTiled(
            kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16 if half else kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            3,
            tensor.data_ptr(),
            [driver.cuuint64_t(n) for n in (N, B, T)],
            [driver.cuuint64_t(n) for n in (N * size, B * N * size)],
            [driver.cuuint32_t(n) for n in (columns, sequences, 1)],
            [driver.cuuint32_t(1)] * 3,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzles.CU_TENSOR_MAP_SWIZZLE_128B if columns * size == 128 else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    return TensorMapBytes.from_buffer_copy(ctypes.string_at(int(encoded.getPtr()), 128))


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def status_pointer() -> int:
    return _status().data_ptr()


@functools.cache
def device_refusal(device: int) -> str | None:
    """Why the kernels cannot run on a GPU, asked of the driver once; None if they can."""
    if torch.version.hip is not None:
        return "they need an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return f"they are for compute capability {CAPABILITY}, and this GPU has {capability}"
    if not HAS_BINDINGS:
        return "the package cuda-bindings is not installed"
    driver = _driver()
    with torch.cuda.device(device):
        torch.zeros(1, device="cuda")  # makes the context that the driver is asked about
        shared = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MPS_ENABLED
        if _checked(driver.cuDeviceGetAttribute(shared, _checked(driver.cuDeviceGet(device)))):
            return "under NVIDIA's Multi-Process Service another process may hold multiprocessors that a launch needs"
        try:
            for direction, plans in (("forward", FORWARD), ("backward", BACKWARD)):
                kernel(direction, plans[-1].kernel, LARGEST, torch.bfloat16, device)
        except RuntimeError as error:
            return str(error)
    return None
