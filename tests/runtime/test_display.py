"""How results show themselves: every public dataclass in five lines, in a notebook, as a text table, as plain JSON."""

import dataclasses
import functools
import html.parser
import importlib
import inspect
import json
import typing
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import images, randomized
from every_recipe import SIZE, STEPS, network
from sresnet_cli.__main__ import sresnet
from test_house import CLI, SPACES
from test_provenance import LITERAL
from trained_networks import T, trained

import s_resnet
from s_resnet.conversion.alternatives import Alternative
from s_resnet.graph.engine import Whole
from s_resnet.graph.provenance import Provenance, Source
from s_resnet.runtime import display
from s_resnet.runtime.display import LINES, ROWS, WIDTH, Displayed, Entries, Table, brief, plain

LABELS = torch.arange(4) % 3
IMAGES = images(4, SIZE)
PASSES = [getattr(s_resnet.conversion.passes, name) for name in s_resnet.conversion.passes.__all__]


def types_in(hint):
    """The classes that an annotation speaks of."""
    if inspect.isclass(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from types_in(part)


def returned(function):
    return types_in(typing.get_type_hints(function).get("return"))


ROOMS = [importlib.import_module(f"s_resnet.{space}".rstrip(".")) for space in ("", *SPACES)]


PUBLISHED = [getattr(room, name) for room in ROOMS for name in room.__all__]


OPERATIONS = (s_resnet.graph.ops, s_resnet.graph.neuron, s_resnet.graph.readout, s_resnet.graph.alphabet)


def public_dataclasses():
    """Those that s_resnet exports, that its functions and methods return, and that are in their fields."""
    todo = list(PUBLISHED) + PASSES
    seen, found = set(), set()
    while todo:
        thing = todo.pop()
        if isinstance(thing, dict | tuple):
            todo += map(type, thing.values() if isinstance(thing, dict) else thing)
        elif inspect.isfunction(thing):
            todo += returned(thing)
        elif inspect.isclass(thing) and thing.__module__.startswith("s_resnet") and thing not in seen:
            seen.add(thing)
            found |= {thing} if dataclasses.is_dataclass(thing) else set()
            todo += (kind for hint in typing.get_type_hints(thing).values() for kind in types_in(hint))
            for name, member in vars(thing).items():
                function = getattr(member, "fget", None) or getattr(member, "func", member)
                todo += returned(function) if inspect.isfunction(function) and not name.startswith("_") else ()
    # What a node may hold is said by a protocol, which no annotation leads on from.
    rooms = {module.__name__ for module in OPERATIONS}
    operations = [kind for module in OPERATIONS for kind in vars(module).values() if isinstance(kind, type)]
    return found | {op for op in operations if dataclasses.is_dataclass(op) and op.__module__ in rooms}


PUBLIC = sorted(public_dataclasses(), key=lambda kind: kind.__name__)


def photos():
    return s_resnet.data.ImageData("/photos", "test", ("a", "b"), [f"{i}.png" for i in range(999)], [0] * 999)


@functools.cache
def results():
    """What the public functions return, of tiny networks."""
    snn, directly = network("calibrated-lagged"), trained("ds_resnet8")[1]
    streaming = network("calibrated-constant")
    model = randomized(s_resnet.models.CifarResNet(8, width=4)).eval()
    analog = s_resnet.trace(model, IMAGES)
    operations = s_resnet.analysis.count_operations(snn, [IMAGES], 2)
    report = s_resnet.report.measure(snn, [(IMAGES, LABELS)], 2, network="tiny.snn", device="cpu")
    epoch = {
        "epoch": 1,
        "loss": 2.5,
        "train_top1": 0.25,
        "validation_top1": None,
        "test_top1": 0.5,
        "lr": 0.1,
        "seconds": 1.0,
    }
    events = s_resnet.data.Events(*(torch.zeros(3, dtype=torch.int64) for _ in range(4)), (8, 8))
    layer = s_resnet.export.LayerComparison("relu", 12, 0)
    measuring = s_resnet.analysis.MeasuringSettings("tiny", "calibrated-constant", device="cpu", operations=2)
    measured = s_resnet.analysis.measure_candidates(streaming, [(IMAGES, LABELS)], [1, 2], measuring)
    compared = s_resnet.analysis.compare([measured])
    return (
        *(snn, directly, analog, snn.provenance, Provenance.from_json(json.loads(LITERAL))),
        *(report, operations, s_resnet.analysis.energy(operations)),
        s_resnet.simulate(snn, IMAGES, 3, at=[1, 3]),
        s_resnet.simulation.simulate_with_early_exit(streaming, IMAGES, 4, 0.4),
        next(streaming.stream(IMAGES, 2)),
        s_resnet.verify(snn, [(IMAGES, LABELS)], 2),
        s_resnet.verify(directly, [IMAGES], 1),
        s_resnet.evaluate(snn, [(IMAGES, LABELS)], 2, device="cpu"),
        s_resnet.evaluate(
            streaming, [(IMAGES, LABELS)], 3, s_resnet.analysis.EvaluationSettings(early_exit=0.5), device="cpu"
        ),
        s_resnet.calibrate(analog, [images(20, SIZE)], held_out=4),
        s_resnet.conversion.check_source(analog, [(images(20, SIZE), torch.arange(20) % 10)]),
        *s_resnet.simulation.record(snn, IMAGES[:1], 3, [snn.neurons[1].name], 4),
        *s_resnet.graph.shortcuts(snn),
        *(s_resnet.graph.StreamSettings(), Whole()),
        s_resnet.frontend.Checkpoint(model, "cifar_resnet8", 10, 32, "0" * 64, "a.pth"),
        photos(),
        s_resnet.data.EventData("dvsgesture:/e", "test", ("a", "b"), ["0"], [0]),
        s_resnet.data.ArrayData("a.npz", "test", ("a", "b"), ["0"], [0], numbers=np.zeros((1, 12, 40), np.float32)),
        s_resnet.data.AsStored((12, 40)),
        *(events, s_resnet.data.EVENT_BINS["cifar10dvs"], s_resnet.data.preprocessing_for(32)),
        *(*s_resnet.RECIPES.values(), *s_resnet.training.PRESETS, s_resnet.Training(), s_resnet.analysis.Constants()),
        s_resnet.training.TrainingResult(model, "cifar_resnet8", s_resnet.Training(), (epoch,), 0, ()),
        s_resnet.training.Execution(),
        s_resnet.models.Layout((2, 2), (4, 8)),
        s_resnet.training.FineTuning(snn, True, 0.5, 0.75, (epoch,)),
        s_resnet.export.Comparison("nir", "1.0", 4, 2, "float32", (layer,), 4, 4, 1e-6),
        Alternative("--input-size 64", 0.5),
        *(s_resnet.conversion.Auto(), s_resnet.conversion.PUBLISHED["ftbc"]),
        s_resnet.conversion.Context(),
        s_resnet.simulation.SimulationSettings(),
        s_resnet.report.ReportSettings(),
        s_resnet.analysis.EvaluationSettings(early_exit=0.5),
        report.rival,
        *(measuring, measured, compared, compared.table_of("tiny")),
        s_resnet.data.ImageLoader(photos(), range(7), s_resnet.data.preprocessing_for(SIZE), batch_size=3),
    )


def inside(value):
    """A value and all that is in its fields."""
    yield value
    parts = ()
    if dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    for part in parts:
        yield from inside(part)


@functools.cache
def examples():
    """An example of each class, more of those that differ."""
    found = {}
    for result in results():
        for value in inside(result):
            if isinstance(value, Displayed):
                found.setdefault(type(value), []).append(value)
    return found


def test_there_are_public_dataclasses():
    named = {kind.__name__ for kind in PUBLIC}
    assert {"Graph", "Simulation", "Verification", "Report", "Calibration", "State", "Node", "Conv2d", "Row"} <= named
    assert len(PUBLIC) > 50


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_public_dataclass_shows_itself(kind):
    """A new one is found by itself: make it Displayed, with repr=False, for else dataclass makes one of all numbers."""
    assert issubclass(kind, Displayed) and kind.__repr__ is Displayed.__repr__
    assert kind._repr_html_ is Displayed._repr_html_ and kind.table is Displayed.table


def test_so_does_every_other_public_class():
    """But modules, which show themselves as PyTorch has it, errors, protocols, a bar and a file of tensors."""
    exported = {one for one in PUBLISHED if inspect.isclass(one)} - set(PUBLIC)
    left = {one for one in exported if not issubclass(one, torch.nn.Module | Exception | Displayed)}
    assert left == {s_resnet.runtime.Progress, s_resnet.kernels.Kernel}
    loader = results()[-1]
    assert repr(loader) == loader.table() == "ImageLoader: 7 of the 999 samples of /photos (test) in 3 batches"
    assert loader.to_dict()["samples"] == 7 and json.loads(json.dumps(loader.to_dict())) == loader.to_dict()


class Balanced(html.parser.HTMLParser):
    """The text of HTML in which what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], "", set()

    def handle_starttag(self, tag, _):
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def text_of(markup):
    parser = Balanced()
    parser.feed(markup)
    assert not parser.open
    assert parser.tags <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    return parser.text


# Without an example: what others are made of, and operations that the tiny networks lack.
ABSENT = {"LabeledData", "Firing", "Update"}
OPERATIONS = {f"s_resnet.graph.{part}" for part in ("ops", "neuron", "alphabet", "readout")}


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_an_example_of_each_is_short_and_plain(kind):
    shown = [value for one, values in examples().items() if issubclass(one, kind) for value in values][:20]
    assert shown or kind.__module__ in OPERATIONS or kind.__name__ in ABSENT, "add one to results"
    for value in shown:
        said = repr(value)
        assert said and len(said.splitlines()) <= LINES and all(len(line) <= 2 * WIDTH for line in said.splitlines())
        assert "tensor(" not in said and str(value) == said
        entry = value.to_dict()
        assert entry == json.loads(json.dumps(entry, allow_nan=False))
        assert "tensor(" not in value.table() and value.table().strip()
        assert text_of(value._repr_html_()).strip()


def test_figures_that_are_not_finite_become_null():
    row = s_resnet.analysis.Row(1, 1, float("nan"), None, float("inf"), 0.5)
    entry = row.to_dict()
    assert entry["top1"] is None and entry["agreement"] is None and entry["spikes_per_neuron"] == 0.5
    assert plain({1: (2, {"x": torch.zeros(2, 3)}), "y": torch.float32, "z": torch.relu}) == {
        "1": [2, {"x": {"dtype": "float32", "shape": [2, 3]}}],
        "y": "torch.float32",
        "z": "relu",
    }


def test_what_a_simulation_holds_is_in_its_dict():
    """Answers and spikes as numbers, of the memory only what it is: it is as large as the activations."""
    result = s_resnet.simulate(network("calibrated-lagged"), IMAGES, 3, at=[1, 3])
    entry = result.to_dict()
    assert torch.equal(torch.tensor(entry["outputs"]), result.outputs) and entry["steps"] == [1, 3]
    name, count = next(iter(result.spikes.items()))
    assert entry["spikes"][name] == count.tolist()
    assert entry["state"]["step"] == 3 and entry["state"]["memory"][name][0]["dtype"] == "float32"
    rows = {line.split()[0]: line.split()[1:] for line in result.table().splitlines()[2:]}
    assert rows[name] == [f"{float(spikes.mean()):,.1f}" for spikes in count]
    total = sum(float(count[1].mean()) for count in result.spikes.values())
    assert rows["all"][1] == f"{total:,.1f}" and f"T = 3: {total:,.0f} spikes per image" in repr(result)


def test_a_network_says_what_it_is():
    snn, directly, analog = (next(value for value in results()[place : place + 1]) for place in range(3))
    weights = sum(node.op.weight.numel() for node in snn.nodes if getattr(node.op, "weight", None) is not None)
    assert "recipe calibrated-lagged, tuned for T = 6" in repr(snn) and f" {weights:,} weights" in repr(snn)
    assert f"{len(snn.nodes)} nodes, {len(snn.neurons)} neuron layers" in repr(snn)
    assert f"an answer after {snn.end_to_end_steps(STEPS)} steps" in repr(snn)
    assert f"directly trained for T = {T}" in repr(directly) and "not spiking" in repr(analog)
    named = s_resnet.Graph(snn.nodes, Provenance(classes=("cat", "dog")))
    assert "2 classes: cat, dog\n" in repr(named)
    assert "0 nodes" in repr(s_resnet.Graph(()))
    for graph in (snn, directly, analog):
        rows = graph.table().split("\n\n")[1].splitlines()[1:]
        assert [row.split()[0] for row in rows] == [node.name for node in graph.nodes]


def test_provenance_prints_shortly():
    long = {"calibration": {"marks": list(range(5000)), "images": 7}, "recipe": {"name": "x"}, "classes": ["a"] * 1000}
    graph = s_resnet.Graph((), Provenance.from_json(long))
    known = graph.provenance
    assert known.to_json() == known.to_dict() == long
    assert len(repr(known)) < 100 and "calibration" in repr(known)
    assert repr(known.recipe) == "{'name': 'x'}" and len(repr(known.calibration)) < 100
    assert "calibration.images  7" in known.table() and "5,000 in all" in known.table()
    more = graph.with_provenance(extra={"deep": {"list": list(range(999))}}).provenance
    assert more.extra["deep"]["list"][-1] == 998 and len(repr(more)) < 100


def test_what_comes_from_files_gives_no_orders():
    """Escapes to a terminal, markup to a notebook, a name of a megabyte to either."""
    nasty = "\x1b[2J<script>alert(1)</script>&" + "x" * 100_000
    graph = network("calibrated-lagged").with_provenance(source=Source(arch=nasty), classes=(nasty, "b"))
    for said in (
        repr(graph),
        graph.table(),
        graph._repr_html_(),
        repr(graph.provenance),
        graph.provenance._repr_html_(),
    ):
        assert "\x1b" not in said
    assert "<script>" not in graph._repr_html_() and "<script>alert" in text_of(graph._repr_html_())
    assert len(repr(graph)) <= LINES * WIDTH + LINES and len(graph._repr_html_()) < 100_000
    layer = s_resnet.export.LayerComparison(nasty, 1, 0)
    result = s_resnet.export.Comparison("nir", "1", 1, 1, "float32", (layer,), 1, 1, None)
    assert "\x1b" not in result.table() and len(result._repr_html_()) < 5_000


def test_tables_are_aligned_and_end_somewhere():
    table = Table(("layer", "rate"), (("a", "1.5"), ("longer", "10.25")), width=7)
    assert table.text() == "layer      rate\na           1.5\nlonger    10.25"
    assert Table(("a", "b"), (("xx", "yy"),), texts=2).text() == "a   b\nxx  yy"
    assert Table(("a",), ()).text() == "a"
    many = Table(("n",), tuple((str(n),) for n in range(ROWS + 7)))
    assert len(many.text().splitlines()) == ROWS + 8
    assert "7 more rows" in text_of(many.html()) and f'<td style="text-align: left">{ROWS}</td>' not in many.html()


def test_values_in_brief():
    assert brief(torch.zeros(3, 4)) == "float32 [3, 4]" and brief(0.1234567891) == "0.123457"
    assert brief(list(range(10))) == "[0, 1, 2, 3, 4, 5, ... 10 in all]" and brief((1,)) == "(1,)"
    assert brief({"a": None}) == "{a: None}" and len(brief("x" * 999)) == display.CELL
    assert brief(s_resnet.Training(epochs=3)) == "Training(epochs=3)"
    assert repr(s_resnet.graph.Neuron(torch.ones(4), decay=0.5)) == "Neuron(threshold=float32 [4], decay=0.5)"
    assert isinstance(Entries({"a": {"b": 1}})["a"], Entries)


def test_the_command_line_prints_these_tables(monkeypatch):
    """One source for both."""
    monkeypatch.setattr(s_resnet, "load", lambda path: network("calibrated-lagged"))
    said = CliRunner().invoke(sresnet, ["inspect", "tiny.snn"]).output
    assert said == f"tiny.snn: {network('calibrated-lagged').table()}\n"
    program = "".join(path.read_text() for path in CLI.glob("*.py"))
    assert program.count(".table()") >= 4 and ".ljust(" not in program and ".rjust(" not in program
