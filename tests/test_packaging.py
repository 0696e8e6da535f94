"""What a wheel installs, and what importing the package needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastlstm

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    # A copy, so that the build leaves nothing in the checkout.
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    source = out / "source"
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_installs_three_packages_and_nothing_else(wheel_names: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    information = f"fastlstm-{fastlstm.__version__}.dist-info"
    assert top == {"fastlstm", "fastlstm_kernels", "fastlstm_probes", information}


def test_the_wheel_holds_types_recipes_and_the_report_template(wheel_names: list[str]) -> None:
    for name in (
        "fastlstm/py.typed",
        "fastlstm_kernels/py.typed",
        "fastlstm_probes/py.typed",
        "fastlstm/recipes/carvalho2018.toml",
        "fastlstm_probes/report.html",
    ):
        assert name in wheel_names


def test_import_needs_torch_and_numpy_alone() -> None:
    code = """
import sys
allowed = {"fastlstm", "fastlstm_kernels", "torch", "numpy", "triton"}
optional = {"safetensors", "tqdm", "zarr", "zstandard", "sklearn", "nltk", "matplotlib", "jinja2"}
import torch
before = set(sys.modules)
import fastlstm
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
assert not loaded & optional, sorted(loaded & optional)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists() -> None:
    assert all(hasattr(fastlstm, name) for name in fastlstm.__all__)
