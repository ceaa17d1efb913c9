"""The examples run as they stand, offline, and their last words are what they promise."""

import re
import runpy
from pathlib import Path

import pytest
from conftest import network_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# The packages that an example takes besides ours, and a line of what it prints.
PRINTS = {
    "convert_torchvision": (["sklearn"], r"^  8 +\d+\.\d\d% "),
    "own_module": ([], r"^refused: node sigmoid "),
    "train_ms_resnet": (["sklearn"], r"^2 +\d\d\.\d\d% +100\.00%"),
    "export_nir": (["sklearn", "nir"], r"^64 of 64 images with the same spikes"),
    "microcontroller": (["sklearn"], r"^largest difference from S-ResNet's answer: \d\.\de-0[6-9]$"),
}


def test_every_example_is_run_and_listed():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == PRINTS.keys()
    listed = re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())
    assert listed == list(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_prints_what_it_promises(name, tmp_path, monkeypatch, capsys, request):
    needed, line = PRINTS[name]
    for package in needed:
        pytest.importorskip(package, reason=f"{package} is not installed")
    if "sklearn" in needed:
        request.getfixturevalue("few_digits")
    # A quarter as wide: what the example says of it is not of 11 million weights.
    monkeypatch.setattr("torchvision.models.resnet18", lambda num_classes: network_of("resnet18", 16, num_classes))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(line, capsys.readouterr().out, re.MULTILINE)


def test_a_microcontroller_needs_numpy_alone():
    """What runs the file imports nothing else: the package is imported in the function that makes the file."""
    text = (EXAMPLES / "microcontroller.py").read_text()
    top = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    assert top == {"json", "collections", "numpy"}
