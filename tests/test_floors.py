"""The oldest Python and torch that are supported: the same in every file that names them."""

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PYTHON = SETUP["options"]["python_requires"].removeprefix(">=")
TORCH = re.search(r"^torch>=(2\.\d+)$", SETUP["options"]["install_requires"], re.MULTILINE)[1]


def vision(torch):
    """torchvision 0.(N + 15) goes with torch 2.N."""
    return f"0.{int(torch.split('.')[1]) + 15}"


def test_floors_are_the_same_everywhere():
    assert (PYTHON, TORCH) == ("3.11", "2.9")
    assert f"torchvision>={vision(TORCH)}\n" in SETUP["options"]["install_requires"]
    assert SETUP["mypy"]["python_version"] == PYTHON
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert tools["tool"]["ruff"]["target-version"] == f"py{PYTHON.replace('.', '')}"
    assert f"Python >= {PYTHON}" in (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    assert f"Python {PYTHON} or newer" in readme and f"torch >= {TORCH}" in readme
    assert f"any release from {TORCH} on" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("release", [TORCH, "2.9.1", "2.11"])
def test_make_takes_a_torch(release):
    said = subprocess.run(
        ["make", "--dry-run", "--always-make", "test", f"TORCH={release}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    install, run = (
        next(line for line in said.splitlines() if word in line) for word in ("pip install --quiet --ed", "pytest")
    )
    assert f"'torch=={release}.*' 'torchvision=={vision(release)}.*'" in install
    assert install.startswith(f".venv-{release}/bin/") and f" .venv-{release}/bin/python -m pytest" in run
    assert ".venv/" not in said
