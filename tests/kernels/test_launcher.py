"""Launches without Triton's binder are those that Triton makes: the real compiler, and a driver that takes notes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# The interpreter compiles nothing, so this is a process of its own; the compiler needs no GPU.
PROGRAM = '''
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from fastlstm_kernels.launcher import launch

launched, loaded, bound = [], [], []


def address(argument):
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument


class Utils:
    def load_binary(self, name, kernel, shared, device):
        loaded.append(kernel)
        return "module", len(loaded), 32, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448}


class Driver:
    utils = Utils()

    def launcher_cls(self, source, metadata):
        def run(x, y, z, stream, function, packed, metadata, enter, exit, *arguments):
            for hook in (enter, exit):
                if hook is not None:
                    hook(metadata)
            launched.append(((x, y, z), stream, function, [address(argument) for argument in arguments]))

        return run

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return "stream"

    @staticmethod
    def is_active():
        return True


driver.set_active(Driver())


@triton.jit(do_not_specialize=["n"])
def kernel(source, bias, target, n, SIZE: tl.constexpr, SCALE: tl.constexpr):
    k = tl.arange(0, SIZE)
    value = tl.load(source + k, mask=k < n, other=0.0) * SCALE
    if bias is not None:
        value += tl.load(bias + k, mask=k < n, other=0.0)
    tl.store(target + k, value, mask=k < n)


binder = kernel.run
kernel.run = lambda *x, **options: bound.append(x) or binder(*x, **options)


def vector(dtype=torch.float32, offset=0):
    return torch.empty(48, dtype=dtype)[offset:]


def same(times_bound, *given, **options):
    """Launch twice, and once as Triton does; all three must be one function with the same arguments."""
    launched.clear()
    bound.clear()
    launch(kernel, 7, *given, **options)
    launch(kernel, 7, *given, **options)
    assert len(bound) == times_bound, (len(bound), given)
    tensors, integers, constants = given
    binder(*tensors, *integers, *constants, grid=(7,), warmup=False, **options)
    first, second, plain = launched
    assert first == second == plain, launched
    assert plain[0] == (7, 1, 1)
    return plain[2]


x, y, half = vector(), vector(), vector(torch.float16)
functions = [
    same(1, (x, None, y), (20,), (32, 2)),
    same(1, (x, x, y), (20,), (32, 2)),
    same(1, (half, None, y), (20,), (32, 2)),
    same(1, (x, None, y), (20,), (16, 2)),
    same(1, (x, None, y), (20,), (16, 2), num_warps=8),
    same(2, (vector(offset=1), None, y), (20,), (32, 2)),
    same(2, (x, None, y), (2**31,), (32, 2)),
]
assert len(set(functions)) == len(functions), functions
for n in (1, 16, 2**31 - 1):
    assert same(0, (y, None, x), (n,), (32, 2)) == functions[0]

seen = []
knobs.runtime.launch_enter_hook.add(lambda metadata: seen.append(metadata.get()["name"]))
assert same(2, (x, None, y), (20,), (32, 2)) == functions[0]
assert seen == ["kernel"] * 3, seen
knobs.runtime.launch_enter_hook.calls.clear()

torch.cuda.is_initialized, torch.cuda.current_device = lambda: True, lambda: 1
same(2, (x, None, y), (20,), (32, 2))  # tensors that are not on the current device
'''


def test_what_is_launched_is_what_triton_would_launch(tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # Triton reads a kernel's source from a file
    program.write_text(PROGRAM)
    here = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, program], env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
