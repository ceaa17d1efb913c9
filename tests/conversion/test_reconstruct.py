"""Block-wise reconstruction: gradients by hand, blocks that get better on new images, and going on after a break."""

import importlib
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from conftest import images, randomized
from test_fitting import ALPHABETS, activations, model, same, spiking
from test_schedules import changed, dyadic, recorded

from s_resnet import RECIPES, Graph, calibrate, convert, load, save, trace
from s_resnet.conversion import Context, spill
from s_resnet.conversion import block as training
from s_resnet.conversion.calibrate import Calibration
from s_resnet.conversion.passes import calibrate_neurons, fit_thresholds, reconstruct
from s_resnet.errors import ConversionError, InvalidArtifact
from s_resnet.graph import Neuron, Node
from s_resnet.graph.alphabet import Signed, power_of_two
from s_resnet.graph.ops import Conv2d, Flatten, Input, Linear, SpikingWeights
from s_resnet.graph.provenance import AppliedPass, ReconstructedBlock
from s_resnet.models import CifarResNet
from s_resnet.runtime import progress
from s_resnet.simulation import lockstep
from s_resnet.simulation.lockstep import Pair

module = importlib.import_module(
    "s_resnet.conversion.passes.reconstruct"
)  # the package has the function under this name
STEPS = 4  # of time
SHORT = {"steps": 3, "joint": 3}


@pytest.fixture(scope="module")
def given():
    """An analog graph with both kinds of shortcut and of pools, and 64 images of 10 pixels to fit to."""
    x = images(64, 10, seed=3)
    graph = trace(model(), x)
    return graph, calibrate(graph, [x], 99.9, 0, False, True)


def prepared(given, name):
    """Fitted thresholds, but membranes that start at 0, which rounds every rate down: something to be learned."""
    graph = fit_thresholds(spiking(given, **ALPHABETS[name]), Context(given[1], STEPS))
    for node in graph.neurons:
        rows = torch.zeros(STEPS, 8) if name == "lagged" and node.name != "relu" else None
        graph = changed(graph, node.name, initial_potential=0.0, correction=rows)
    return graph


# ---- gradients by hand ----


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("rows", [None, 3])
def test_the_gradient_goes_straight_through_the_spikes(levels, rows):
    """r = theta (u + (N / T - u).detach()) with u = clip((z + b) / theta, 0, L), number by number."""
    most = 2**levels - 1
    theta = torch.tensor([0.5, 2.0]).requires_grad_()
    table = torch.tensor([0.25, -0.5]) if rows is None else torch.tensor([[0.5, -1.0], [0.25, -0.5], [0.0, 0.0]])
    b = table.clone().requires_grad_()
    z = torch.tensor([[[-1.0, 0.125, 0.5, 9.0]] * 2]).requires_grad_()
    other = torch.full_like(z, 0.0625).requires_grad_()
    rate = torch.tensor([[[0.0, 0.25, 0.5, 0.5 * most], [0.0, 0.0, 1.0, 2.0 * most]]])
    op = Neuron(theta, 0.5, spikes=power_of_two(levels), correction=b)
    got = training._through_spikes(op, [z, other], rate)
    assert torch.equal(got, rate)  # forward it is the real rate
    weigh = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]])
    (got * weigh).sum().backward()
    want_z, want_theta, want_b = torch.zeros(1, 2, 4), [0.0, 0.0], [0.0, 0.0]
    for c, (scale, shift) in enumerate(((0.5, 0.25), (2.0, -0.5))):
        for i, current in enumerate((-1.0, 0.125, 0.5, 9.0)):
            u = (current + 0.0625 + shift) / scale
            inside = 0 < u < most
            want_z[0, c, i] = weigh[0, c, i] if inside else 0.0
            want_b[c] += float(weigh[0, c, i]) if inside else 0.0
            # theta times N / T, and inside the range u theta does not change with theta.
            want_theta[c] += float(weigh[0, c, i] * (rate[0, c, i] / scale - (u if inside else 0.0)))
    assert torch.equal(z.grad, want_z) and torch.equal(other.grad, want_z)
    assert theta.grad.tolist() == pytest.approx(want_theta)
    sums = b.grad if rows is None else b.grad.sum(0)
    assert sums.tolist() == pytest.approx(want_b)
    assert rows is None or all(torch.equal(row, b.grad[0]) for row in b.grad)


def one_block(spiking, analog):
    """1x1 convolutions into one neuron layer, as a block under training that gets these values."""
    weight = dyadic(1, 3, 2, 1, 1, scale=8) + 0.25
    op = Neuron(torch.tensor([0.5, 1.0, 0.75]), 0.5, schedule="lagged", correction=dyadic(2, 3))
    nodes = (
        Node("conv", Conv2d(weight, torch.tensor([-0.25, 0.5, 0.25]), spiking=SpikingWeights(weight - 0.125)), ("x",)),
        Node("n", op, ("conv",)),
    )
    return training.Block(nodes, {"x": Pair(spiking, analog)}, len(spiking))


def test_the_loss_and_its_gradient_on_real_spikes_by_hand():
    spiking, analog = dyadic(4, 6, 5, 2, 3, 3, scale=8), dyadic(5, 5, 2, 3, 3, scale=8)
    block, chosen = one_block(spiking, analog), torch.tensor([0, 3, 4])
    loss = block._loss(chosen, None)
    loss.backward()
    loss = loss.detach()
    conv, neuron = (node.op for node in block.nodes)
    x, w = spiking[:, chosen].double(), conv.spiking.weight.double().flatten(1)
    shape, bias = (3, 1, 1), conv.bias.double().view(3, 1, 1)
    target = torch.einsum("oc,bchw->bohw", conv.weight.double().flatten(1), analog.double()) + bias
    scale = target.relu().pow(2).mean()  # over all images
    target = target[chosen].relu()
    theta, correction = neuron.threshold.double().view(shape), neuron.correction.double().view(shape)
    currents = torch.einsum("oc,sbchw->sbohw", w, x) + bias + correction
    v, fired = 0.5 * theta + currents[0], []
    for now in [*currents[1:], 0.0]:
        v = v + now
        fired.append((v >= theta).double())
        v = v - theta * fired[-1]
    rate = theta * torch.stack(fired).mean(0)
    assert float(loss) == pytest.approx(float(((rate - target) ** 2).mean() / scale), rel=1e-5)
    u = currents.mean(0) / theta
    inside = ((u > 0) & (u < 1)).double()
    down = 2 * (rate - target) / rate.numel() / scale
    grad_w = torch.einsum("bohw,bchw->oc", down * inside, x.mean(0))
    weight, (log_theta, b) = block.leaves["conv"][0], block.leaves["n"]
    assert torch.allclose(weight.grad.double().flatten(1), grad_w, atol=1e-6)
    assert inside.sum((0, 2, 3)).min() > 3  # of 27 in every channel
    assert torch.allclose(b.grad.double(), (down * inside).sum((0, 2, 3)), atol=1e-6)
    grad_theta = (down * (rate / theta - u * inside)).sum((0, 2, 3))
    assert torch.allclose(log_theta.grad.double(), grad_theta * theta.flatten(), atol=1e-6)


# ---- images mirrored and shifted ----


@pytest.mark.parametrize(("height", "width"), [(8, 16), (9, 7)])
def test_images_are_mirrored_and_shifted_by_up_to_an_eighth(height, width):
    given = torch.arange(1.0, 1 + 64 * 2 * height * width).view(64, 2, height, width)
    found, down, right = set(), height // 8, width // 8
    for image, got in zip(
        given,
        training.moved(given, training.moves(len(given), given.shape[-2:], torch.Generator().manual_seed(0))),
        strict=True,
    ):
        ways = []
        for top in range(-down, down + 1):
            for left in range(-right, right + 1):
                shifted = torch.zeros_like(image)
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + top < height and 0 <= x + left < width:
                            shifted[:, y, x] = image[:, y + top, x + left]
                ways += [(top, left, mirrored) for mirrored in (0, 1) if torch.equal(mirror(shifted, mirrored), got)]
        assert len(ways) == 1
        found.update(ways)
    assert {top for top, _, _ in found} == set(range(-down, down + 1))
    assert {left for _, left, _ in found} == set(range(-right, right + 1))
    assert {mirrored for *_, mirrored in found} == {0, 1}


def mirror(image, mirrored):
    return torch.stack([image[..., x] for x in reversed(range(image.shape[-1]))], -1) if mirrored else image


def test_the_whole_learns_what_the_source_says_about_the_varied_images(monkeypatch, given):
    before, seen, plain = prepared(given, "phased"), [], training.Block._entering

    def entering(self, chosen, moves):
        values, target = plain(self, chosen, moves)
        if len(self.nodes) == len(before.nodes):
            seen.append((moves is not None, chosen, values["input"], target))
        return values, target

    monkeypatch.setattr(training.Block, "_entering", entering)
    reconstruct(before, Context(given[1], STEPS), steps=2, joint=4)
    trying, steps = [True] * 2, [True] * 4
    assert [learning for learning, *_ in seen] == [*trying, False, *steps, False]
    for learning, chosen, images_in, target in seen:
        assert torch.allclose(target, before.run(images_in.analog), atol=1e-5)
        assert torch.equal(images_in.spiking[0], images_in.analog)
        same_images = torch.equal(images_in.analog, given[1].fitting[chosen])
        assert same_images != learning  # one is judged by the images as they are


# ---- blocks ----


def test_blocks_end_where_everything_passes_through_one_neuron_layer(given):
    graph = spiking(given)
    parts = [[node.name for node in part] for part in lockstep.blocks(graph)]
    assert [name for part in parts for name in part] == [node.name for node in graph.nodes]
    ends = [part[-1] for part in parts]
    assert ends == ["relu", "relu_1", "relu_2", "relu_3", "readout"]
    source = trace(randomized(CifarResNet(8, width=4)), images(2, 8))
    within = spiking((source, Calibration({node.name: 1.0 for node in source.nodes}, 100, 1, "data")))
    ends = [part[-1].name for part in lockstep.blocks(within)]
    assert ends == ["relu", "layer1.0.relu_1", "layer2.0.relu_1", "layer3.0.relu_1", "readout"]
    assert len(within.neurons) == 7  # those inside of a block end none


@pytest.mark.parametrize("name", ["lagged", "phased", "signed", "levels"])
def test_every_block_comes_closer_on_images_that_it_has_not_seen(monkeypatch, given, name):
    before = prepared(given, name)
    after = reconstruct(before, Context(given[1], STEPS), steps=40, joint=0)
    whole = reconstruct(before, Context(given[1], STEPS), steps=0, joint=60)
    fresh = images(48, 10, seed=77)
    want = activations(before, fresh)
    errors = []
    for graph in (before, after):
        trains, _ = recorded(monkeypatch, graph, fresh, STEPS, **({} if graph.windowed else {"chunk": STEPS}))
        apart = []
        for node in graph.neurons:
            rate = trains[node.name].float().mean(0) * node.op.threshold.view(-1, 1, 1)
            apart.append(float((rate - want[node.name]).pow(2).mean() / want[node.name].pow(2).mean()))
        errors.append(apart)
    assert all(a < 0.6 * b for b, a in zip(*errors, strict=True)), errors
    logits = [float((graph(fresh, STEPS) - before.run(fresh)).pow(2).mean()) for graph in (before, after, whole)]
    assert logits[1] < 0.5 * logits[0] and logits[2] < 0.5 * logits[0], logits


def test_what_the_source_is_made_of_stays(given):
    before, x = prepared(given, "lagged"), images(4, 10, seed=8)
    after = reconstruct(before, Context(given[1], STEPS), steps=20, joint=20)
    assert torch.equal(after.run(x), before.run(x)) and not torch.equal(after(x, STEPS), before(x, STEPS))
    learned = 0
    for old, new in zip(before.nodes, after.nodes, strict=True):
        assert (old.name, old.inputs) == (new.name, new.inputs)
        if isinstance(old.op, Conv2d | Linear):
            assert torch.equal(old.op.weight, new.op.weight) and torch.equal(old.op.bias, new.op.bias)
            assert not torch.equal(new.op.spiking.weight, old.op.weight) and not new.op.spiking.weight.requires_grad
            learned += 1
        if isinstance(old.op, Neuron):
            assert not torch.equal(old.op.threshold, new.op.threshold) and bool((new.op.threshold > 0).all())
            assert new.op.correction.shape == ((8,) if old.name == "relu" else (STEPS, 8))
            assert bool((new.op.correction != 0).all())
            assert not (new.op.threshold.requires_grad or new.op.correction.requires_grad)
            back = replace(new.op, threshold=old.op.threshold, correction=old.op.correction)
            assert vars(back) == vars(old.op)
    assert learned == 6


def test_what_is_no_better_on_the_images_kept_apart_stays_as_it_was(monkeypatch, given):
    for rate in ("WEIGHT", "CORRECTION", "THRESHOLD"):
        monkeypatch.setattr(training, rate, 30.0)  # learns nonsense
    before = prepared(given, "phased")
    after = reconstruct(before, Context(given[1], STEPS), steps=4, joint=4)
    assert same(before, after)
    names = ["relu", "relu_1", "relu_2", "relu_3", "readout", "all together"]
    want = tuple(ReconstructedBlock(name, 4, False) for name in names)
    assert after.provenance.reconstruction.blocks == want


def test_images_kept_apart_are_not_trained_on(monkeypatch, given):
    """One in eight: what it is changed to changes no step, only the decision."""
    seen, plain = [], training.Block._loss

    def loss(self, chosen, moves):
        seen.append((set(chosen.tolist()), torch.is_grad_enabled()))
        return plain(self, chosen, moves)

    monkeypatch.setattr(training.Block, "_loss", loss)
    reconstruct(prepared(given, "phased"), Context(given[1], STEPS), steps=9, joint=9)
    trained = set().union(*(chosen for chosen, learning in seen if learning))
    checked = set().union(*(chosen for chosen, learning in seen if not learning))
    assert checked == set(range(0, 64, 8)) and not trained & checked and len(trained) > 50
    assert sum(learning for _, learning in seen) == 5 * 9 + 9 + 2  # two to see how long a step takes


@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_images_do(given, count):
    graph, calibration = given
    calibration = replace(calibration, fitting=calibration.fitting[:count])
    before = fit_thresholds(spiking((graph, calibration)), Context(calibration, STEPS))
    assert torch.isfinite(reconstruct(before, Context(calibration, STEPS), **SHORT)(images(2, 10), STEPS)).all()


def test_one_threshold_per_layer_does(given):
    """Right after relu_to_neuron: a threshold for the layer, and no correction."""
    before = spiking(given, schedule="lagged")
    after = reconstruct(before, Context(given[1], STEPS), steps=30, joint=30)
    assert any(
        not torch.equal(a.op.threshold, b.op.threshold) for a, b in zip(after.neurons, before.neurons, strict=True)
    )
    fresh = images(16, 10, seed=78)
    errors = [float((graph(fresh, STEPS) - graph.run(fresh)).pow(2).mean()) for graph in (before, after)]
    assert errors[1] < errors[0]


def test_it_needs_images_and_neurons(given):
    graph, calibration = given
    assert reconstruct(graph, Context(calibration, STEPS)) is graph
    with pytest.raises(ConversionError, match=r"^reconstruct: got no calibration images"):
        reconstruct(spiking(given), Context(replace(calibration, fitting=None), STEPS))


# ---- signed networks, whose counts nearly depend on the total charge alone ----


@pytest.mark.parametrize(("name", "nearly"), [("lagged", False), ("phased", True), ("signed", True), ("levels", False)])
def test_which_networks_one_pass_describes(given, name, nearly):
    graph = prepared(given, name)
    assert lockstep.nearly_order_free(graph) == nearly
    assert lockstep.order_free(graph) == (name == "phased")
    assert not lockstep.nearly_order_free(Graph(graph.nodes[:1]))


def test_signed_networks_learn_in_one_pass_and_are_judged_by_their_spikes(monkeypatch, given):
    seen, plain = [], training.fire_mean

    def fire_mean(op, currents, timesteps):
        seen.append((len(currents), torch.is_grad_enabled()))
        return plain(op, currents, timesteps)

    monkeypatch.setattr(training, "fire_mean", fire_mean)
    before = prepared(given, "signed")
    reconstruct(before, Context(given[1], STEPS), **SHORT)
    layers = len(before.neurons)
    assert {steps for steps, _ in seen[: -2 * layers]} == {1}
    assert [steps for steps, _ in seen[-2 * layers :]] == [STEPS] * 2 * layers


@pytest.mark.parametrize("name", ["lagged", "phased", "signed"])
def test_images_that_do_not_fit_in_memory_are_all_learned_from(monkeypatch, given, name):
    """In parts, from files: the same steps on the same images, but for rounding."""
    before, learned, plain = prepared(given, name), [], training.Block._loss

    def loss(self, chosen, moves):
        learned.append((chosen.tolist(), torch.is_grad_enabled()))
        return plain(self, chosen, moves)

    monkeypatch.setattr(training.Block, "_loss", loss)
    made = []
    for room in (2**25, 5000):
        monkeypatch.setattr(module, "PART", room)
        monkeypatch.setattr(spill, "ROOM", room)
        made.append((reconstruct(before, Context(given[1], STEPS), steps=6, joint=6), learned))
        learned = []
    (whole, some), (parted, others) = made
    assert whole.provenance == parted.provenance
    assert whole.provenance.reconstruction.images == len(given[1].fitting) == 64
    for learning in (True, False):
        a, b = ([i for part, learns in seen if learns == learning for i in part] for seen in (some, others))
        assert a == b and max(len(part) for part, _ in others) < 32 == max(len(part) for part, _ in some)
    for a, b in zip(whole.neurons, parted.neurons, strict=True):
        torch.testing.assert_close(a.op.threshold, b.op.threshold, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.op.correction, b.op.correction, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("better", [False, True])
def test_a_signed_network_whose_spikes_come_no_closer_stays_as_it_was(given, better):
    before = prepared(given, "signed")
    after = changed(before, before.neurons[0].name, initial_potential=0.5 if better else -3.0)
    assert module._closer(before, after, given[1].fitting[:16], STEPS) is (after if better else before)


def test_a_reconstruction_that_was_not_taken_is_no_error(monkeypatch, given):
    monkeypatch.setattr(module, "_closer", lambda before, *_: before)
    recipe = RECIPES["signed"].reconstructed(**SHORT)
    plain, tried = (asked.apply(given[0], Context(given[1], STEPS)) for asked in (RECIPES["signed"], recipe))
    assert same(plain, tried) and tried.provenance.reconstruction.taken is False


# ---- bounded, and resumed ----


class Clock:
    """Goes on by a second with every gradient."""

    def __init__(self, monkeypatch):
        self.now, plain = 0.0, training.Block._backward

        def backward(block, *rest):
            self.now += 1.0
            return plain(block, *rest)

        monkeypatch.setattr(training.Block, "_backward", backward)
        for where in (module, training):
            monkeypatch.setattr(where, "time", self)

    def monotonic(self):
        return self.now


def parts_of(monkeypatch, before, context, **settings):
    """The network, and the steps that each part of it got, on a clock that counts these."""
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        after = reconstruct(before, context, **settings)
    said = after.provenance.reconstruction
    return after, [part.steps for part in said.blocks], clock.now, said


@pytest.mark.parametrize("blocks_done", [1, 2, 4])
def test_a_block_under_way_is_finished_and_the_others_stay_as_they_were(monkeypatch, given, blocks_done):
    """Whatever the time: it decides which parts are done, and nothing else."""
    before, context = prepared(given, "lagged"), Context(given[1], STEPS)
    ends = []
    for seconds in (
        4 * blocks_done - 3.5,
        4 * blocks_done - 0.5,
    ):  # shortly after the last one's start, and before its end
        after, steps, spent, said = parts_of(monkeypatch, before, context, steps=4, joint=6, minutes=seconds / 60)
        assert steps == [4] * blocks_done + [0] * (6 - blocks_done) and spent == 4 * blocks_done
        assert said.asked.total == 26 and len(said.blocks) == 6
        ends.append(after)
    whole = reconstruct(before, context, steps=4, joint=0)
    last = [block.block for block in said.blocks][blocks_done - 1]
    names = [node.name for node in before.nodes]
    for name in names:
        like = whole if names.index(name) <= names.index(last) else before
        assert same(*(replace(like, nodes=(graph[name],)) for graph in (ends[0], like))), name
    assert same(*ends)


@pytest.mark.parametrize(("seconds", "fitting"), [(23, 1), (25, 3), (28.5, 6), (29, 7), (60, 7)])
def test_all_together_get_the_steps_that_fit(monkeypatch, given, seconds, fitting):
    """Counted after 20 seconds of blocks and two of trying, and then made as if no more had been asked for."""
    before, context = prepared(given, "phased"), Context(given[1], STEPS)
    after, steps, spent, said = parts_of(monkeypatch, before, context, steps=4, joint=7, minutes=seconds / 60)
    assert steps == [4] * 5 + [fitting] and spent == 22 + fitting and said.asked.joint == 7
    assert same(after, reconstruct(before, context, steps=4, joint=fitting))


def test_with_time_enough_the_clock_changes_nothing(monkeypatch, given):
    """However long a machine takes from the start to the first step."""
    found = []
    for tick in (0.0, 1.0):
        clock = itertools.count(0.0, tick)
        for where in (module, training):
            monkeypatch.setattr(where, "time", SimpleNamespace(monotonic=clock.__next__))
        found.append(reconstruct(prepared(given, "lagged"), Context(given[1], STEPS), **SHORT))
    assert same(*found)


def test_no_time_at_all_changes_nothing(given):
    before = prepared(given, "phased")
    assert same(before, reconstruct(before, Context(given[1], STEPS), minutes=0.0))


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("block", [0, 2, 5])
@pytest.mark.parametrize("name", ["lagged", "phased"])
def test_after_an_interruption_the_same_comes_out(monkeypatch, tmp_path, given, name, block):
    """Bit for bit what an undisturbed call gives; finished blocks are not trained again. Block 5 is all together."""
    before, path = prepared(given, name), tmp_path / "net.snn.partial"
    undisturbed = reconstruct(before, Context(given[1], STEPS), **SHORT)
    trained, plain = [], training.Block.train

    def train(self, *rest):
        if len(trained) == block:
            raise Stopped
        trained.append(self)
        return plain(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(training.Block, "train", train)
        with pytest.raises(Stopped):
            reconstruct(before, Context(given[1], STEPS), resume=path, **SHORT)
    assert path.exists() == (block > 0) and len(trained) == block
    trained.append("no longer stopped")

    def count(self, *rest):
        trained.append(self)
        return plain(self, *rest)

    monkeypatch.setattr(training.Block, "train", count)
    again = reconstruct(before, Context(given[1], STEPS), resume=path, **SHORT)
    assert same(again, undisturbed) and again.provenance == undisturbed.provenance
    assert len(trained) == 1 + 6
    once_more = reconstruct(before, Context(given[1], STEPS), resume=path, **SHORT)  # all is there
    assert same(once_more, undisturbed) and len(trained) == 1 + 6


class Counted(progress.Progress[progress.T]):
    """A bar that notes what it is told."""

    made: ClassVar[list] = []

    def __init__(self, *rest, **named):
        super().__init__(*rest, **named)
        self.steps, self.parts, self.first = [], [], None
        self.made.append(self)

    def resume(self, done):
        super().resume(done)
        self.first = done

    def update(self, count=1):
        super().update(count)
        self.steps.append(count)

    def show(self, **figures):
        super().show(**figures)
        self.parts.append(figures["part"])


@pytest.mark.parametrize("minutes", [30.0, 0.0])  # which is over before the first
def test_the_bar_counts_steps(monkeypatch, tmp_path, given, minutes):
    """Those that there was no time for count as well: what is left is never more than what is to come."""
    monkeypatch.setattr(module, "Progress", Counted)
    monkeypatch.setattr(Counted, "made", [])
    path, before = tmp_path / "net.partial", prepared(given, "phased")
    for again in (False, True):
        first = 5 * SHORT["steps"] + SHORT["joint"] if again and minutes else 0
        reconstruct(before, Context(given[1], STEPS), resume=path, minutes=minutes, **SHORT)
        bar = Counted.made[-1]
        assert bar._total == 5 * SHORT["steps"] + SHORT["joint"] and bar.first == first
        assert bar.first + sum(bar.steps) == bar._total == bar._done
        assert bar.parts == ([f"{part}/6" for part in range(1, 7)] if minutes and not again else [])
    if minutes:
        assert Counted.made[0].steps.count(1) == 5 * SHORT["steps"] + SHORT["joint"]


def other_schedule(graph):
    return changed(graph, "relu_1", schedule="phased")


FOREIGN = {
    "images": (lambda graph: graph, {}, -1),
    "steps": (lambda graph: graph, {"steps": 4}, None),
    "joint": (lambda graph: graph, {"joint": 4}, None),
    "timesteps": (lambda graph: graph, {"timesteps": 5}, None),
    "another schedule": (other_schedule, {}, None),
    "another alphabet": (lambda graph: changed(graph, "relu_1", spikes=Signed()), {}, None),
    "another start": (lambda graph: changed(graph, "relu_1", initial_potential=0.25), {}, None),
    "another correction": (lambda graph: changed(graph, "relu_1", correction=torch.ones(8)), {}, None),
    "another weight": (lambda graph: changed(graph, "conv4", weight=torch.ones(8, 8, 3, 3)), {}, None),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_reconstruction_is_refused(tmp_path, given, name):
    change, settings, images = FOREIGN[name]
    calibration, path = given[1], tmp_path / "net.snn.partial"
    before = prepared(given, "lagged")
    reconstruct(before, Context(calibration, STEPS), resume=path, **SHORT)
    kept = path.read_bytes()
    calibration = replace(calibration, fitting=calibration.fitting[:images])
    with pytest.raises(InvalidArtifact, match=r"another network, other images or other settings") as caught:
        asked = {"timesteps": STEPS, **SHORT, **settings}
        reconstruct(change(before), Context(calibration, asked.pop("timesteps")), resume=path, **asked)
    assert str(caught.value).startswith(f"{path}: ") and path.read_bytes() == kept


@pytest.mark.parametrize("content", ["a finished network", "nonsense"])
def test_what_is_no_reconstruction_is_refused(tmp_path, given, content):
    before, path = prepared(given, "lagged"), tmp_path / "net.snn"
    if content == "nonsense":
        path.write_bytes(b"nonsense")
    else:
        save(before, path)
    with pytest.raises(InvalidArtifact, match=str(path)):
        reconstruct(before, Context(given[1], STEPS), resume=path, **SHORT)


# ---- with the recipes ----

FITTED = [name for name, recipe in RECIPES.items() if recipe.fits]


@pytest.mark.parametrize("name", FITTED)
def test_it_composes_with_every_recipe_that_fits(tmp_path, name):
    source, batches = randomized(CifarResNet(8, width=4, shortcut="B")), [images(40, 8, seed=s) for s in range(2)]
    recipe = RECIPES[name].reconstructed(resume=tmp_path / "partial", **SHORT)
    snn, plain = (convert(source, batches, each, timesteps=3) for each in (recipe, RECIPES[name]))
    x = images(6, 8, seed=9)
    assert torch.equal(snn.run(x), convert(source, batches, recipe, timesteps=3).run(x))
    assert torch.allclose(snn.run(x), source(x), rtol=1e-3, atol=1e-4)
    assert torch.isfinite(snn(x, 3)).all()
    assert snn.end_to_end_steps(3) == plain.end_to_end_steps(3) and snn.alphabet == plain.alphabet
    passes = snn.provenance.recipe.passes
    assert AppliedPass("reconstruct", extra={"timesteps": 3, **SHORT}) in passes  # and not where it was kept
    save(snn, tmp_path / "net.snn")
    again = load(tmp_path / "net.snn")
    assert torch.equal(again(x, 3), snn(x, 3)) and torch.equal(again.run(x), snn.run(x))


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(FITTED)))
def test_a_recipe_that_does_not_fit_has_nothing_to_reconstruct_for(name):
    fitted = (
        "calibrated, calibrated-constant, calibrated-currents, calibrated-fission, calibrated-lagged, phased, signed"
    )
    with pytest.raises(ConversionError, match=rf"^recipe {name}: .*{fitted}"):
        RECIPES[name].reconstructed()


def test_flat_networks_reconstruct_too():
    """A neuron behind the classifier's features: [B, C] without space."""
    nodes = (
        Node("input", Input(), ()),
        Node("flat", Flatten(), ("input",)),
        Node("first", Linear(dyadic(1, 6, 12), dyadic(2, 6)), ("flat",)),
        Node("a", Neuron(torch.tensor(1.0), 0.5), ("first",)),
        Node("second", Linear(dyadic(3, 5, 6), dyadic(4, 5)), ("a",)),
        Node("b", Neuron(torch.tensor(1.0), 0.5, schedule="lagged"), ("second",)),
        Node("last", Linear(dyadic(5, 3, 5), None), ("b",)),
    )
    x = dyadic(6, 32, 3, 2, 2, scale=8)
    graph, calibration = Graph(nodes).validate(), Calibration({}, 100, 32, "data", fitting=x)
    graph = calibrate_neurons(fit_thresholds(graph, Context(calibration, 4)), Context(calibration, 4))
    after = reconstruct(graph, Context(calibration, 4), steps=20, joint=20)
    assert torch.equal(after.run(x), graph.run(x)) and torch.isfinite(after["b"].op.correction).all()
    assert after["b"].op.correction.shape == (5,) and lockstep.blocks(after)[-1][-1].name == "last"
