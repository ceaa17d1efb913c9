"""Anytime exit against brute force: a plain simulation kept at every step, and the rule in a loop over images."""

import json
import math

import pytest
import torch
from test_cli import SIZE, Program, make_checkpoint, tiny

from s_resnet import Graph, evaluate, simulate
from s_resnet.analysis import EarlyExit, EvaluationSettings
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron, Node, Readout, SpikingMaxPool2d
from s_resnet.graph.ops import Conv2d, Flatten, Input, Linear, MaxPool2d, Scale
from s_resnet.simulation import SimulationSettings, simulate_with_early_exit

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
T = 24


def dyadic(seed, *shape, scale=16):
    """Multiples of 1 / scale in [-0.5, 0.56]: every sum of the network below is exact in float32."""
    return torch.randint(-8, 10, shape, generator=torch.Generator().manual_seed(seed)) / scale


def network(mode="current", scale=None):
    """Every kind of memory: neurons, a gated max-pool, a residual shortcut, a readout."""
    ops = [
        ("input", Input(), ()),
        ("stem", Conv2d(dyadic(1, 4, 3, 3, 3), dyadic(2, 4), (1, 1), (1, 1)), ("input",)),
        ("n0", Neuron(torch.tensor(1.0), 0.5), ("stem",)),
        ("gate", SpikingMaxPool2d((2, 2), (2, 2)), ("n0",)),
        ("a", Conv2d(dyadic(3, 4, 4, 3, 3), dyadic(4, 4), (1, 1), (1, 1)), ("gate",)),
        ("short", Scale(torch.tensor(0.5)), ("gate",)),
        ("n1", Neuron(torch.tensor(1.0)), ("a", "short")),
        ("flat", Flatten(), ("n1",)),
        ("fc", Linear(dyadic(5, 6, 64), dyadic(6, 6)), ("flat",)),
        ("readout", Readout(torch.tensor(scale or {"current": 4.0, "spikes": 48.0}[mode]), mode), ("fc",)),
    ]
    return Graph(tuple(Node(*op) for op in ops)).validate()


def pictures(batch, seed=7):
    """From dark to bright: some are told apart at once, some never."""
    return dyadic(seed, batch, 3, 8, 8, scale=8) * (torch.arange(batch) % 7 / 2)[:, None, None, None]


def by_brute_force(graph, images, steps, confidence):
    """Each image alone, one step after another: where it stops, its answer there, its spikes so far."""
    found = []
    for image in images:
        plain = simulate(graph, image[None], steps, SimulationSettings(chunk=1), at=range(1, steps + 1))
        for t in range(1, steps + 1):
            logits = [float(value) * t / steps for value in plain.outputs[t - 1, 0]]
            shares = [math.exp(value - max(logits)) for value in logits]
            if max(shares) / sum(shares) >= confidence or t == steps:
                spikes = {name: float(count[t - 1, 0]) for name, count in plain.spikes.items()}
                found.append((t, plain.outputs[t - 1, 0], spikes))
                break
    return found


@pytest.fixture
def work(monkeypatch):
    """The (images, steps) of every chunk that is simulated."""
    chunks = []
    stream = Graph.stream

    def counted(self, images, *rest, **named):
        for part in stream(self, images, *rest, **named):
            assert part.outputs.shape[1] == len(images)
            chunks.append((len(images), len(part.outputs)))
            yield part

    monkeypatch.setattr(Graph, "stream", counted)
    return chunks


@pytest.mark.parametrize("mode", ["current", "spikes"])
@pytest.mark.parametrize("chunk", [1, 3, T, None])
def test_every_image_stops_where_brute_force_stops_it(mode, chunk):
    images, graph = pictures(19), network(mode)
    want = by_brute_force(graph, images, T, 0.8)
    got = simulate_with_early_exit(graph, images, T, 0.8, SimulationSettings(chunk=chunk))
    assert got.steps.tolist() == [t for t, _, _ in want] and got.steps.dtype == torch.int64
    assert torch.equal(got.outputs, torch.stack([answer for _, answer, _ in want]))
    assert {name: count.tolist() for name, count in got.spikes.items()} == {
        name: [spikes[name] for _, _, spikes in want] for name in got.spikes
    }
    assert set(got.spikes) == {"n0", "n1"}
    # Some stop early, at several steps, and some never: else nothing above was tried.
    assert len(set(got.steps.tolist())) >= 5 and got.steps.min() < T / 2
    assert got.steps.max() == T


def test_an_image_that_stops_does_not_touch_the_others():
    """Bit for bit the answers of a plain simulation, whatever left the batch meanwhile."""
    images, graph = pictures(19), network()
    plain = simulate(graph, images, T)
    got = simulate_with_early_exit(graph, images, T, 0.8, SimulationSettings(chunk=2))
    last = got.steps == T
    assert last.any() and not last.all()
    assert torch.equal(got.outputs[last], plain.outputs[0][last])


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_work_of_those_who_stopped_is_saved(work, chunk):
    got = simulate_with_early_exit(network(), pictures(19), T, 0.8, SimulationSettings(chunk=chunk))
    spent = sum(batch * steps for batch, steps in work)
    batches = [batch for batch, _ in work]
    assert batches[0] == 19 and batches == sorted(batches, reverse=True) and len(set(batches)) >= 4
    needed = int(got.steps.sum())
    # What is simulated in vain: up to the end of the chunk, and until an eighth of the batch can leave.
    assert needed <= spent <= needed + 19 * (chunk - 1) + sum(batch // 8 * steps for batch, steps in work)
    assert spent < 0.8 * 19 * T


def test_nothing_is_simulated_once_all_have_stopped(work):
    got = simulate_with_early_exit(network(scale=4096.0), pictures(6), T, 0.5, SimulationSettings(chunk=1))
    assert got.steps.max() < T / 2
    assert sum(steps for _, steps in work) == got.steps.max()


def test_the_looks_come_often_however_small_the_batch(work):
    simulate_with_early_exit(network(), pictures(1), T, 0.999)
    assert max(steps for _, steps in work) <= 4


def test_a_confidence_near_1_gives_the_plain_simulation():
    images, graph = pictures(9), network()
    plain = simulate(graph, images, T)
    got = simulate_with_early_exit(graph, images, T, 1 - 1e-12)
    assert got.steps.tolist() == [T] * 9 and torch.equal(got.outputs, plain.outputs[0])
    assert {name: count.tolist() for name, count in got.spikes.items()} == {
        name: count[0].tolist() for name, count in plain.spikes.items()
    }


def test_the_more_confidence_the_later():
    runs = [simulate_with_early_exit(network(), pictures(19), T, p).steps for p in (0.5, 0.8, 0.95)]
    assert (runs[0] <= runs[1]).all() and (runs[1] <= runs[2]).all()
    assert runs[0].sum() < runs[1].sum() < runs[2].sum()


def test_few_steps_are_not_trusted():
    """After one step of eight the readout holds little, however sure its softmax is: it counts for an eighth."""
    loud = Linear(torch.tensor([[4.0], [0.0]]), None)
    ops = [Input(), Neuron(torch.tensor(1.0)), Flatten(), loud, Readout(torch.tensor(1.0))]
    graph = Graph(tuple(Node(str(i), op, () if i == 0 else (str(i - 1),)) for i, op in enumerate(ops))).validate()
    got = simulate_with_early_exit(graph, torch.ones(1, 1, 1, 1), 8, 0.9)  # logits (4, 0) at every step: 0.982
    assert got.outputs.tolist() == [[4.0, 0.0]]
    assert got.steps.tolist() == [math.ceil(8 * math.log(9) / 4)] == [5]


def test_the_layout_of_the_memory_is_kept(monkeypatch):
    """Neurons in channels_last stay so: the convolutions' layout, and a copy at every step otherwise."""
    layouts = []
    stream = Graph.stream

    def seen(self, images, timesteps, chunk, state, settings):
        for parts in state.memory.values() if state else ():
            layouts.extend(p.is_contiguous(memory_format=torch.channels_last) for p in parts if p.ndim == 4)
        return stream(self, images, timesteps, chunk, state, settings)

    monkeypatch.setattr(Graph, "stream", seen)
    simulate_with_early_exit(network(), pictures(19), T, 0.8)
    assert layouts and all(layouts)


# ---- in the report


def batches(count=19, sizes=(8, 8, 3)):
    images = pictures(count)
    labels = network().run(images).argmax(1)
    labels[::4] = (labels[::4] + 1) % 6
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def test_the_exit_of_the_report_is_the_one_counted_by_hand():
    graph, loader = network(), batches()
    images, labels = torch.cat([x for x, _ in loader]), torch.cat([y for _, y in loader]).tolist()
    want, choice = by_brute_force(graph, images, T, 0.8), graph.run(images).argmax(1).tolist()
    ranks = [answer.sort(descending=True, stable=True).indices.tolist() for _, answer, _ in want]
    report = evaluate(graph, loader, T, EvaluationSettings(early_exit=0.8), device="cpu")
    out = report.exit
    assert (out.confidence, out.timesteps) == (0.8, T)
    assert out.mean_timesteps == sum(t for t, _, _ in want) / 19
    assert out.top1 == sum(r[0] == y for r, y in zip(ranks, labels, strict=True)) / 19
    ann = sum(c == y for c, y in zip(choice, labels, strict=True)) / 19
    assert out.top5 is None and out.drop == pytest.approx(ann - out.top1)  # of fewer than 20 classes
    assert out.drop_interval[0] < out.drop < out.drop_interval[1]
    assert out.agreement == sum(r[0] == c for r, c in zip(ranks, choice, strict=True)) / 19
    neurons = 4 * 8 * 8 + 4 * 4 * 4
    assert out.spikes_per_neuron == pytest.approx(sum(sum(s.values()) for _, _, s in want) / 19 / neurons)
    assert 0 < out.top1 < 1 and out.agreement < 1 and 1 < out.mean_timesteps < T
    assert report.images == 19 and report.snn == ()
    assert report.images_per_second == out.images_per_second > 0  # of what was simulated
    assert report.seconds_per_step_per_image * out.mean_timesteps * out.images_per_second == pytest.approx(1)


def test_fixed_steps_stand_beside_the_exit_only_when_asked_for(work):
    graph, loader = network(), batches()
    plain = evaluate(graph, loader, T, at=[8, T], device="cpu")
    cost = sum(batch * steps for batch, steps in work)
    work.clear()
    alone = evaluate(graph, loader, T, EvaluationSettings(early_exit=0.8), device="cpu")
    saved = sum(batch * steps for batch, steps in work)
    work.clear()
    both = evaluate(graph, loader, T, EvaluationSettings(early_exit=0.8), at=[8, T], device="cpu")
    assert saved < 0.9 * cost and sum(batch * steps for batch, steps in work) == saved + cost
    assert both.snn == plain.snn and both.ann == plain.ann and plain.exit is None
    same = ("confidence", "timesteps", "mean_timesteps", "top1", "top5", "agreement", "spikes_per_neuron")
    assert [getattr(both.exit, name) for name in same] == [getattr(alone.exit, name) for name in same]
    assert both.seconds_per_step_per_image * both.images_per_second * T == pytest.approx(1)


def test_the_json_has_the_exit_only_when_asked_for():
    graph, loader = network(), batches()
    plain, asked = (evaluate(graph, loader, 4, EvaluationSettings(early_exit=p)).to_dict() for p in (None, 0.8))
    assert {*asked} == {*plain, "exit"} and asked["snn"] == [] and plain["snn"]
    assert {name: type(value) for name, value in asked["exit"].items()} == {
        "confidence": float, "timesteps": int, "mean_timesteps": float, "top1": float, "top5": type(None),
        "agreement": float, "spikes_per_neuron": float, "images_per_second": float, "drop": float,
        "drop_interval": list,
    }  # fmt: skip


def test_the_table_has_a_line_for_it():
    report = evaluate(network(), batches(), T, EvaluationSettings(early_exit=0.8), at=[T])
    lines = report.table().splitlines()
    out: EarlyExit = report.exit
    (line,) = [line for line in lines if "mean T" in line]
    drop, low, high = (f"{100 * value:+.2f}" for value in (out.drop, *out.drop_interval))
    assert line.split()[:8] == [
        *(f"{out.mean_timesteps:.1f}", f"{100 * out.top1:.2f}%", drop, low, "to", high),
        *(f"{100 * out.agreement:.2f}%", f"{out.spikes_per_neuron:.3f}"),
    ]
    assert "0.8" in line and f"T = {T}" in line and f"{out.images_per_second:.2f} images/s" in line
    assert "mean T" not in evaluate(network(), batches(), 2).table()


# ---- on the command line


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    """The program in a folder with tiny.snn, which a seeded network was converted to."""
    monkeypatch.chdir(tmp_path)
    program = Program(monkeypatch, capfd)
    make_checkpoint(tmp_path / "tiny.pth", tiny(10))
    program("convert", "tiny.pth", "--input-size", SIZE, "-o", "tiny.snn")
    return program


def test_the_command_line_reports_the_exit(program, tmp_path):
    pytest.importorskip("sklearn")
    asked = ("evaluate", "--timesteps", 16, "--data", "digits", "--limit", 30)
    table = program.works(*asked, "--exit-confidence", 0.15, "--json", "out.json")
    program.works(*asked, "--at", "4,16", "--json", "plain.json")
    plain, stored = (json.loads((tmp_path / name).read_text()) for name in ("plain.json", "out.json"))
    assert "exit" not in plain and stored["snn"] == [] and stored["ann"] == plain["ann"]
    assert stored["exit"]["confidence"] == 0.15 and 1 < stored["exit"]["mean_timesteps"] < 16
    assert "mean T" in table and f"{stored['exit']['mean_timesteps']:.1f}" in table
    program.works(*asked, "--exit-confidence", 1 - 1e-9, "--at", "4,16", "--json", "both.json")
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["snn"] == plain["snn"]
    assert both["exit"]["mean_timesteps"] == 16
    same = ("top1", "top5", "agreement", "spikes_per_neuron")
    assert [both["exit"][name] for name in same] == [plain["snn"][-1][name] for name in same]


@pytest.mark.parametrize("confidence", ["0", "1", "-0.5", "70", "nan", "inf", "sure"])
def test_a_bad_confidence_is_a_usage_error(program, confidence):
    code, out, err = program("evaluate", "--timesteps", 4, "--data", "digits", "--exit-confidence", confidence)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: Invalid value for '--exit-confidence'") and confidence in err


# ---- what does not fit


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 1.5, math.nan, math.inf])
def test_a_confidence_that_makes_no_sense_is_refused(confidence):
    for run in (
        lambda: simulate_with_early_exit(network(), pictures(2), 4, confidence),
        lambda: evaluate(network(), [], 4, EvaluationSettings(early_exit=confidence)),
    ):
        with pytest.raises(InvalidData, match=r"(confidence|early_exit)=.*; expected 0 < P < 1\.") as caught:
            run()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "steps", "chunk"), [(pictures(2), 0, None), (pictures(2)[:0], 4, None), (pictures(2), 4, 0)]
)
def test_what_does_not_fit_is_refused_as_by_simulate(images, steps, chunk):
    with pytest.raises(InvalidData, match="simulate"):
        simulate_with_early_exit(network(), images, steps, 0.8, SimulationSettings(chunk=chunk))


def test_a_coding_that_needs_every_step_is_refused():
    with pytest.raises(InvalidData, match=r"got an early exit with coding 'poisson'; expected 'direct'"):
        simulate_with_early_exit(network(), pictures(2), 4, 0.8, SimulationSettings(coding="poisson"))


def test_an_analog_network_is_refused():
    with pytest.raises(InvalidData, match="Call convert first"):
        simulate_with_early_exit(
            Graph((Node("i", Input(), ()), Node("p", MaxPool2d((1, 1), (1, 1)), ("i",)))), pictures(2), 4, 0.8
        )
