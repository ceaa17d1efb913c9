"""Commands on a program of torch.export: the same network as from the checkpoint of its module."""

from pathlib import Path

import torch
from test_cli import CALIBRATED, SIZE, make_checkpoint, make_photos, program, tiny  # noqa: F401  # program is a fixture

import s_resnet


def test_from_a_program_to_a_report(program):  # noqa: F811
    make_photos(Path("photos"))
    make_checkpoint(Path("tiny.pth"))
    torch.export.save(torch.export.export(tiny(), (torch.zeros(1, 3, SIZE, SIZE),)), "tiny.pt2")
    said = {name: program.works("convert", name, "--force", *CALIBRATED) for name in ("tiny.pth", "tiny.pt2")}
    assert f"torch.export program of torch {torch.__version__}, recipe s-resnet" in said["tiny.pt2"]
    snn = s_resnet.load("tiny.snn")
    assert snn.provenance.source.name == "tiny.pt2" and snn.provenance.source.classes == 3
    program.works("convert", "tiny.pth", "-o", "own.snn", *CALIBRATED[:-6], *CALIBRATED[-4:])
    images = torch.rand(4, 3, SIZE, SIZE)
    assert torch.equal(snn(images, timesteps=4), s_resnet.load("own.snn")(images, timesteps=4))
    assert "ANN" in program.works("evaluate", "tiny.snn", "--limit", 6)
    assert "page/index.html" in program.works("report", "tiny.snn", "--limit", 4, "-o", "page")
    bare = program("convert", "tiny.pt2", "--recipe", "s-resnet", "-o", "bare.snn")
    assert bare[0] == 0 and s_resnet.load("bare.snn").provenance.calibration.source == "batchnorm"
    code, _, err = program("convert", "tiny.pt2", "--arch", "resnet18", "--force", "-o", "bare.snn")
    assert code == 1 and "Leave out --arch" in err and len(err.splitlines()) == 1
