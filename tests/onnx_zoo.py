"""Whole architectures through both of torch's ONNX exporters: the logits of module and Graph against onnxruntime's.

    python tests/onnx_zoo.py                         torchvision's ten, random weights with settled BatchNorm
    python tests/onnx_zoo.py --networks timm,hf      resnet50 of timm and of Hugging Face, where installed

Too slow for every run of the tests: about ten minutes on one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve()
sys.path += [str(HERE.parent / "frontend"), str(HERE.parents[1])]

TEN = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
SIZE, MOST = 64, 1e-5
# What a branch adds to its shortcut, as a part of it. At 1 a random network of 100 layers is chaotic: its answer in
# float32 is 1e-4 to 1e-3 from that in float64, whoever computes it.
BRANCH = 0.2


class Logits(nn.Module):
    """A network of Hugging Face that gives its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).logits


def network(name: str) -> nn.Module:
    """An architecture with random weights, in evaluation mode, its BatchNorm settled on a few images."""
    torch.manual_seed(0)
    if name == "timm":
        import timm

        model = timm.create_model("resnet50", num_classes=10)
    elif name == "hf":
        import transformers

        model = Logits(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10)))
    else:
        import torchvision

        model = torchvision.models.get_model(name, num_classes=10)
    norms = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    for path, layer in norms.items():
        layer.momentum = None  # the mean over all batches
        basic = path.endswith("bn2") and path.replace("bn2", "bn3") not in norms
        if basic or path.endswith(("bn3", "layer.2.normalization")):
            nn.init.constant_(layer.weight, BRANCH)
    with torch.no_grad():
        for _ in range(4):
            model.train()(smooth(16))
    return model.eval()


def smooth(count: int) -> torch.Tensor:
    """Images that differ as photographs do, in large areas; in noise all images are nearly alike to a deep network."""
    return F.interpolate(torch.randn(count, 3, 4, 4), SIZE, mode="bilinear")


def exported(model: nn.Module, dynamo: bool, path: Path) -> None:
    x = smooth(2)
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        axes = {"images": {0: "batch"}}
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["images"], dynamic_axes=axes)


def main() -> None:
    from onnx_models import distance

    import s_resnet

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", default=",".join(TEN), help="names with commas between them")
    asked, far = options.parse_args(), 0
    warnings.simplefilter("ignore")
    torch.manual_seed(1)
    x = smooth(4)
    for name in asked.networks.split(","):
        model = network(name)
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(x.double()).float()
        for dynamo in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"{name}.onnx")
                exported(model, dynamo, path)
                begun = time.perf_counter()
                found = s_resnet.load_checkpoint(path)
                read = time.perf_counter() - begun
                expected = answered(path, x)
            with torch.no_grad():
                graph = s_resnet.trace(found.model, x[:2])
                errors = [distance(answer, expected) for answer in (found.model(x), graph.run(x), model(x))]
            far += not max(errors[:2]) <= MOST
            names = ("module", "graph", "torch")
            said = {"network": name, "exporter": "dynamo" if dynamo else "script", "arch": found.arch}
            said |= dict(zip(names, errors, strict=True)) | {"onnxruntime_from_float64": distance(expected, exact)}
            said |= {"read_seconds": round(read, 2)}
            print(json.dumps(said), flush=True)
    sys.exit(bool(far))


def answered(path: Path, x: torch.Tensor) -> torch.Tensor:
    """What onnxruntime computes; from the path, since weights can lie beside the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


if __name__ == "__main__":
    main()
