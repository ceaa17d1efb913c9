"""The torch program and the arrays of directly trained networks, run where this package is not, against the modules."""

import json

import numpy as np
import pytest
import torch
from test_arrays import PAGE
from test_arrays import documented as documented  # the fixture
from test_program import agrees, reloaded
from trained_networks import FAMILIES, T, dyadic, dyadic_images, trained, watched

from s_resnet.conversion import Context, passes
from s_resnet.export import export_npz

X = dyadic_images()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_program_answers_as_the_module(tmp_path):
    steps = 2  # each costs seconds
    pairs = {arch: dyadic(arch) for arch in ("ms_resnet8", "ds_resnet8", "sew_resnet8")}
    cases = {arch: (graph, X, steps) for arch, (_, graph) in pairs.items()}
    answers = reloaded(tmp_path, cases)
    for arch, case in cases.items():
        assert agrees(answers[arch], *case), arch
    for arch, (module, _) in pairs.items():
        torch.testing.assert_close(answers[arch][0], watched(module, X, steps)[0])


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_documented_simulator_has_the_spikes_of_the_module(tmp_path, documented, arch):
    model, graph = dyadic(arch)
    export_npz(graph, tmp_path / "x.npz")
    logits, spikes = documented["simulate"](tmp_path / "x.npz", X.numpy(), T)
    expected, seen = watched(model, X, T)
    assert spikes.keys() == seen.keys()
    for name, (_, out) in seen.items():
        assert np.array_equal(spikes[name], out.numpy()) and out.sum() > 0, name
    assert np.allclose(logits, expected.numpy(), atol=1e-6)
    most = max(float(out.max()) for _, out in seen.values())
    assert most == (3 if arch.startswith("ds") else 1)


def test_format_and_fields(tmp_path):
    """Format 2 where there are several levels; batch normalization as it is, or folded; each word on the page."""
    for arch, format in (("ds_resnet8", 2), ("ms_resnet8", 1)):
        _, graph = trained(arch)
        export_npz(graph, tmp_path / "traced.npz")
        export_npz(passes.fold_batchnorm(graph, Context()), tmp_path / "x.npz")
        for name in ("traced", "x"):
            with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as file:
                header = json.loads(bytes(file["graph"]))
                node = graph.neurons[0].name
                assert (file[f"{node}/emission"] == 1).all() and header["format"] == format
                assert (f"{node}/firing" in file) == (format == 2)
            words = {word for node in header["nodes"] for word in (*node, *node["settings"], *node["arrays"])}
            assert not [word for word in words if f"`{word}`" not in PAGE]
