"""Signals and other numbers that are prepared already: opened, loaded, kept apart, and written into a network."""

import numpy as np
import pytest
import torch

import s_resnet
from s_resnet.data import (
    ArrayData,
    ArrayLoader,
    AsStored,
    EventData,
    ImageData,
    loader_for,
    open_data,
    preprocessing_for,
)
from s_resnet.errors import InvalidData
from s_resnet.graph.provenance import Provenance

X = np.random.default_rng(0).normal(size=(6, 2, 9))
Y = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, y=Y)
    return str(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["f2", "f4", ">f4", "f8"])
@pytest.mark.parametrize("shape", [(6, 2, 9), (6, 2, 3, 3)])
def test_numbers_are_taken_as_they_are(kind, shape, tmp_path):
    x = X.reshape(shape).astype(kind)
    np.savez(tmp_path / "x.npz", x=x, y=Y)
    data = open_data(str(tmp_path / "x.npz"), "evaluation")
    assert isinstance(data, ArrayData) and data.classes == ("0", "1", "2") and len(data) == 6
    loader = loader_for(data, [4, 0, 5], data.preprocessing, 2)
    assert isinstance(loader, ArrayLoader)
    (first, labels), (last, _) = loader
    assert torch.equal(first, torch.from_numpy(x.astype(np.float32))[[4, 0]]) and labels.tolist() == [1, 0]
    assert last.shape == (1, *shape[1:]) and first.dtype == torch.float32


def test_calibration_needs_no_labels(tmp_path):
    np.savez(tmp_path / "x.npz", x=X)
    data = open_data(str(tmp_path / "x.npz"), "calibration")
    assert data.labels == (-1,) * 6 and data.classes == ()


def test_a_sample_that_is_not_finite_is_left_out_and_said(tmp_path):
    bad = X.copy()
    bad[2, 0, 0], bad[4, 1, 1] = np.nan, 1e300  # beyond float32
    np.savez(tmp_path / "x.npz", x=bad, y=Y)
    data = open_data(str(tmp_path / "x.npz"), "evaluation")
    loader = loader_for(data, range(6), data.preprocessing, 3)
    assert sum(len(labels) for _, labels in loader) == 4
    assert loader.unreadable == ("2 (numbers that are not finite)", "4 (numbers that are not finite)")


def test_each_preprocessing_is_for_its_own_data(path, tmp_path):
    data = open_data(path, "evaluation")
    with pytest.raises(InvalidData, match="got arrays that are prepared already; expected images, for which"):
        loader_for(data, [0], preprocessing_for(8), 1)
    with pytest.raises(InvalidData, match="samples, got 2 x 9; expected 2 x 12"):
        loader_for(data, [0], AsStored((2, 12)), 1)
    np.savez(tmp_path / "gray.npz", x=np.zeros((6, 8, 8), np.uint8), y=Y)
    with pytest.raises(InvalidData, match="got images; expected arrays that are prepared already"):
        loader_for(open_data(str(tmp_path / "gray.npz"), "evaluation"), [0], AsStored((2, 9)), 1)
    with pytest.raises(InvalidData, match="sample, got 9; expected 2 x 9"):
        AsStored((2, 9))(X[0, 0])


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4), (0, 5), (2, 1.5), "ab", None, (True, 3)])
def test_a_shape_that_is_none(shape):
    with pytest.raises(InvalidData, match="preprocessing: shape"):
        AsStored(shape)


def test_a_network_keeps_what_its_samples_are(path):
    said = Provenance(preprocessing=AsStored((12, 1000))).to_json()
    assert said["preprocessing"] == {"arrays": {"shape": [12, 1000]}}
    assert Provenance.from_json(said).preprocessing == AsStored((12, 1000))
    for wrong in ({"arrays": 3}, {"arrays": {}}, {"arrays": {"shape": [0, 3]}}, {"arrays": {"shape": [1, 2], "x": 1}}):
        with pytest.raises(InvalidData):
            Provenance.from_json({"preprocessing": wrong})


def test_samples_are_told_apart_by_what_is_stored(path):
    data = open_data(path, "evaluation")
    marks = s_resnet.data.fingerprints(data, [1, 3])
    assert len(set(marks)) == 2 and s_resnet.data.used_for_calibration(data, marks) == {"1", "3"}
    assert {ImageData, EventData}.isdisjoint({type(data)})
