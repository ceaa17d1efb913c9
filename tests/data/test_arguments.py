"""Batches of every usual form and whole numbers of every kind are taken, or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Net, images, randomized

import s_resnet
from s_resnet import RECIPES, convert, evaluate, save, simulate, verify
from s_resnet.analysis import EvaluationSettings, count_operations
from s_resnet.data.arguments import class_numbers, images_of, labeled, whole_number
from s_resnet.errors import InvalidData
from s_resnet.export import export_nir, export_npz, export_torch
from s_resnet.graph import GraphModule
from s_resnet.models import CifarResNet
from s_resnet.simulation import SimulationSettings, closed_form, features, simulate_with_early_exit

X, Y = images(8, 8), torch.arange(8) % 10
FORMS = {
    "images, labels": (X, Y),
    "a list": [X, Y],
    "images, labels, index": (X, Y, torch.arange(8)),
    "a dict of Hugging Face": {"pixel_values": X, "labels": Y},
    "another dict": {"image": X, "label": Y.tolist()},
    "labels as a list": (X, Y.tolist()),
    "labels of NumPy": (X, Y.numpy()),
    "labels of 8 bits": (X, Y.to(torch.uint8)),
    "images of NumPy": (X.numpy(), Y),
    "images of NumPy in double": (X.numpy().astype(np.float64), Y),
}
WRONG = {
    "no labels": (X, "without labels"),
    "fewer labels": ((X, Y[:3]), r"labels of shape \(3,\)"),
    "one-hot labels": ((X, torch.eye(8)), r"labels of shape \(8, 8\), float32"),
    "numbers that are no classes": ((X, torch.rand(8)), "float32"),
    "names": ((X, list("abcdefgh")), "labels of list of str, str, str"),
    "bytes": ((X.byte(), Y), "images of uint8.*Divide by 255"),
    "bytes of NumPy": ((X.byte().numpy(), Y), "images of uint8"),
    "one image": ((X[0], Y[:1]), r"3 images with labels of shape \(1,\)"),
    "a dict without images": ({"picture": X, "labels": Y}, "dict with picture, labels"),
    "a path": ("photo.png", "a batch of str"),
    "NaN": ((X / 0, Y), "not finite"),
    "one infinite value": ((torch.where(X.max() == X, torch.inf, X), Y), "1 of 1,536 values NaN or infinite"),
    "none": ((X[:0], Y[:0]), "no images"),
}


@pytest.fixture(scope="module")
def snn():
    return convert(randomized(CifarResNet(8, width=4)), [(images(16, 8, seed=3), torch.arange(16) % 10)], timesteps=4)


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_is_the_same_batch(form):
    (found,) = labeled([FORMS[form]], "here")
    assert torch.equal(found[0], X) and torch.equal(found[1], Y) and found[1].dtype == torch.int64
    assert torch.equal(images_of(FORMS[form], "here"), X)


@pytest.mark.parametrize("form", FORMS)
def test_all_of_them_evaluate_verify_and_convert_alike(snn, form):
    one, other = (evaluate(snn, [batch], 4) for batch in (FORMS[form], (X, Y)))
    assert (one.ann, one.snn, one.images) == (other.ann, other.snn, 8)
    assert verify(snn, [FORMS[form]], 4).top1 == verify(snn, [(X, Y)], 4).top1
    model = randomized(CifarResNet(8, width=4))
    scales = [convert(model, [b, b], timesteps=4).provenance.calibration.scales for b in (FORMS[form], (X, Y))]
    assert scales[0] == scales[1]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_none_is_refused_with_its_batch(snn, name):
    batch, said = WRONG[name]
    with pytest.raises(InvalidData, match=said) as error:
        evaluate(snn, [(X, Y), batch], 4)
    assert str(error.value).startswith("evaluate: batch 2: got ") and "\n" not in str(error.value)
    assert "; expected " in str(error.value) and str(error.value).endswith(".")


def test_labels_that_tell_nothing_are_none_for_calibration():
    for labels in (torch.rand(8), torch.eye(8), list("abcdefgh"), Y[:3], object()):
        assert class_numbers((X, labels), 8) is None
    assert class_numbers(X, 8) is None and class_numbers({"x": X}, 8) is None


@pytest.mark.parametrize("value", [4, np.int64(4), np.uint8(4), torch.tensor(4), np.array(4)])
def test_whole_numbers_of_every_kind(snn, value, tmp_path):
    assert whole_number(value, "here", "T") == 4 and type(whole_number(value, "here", "T")) is int
    assert torch.equal(snn(X, value), snn(X, 4))
    assert torch.equal(simulate(snn, X, value, SimulationSettings(chunk=value)).outputs, simulate(snn, X, 4).outputs)
    name = snn.nodes[1].name
    assert torch.equal(features(snn, X, value, [name])[name], features(snn, X, 4, [name])[name])
    report = evaluate(snn, [(X, Y)], value, at=np.array([2, 4]), device=torch.device("cpu"))
    report.save(tmp_path / "out.json")
    assert [type(row.timesteps) for row in report.snn] == [int, int]
    save(convert(randomized(CifarResNet(8, width=4)), [X, X], timesteps=value), tmp_path / "net.snn")
    assert verify(snn, [X], value).timesteps == 4 and GraphModule(snn, value).timesteps == 4


@pytest.mark.parametrize("value", [4.0, "4", True, None, torch.tensor([1, 2]), torch.tensor(4.0), 0, -1])
def test_other_numbers_are_refused_in_one_line(snn, value):
    for call in (
        lambda: snn(X, value),
        lambda: simulate(snn, X, value),
        lambda: evaluate(snn, [(X, Y)], value),
        lambda: verify(snn, [X], value),
        lambda: GraphModule(snn, value),
    ):
        with pytest.raises(InvalidData, match=r"got timesteps=.*; expected (a whole number|at least 1)") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [2.0, "2", True, torch.tensor([1, 2]), torch.tensor(2.0), 0, -1])
def test_steps_to_report_and_chunks_likewise(snn, value):
    for call in (
        lambda: simulate(snn, X, 4, at=value if isinstance(value, int) else [value]),
        lambda: evaluate(snn, [(X, Y)], 4, at=[value]),
        lambda: simulate(snn, X, 4, at=[value]),
        lambda: simulate(snn, X, 4, SimulationSettings(chunk=value)),
    ):
        with pytest.raises(InvalidData, match=r"got .*; expected ") as error:
            call()
        assert "\n" not in str(error.value)


def test_one_number_is_no_class():
    """A top-1 of it would be printed without a meaning."""
    one = Net(lambda s, x: s.one(s.relu(s.conv1(x)).mean((2, 3))), one=torch.nn.Linear(8, 1))
    with pytest.raises(InvalidData, match=r"evaluate: got a network that answers one number; .*targets"):
        evaluate(convert(one, [X], "multilevel"), [(X, torch.zeros(8).long())], 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (X.numpy(), "type ndarray.*as_tensor"),
        (list(X), "type list"),
        ("photo.png", "type str"),
        (None, "type NoneType"),
        (X.to("meta"), "on the meta device"),
        (X.to_sparse(), "sparse"),
    ],
)
def test_what_is_no_batch_of_images_is_not_simulated(snn, given, said):
    calls = [lambda: snn(given, 4), lambda: simulate(snn, given, 4), lambda: snn.run(given)]
    calls += [
        lambda: simulate(snn, given, 4, SimulationSettings(coding="poisson")),
        lambda: features(snn, given, 4, ["relu"]),
        lambda: closed_form(snn, given, 4),
        lambda: simulate_with_early_exit(snn, given, 4, 0.9),
    ]
    if isinstance(given, torch.Tensor):  # a batch of NumPy is taken
        calls += [lambda: evaluate(snn, [(given, Y)], 4), lambda: verify(snn, [given], 4)]
        calls += [lambda: convert(randomized(CifarResNet(8, width=4)), [given], timesteps=4)]
    for call in calls:
        with pytest.raises(InvalidData, match=rf"got images .*{said}") as error:
            call()
        assert "\n" not in str(error.value) and "; expected a" in str(error.value)


def test_a_module_is_no_network(snn, tmp_path):
    """The mistake of who has not converted it yet."""
    model = randomized(CifarResNet(8, width=4))
    for call in (
        lambda: evaluate(model, [(X, Y)], 4),
        lambda: verify(model, [X], 4),
        lambda: simulate(model, X, 4),
        lambda: simulate_with_early_exit(model, X, 4, 0.5),
        lambda: GraphModule(model, 4),
        lambda: count_operations(model, [X], 4),
        lambda: save(model, tmp_path / "net.snn"),
        lambda: export_nir(model, tmp_path / "net.nir"),
        lambda: export_npz(model, tmp_path / "net.npz"),
        lambda: export_torch(model, tmp_path / "net.pt2", 4),
    ):
        with pytest.raises(InvalidData, match=r"got a CifarResNet; expected a converted one\. Call convert first"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (X, "one Tensor of shape .*Pass \\[images\\]"),
        (X.numpy(), "one ndarray of shape .*Pass \\[images\\]"),
        ("digits", "'digits'; .*open_data"),
        (Path("photos"), "'photos'.*open_data"),
        ({"images": X, "labels": Y}, "one dict with images, labels; .*a list of such batches"),
        (7, "type int; "),
    ],
)
def test_what_is_no_list_of_batches_is_refused_everywhere(snn, given, said):
    model = randomized(CifarResNet(8, width=4))
    for call in (
        lambda: convert(model, given, timesteps=4),
        lambda: s_resnet.calibrate(s_resnet.trace(model, X), given),
        lambda: evaluate(snn, given, 4),
        lambda: verify(snn, given, 4),
        lambda: count_operations(snn, given, 4),
        lambda: s_resnet.report.measure(snn, given, 4),
    ):
        with pytest.raises(InvalidData, match=rf": batches, got .*{said}") as error:
            call()
        assert "\n" not in str(error.value)


def test_arguments_of_another_kind_are_refused_with_the_one_that_is_meant(snn, tmp_path):
    """What was passed in that place before, or what belongs one step earlier."""
    model, path = randomized(CifarResNet(8, width=4)), tmp_path / "out.pt"
    digits = s_resnet.data.open_data("digits", "calibration")
    for call, said in (
        (lambda: simulate(snn, X, 4, 8), r"settings, got a value of type int; .*SimulationSettings\("),
        (lambda: simulate_with_early_exit(snn, X, 4, 0.5, "fast"), r"settings, got .* str; .*SimulationSettings\("),
        (lambda: evaluate(snn, [(X, Y)], 4, "fast"), r"settings, got .* str; .*EvaluationSettings\("),
        (lambda: s_resnet.report.measure(snn, [(X, Y)], 4, "my network"), r"settings, got .* str; .*network=\.\.\."),
        (lambda: s_resnet.report.write_page([snn], tmp_path / "page"), r"network, got .* Graph; .*report\.measure"),
        (lambda: s_resnet.calibrate(model, [X]), r"graph, got .* CifarResNet; .*s_resnet\.trace"),
        (lambda: s_resnet.fine_tune(model, digits, path), "got a CifarResNet; .*convert"),
        (lambda: s_resnet.fine_tune(snn, [(X, Y)], path), "data, got .* list of tuple; .*open_data"),
        (lambda: s_resnet.train("ms_resnet8", "digits", path), "data, got .* str; .*open_data"),
        (
            lambda: s_resnet.train("ms_resnet8", digits, path, test=[(X, Y)]),
            "test data, got .* list of tuple; .*evaluation",
        ),
        (lambda: s_resnet.train("ms_resnet8", digits, path, 3), r"settings, got .* int; .*Training\("),
        (lambda: s_resnet.train("ms_resnet8", digits, path, execution="cpu"), r"got .* str; .*Execution\(device="),
        (lambda: s_resnet.data.open_data(tmp_path, "evaluation"), r"name, got .*; expected str\. .*str\(path\)"),
        (lambda: s_resnet.models.SpikingNeuron(4, "LIF"), "firing, got 'LIF'; expected a Firing"),
        (lambda: s_resnet.models.build("ms_resnet8", 0), "classes, got 0; expected at least 1"),
        (lambda: s_resnet.Training(augmentation="flip"), r"augmentation, got 'flip'; .*\('flip',\)"),
        (lambda: s_resnet.Training(epochs="1"), "epochs, got '1'"),
        (lambda: s_resnet.Training(lr="0.1"), "lr, got '0.1'; expected a number above 0"),
    ):
        with pytest.raises(InvalidData, match=said) as error:
            call()
        assert "\n" not in str(error.value) and not path.exists()
    for recipe in (3, RECIPES):
        said = r"recipe: got .*a Recipe or an Auto\. Pass a name"
        with pytest.raises(s_resnet.errors.ConversionError, match=said) as error:
            convert(model, [X], recipe)
        assert "\n" not in str(error.value) and len(str(error.value)) < 200
    with pytest.raises(s_resnet.errors.UnsupportedModel, match="Graph: got no module"):
        s_resnet.frontend.QCFSModule(snn, X)


@pytest.mark.parametrize("value", ["0.5", None, True, 0, 1, 2, float("nan"), torch.ones(2), [0.5]])
def test_confidences_and_percentiles_are_numbers(snn, value):
    calls = [lambda: simulate_with_early_exit(snn, X, 4, value)]
    calls += [] if value is None else [lambda: evaluate(snn, [(X, Y)], 4, EvaluationSettings(early_exit=value))]
    for call in calls:
        with pytest.raises(InvalidData, match=r"(confidence|early_exit)=.*; expected 0 < P < 1"):
            call()
    if not isinstance(value, torch.Tensor) and value not in (None, 1, 2):
        with pytest.raises(InvalidData, match=r"got percentile .*; expected above 0"):
            RECIPES["s-resnet"].with_percentile(value)


def test_numbers_of_other_libraries_are_numbers():
    streaming = convert(randomized(CifarResNet(8, width=4)), [X, X], "s-resnet", timesteps=4)
    one, other = (simulate_with_early_exit(streaming, X, 4, p).steps for p in (0.5, np.float32(0.5)))
    assert torch.equal(one, other)
    made = [
        convert(
            randomized(CifarResNet(8, width=4)), [X, X], RECIPES["s-resnet"].at(4).with_percentile(p)
        ).provenance.calibration
        for p in (99.0, torch.tensor(99.0), np.float64(99))
    ]
    assert made[0].scales == made[1].scales == made[2].scales


@pytest.mark.parametrize("value", [16.0, "16", 0, -1, True])
def test_an_input_size_is_a_whole_number(value):
    with pytest.raises(InvalidData, match=r"convert: got an image shape \(3, "):
        convert(randomized(CifarResNet(8, width=4)), (3, value, value))


def test_images_that_are_not_finite_are_not_simulated(snn):
    bad = X.clone()
    bad[5, 0, 0, 0] = torch.nan
    for call in (lambda: snn(bad, 4), lambda: simulate(snn, bad, 4), lambda: verify(snn, [bad], 4)):
        with pytest.raises(InvalidData, match="not finite"):
            call()


def test_answers_that_are_not_finite_have_no_accuracy(snn):
    """Finite images of a wrong scale overflow inside."""
    with pytest.raises(InvalidData, match=r"batch 1: got answers of the source network that are not finite"):
        evaluate(snn, [(X.sign() * 3e38, Y)], 4)


@pytest.mark.parametrize("recipe", ["s-resnet", "calibrated", "multilevel"])
@pytest.mark.parametrize("x", [torch.zeros(8, 3, 8, 8), images(1, 8).expand(8, -1, -1, -1)], ids=["zeros", "one image"])
def test_images_that_do_not_vary_convert(recipe, x):
    """All marks are the same: as many as are held out are left out, and no more."""
    snn = convert(randomized(CifarResNet(8, width=4)), [x.contiguous()], recipe, timesteps=4)
    known = snn.provenance.calibration
    assert known.images + known.held_out == 8 and torch.isfinite(snn(X, 4)).all()
    assert any("are the same" in note for note in snn.provenance.check.notes)
