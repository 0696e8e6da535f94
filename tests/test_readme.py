"""README says what is so: its commands parse, its Python runs, its picture and files exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import fastlstm.cli
import fastlstm_probes.cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(rf"`({program} [^`]+)`", README)
    inline = [line for line in inline if len(line.split()) > 2]  # a command, not the mere name of one
    found = [shlex.split(line, comments=True) for line in [*lines, *inline]]
    return [words for words in found if words and words[0] == program and len(words) > 1 and "|" not in words]


@pytest.mark.parametrize("command", commands("fastlstm"), ids=" ".join)
def test_fastlstm_commands_parse(command: list[str]) -> None:
    fastlstm.cli.build_parser().parse_args(command[1:])


@pytest.mark.parametrize("command", commands("fastlstm-probes"), ids=" ".join)
def test_probes_commands_parse(command: list[str]) -> None:
    fastlstm_probes.cli.build_parser().parse_args(command[1:])


@pytest.mark.parametrize("command", commands("make"), ids=" ".join)
def test_make_targets_exist(command: list[str]) -> None:
    arguments = ["DATA=pyproject.toml" if word.startswith("DATA=") else word for word in command[1:]]
    subprocess.run(["make", "--dry-run", "--silent", *arguments], cwd=ROOT, check=True, capture_output=True)


def test_there_are_commands_to_check() -> None:
    assert len(commands("fastlstm")) > 4
    assert len(commands("fastlstm-probes")) > 4
    assert len(commands("make")) > 3


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str) -> None:
    names: dict[str, object] = {}
    exec(code, names)
    cells = names["cells"]
    assert tuple(cells.shape) == (26, 1, 512)  # type: ignore[attr-defined]


def test_files_of_the_layout_exist() -> None:
    layout = README.split("## Layout")[1].split("```")[1].removeprefix("\n")
    folder = ""
    for line in layout.splitlines():
        names = line.strip().split("  ")[0].split()
        nested = line.startswith(" ")
        names += [word for word in line.split() if word.endswith((".py", "/")) and word not in names]
        for name in names:
            assert list(ROOT.glob(f"{folder if nested else ''}{name}")), f"{line!r}: no {name}"
        if not nested:
            folder = names[0]


def test_pictures_exist() -> None:
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
