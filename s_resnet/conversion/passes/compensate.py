"""Pass: compensate for discretization by one factor on every synaptic weight."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import SYNAPSES, Node, SpikingWeights
from ...graph.provenance import Compensation, TriedFactor
from ...runtime.progress import Progress
from ...simulation.simulate import simulate
from ..context import Context
from ..portions import analog_parts, spiking_images

EVALUATIONS = 6


def compensate(graph: Graph, context: Context) -> Graph:
    """Set ``gain = c`` on every synapse, shortcut synapses included; biases and the analog run stay as they are.

    A neuron's rate is its current rounded to the grid 1/T, and what that loses adds up over layers::

        r_l(T) = W r_{l-1}(T) + b - (V_l(T) - V_l(0)) / T

    A factor c slightly above 1 makes up for it. V_l(T) is on average half a threshold, so the expected loss of every
    active neuron is ``1/2 - v(0)`` grid steps: half a step from v(0) = 0, and nothing from v(0) = 1/2. With it
    ``c = 1 + (1 - 2 v(0)) P(x > 0) lambda / (2 T E[ReLU(x)])``, taken from the median layer on calibration images, or
    from the mean over layers with BatchNorm statistics. Without either c stays 1.

    With held-out images c is searched for the least mean distance of the answers from the analog logits, relative to
    these; labels are not used. The search starts at c = 1, which is a candidate, and half-way to the expected c
    (``1 + 2 / T`` if that is 1), doubles the step while the error falls, and closes the bracket by parabolas through
    its three points: at most six evaluations, on all held-out images. Among the factors whose error is within one
    standard error (over images) of the least, the one nearest to the expected c is chosen, so that a few images cannot
    lead far away from it. Curve and range go into the provenance.

    Args:
        graph: a network with its readout.
        context: the expected rounding, held-out images for the search, and T.

    Raises:
        ConversionError: there is no T.

    Source: arXiv:1805.01352, "Compensation of Propagation Error"; which weights are scaled is known from the released
    code, the search is ours (the paper's is not published).
    """
    synapses = [node for node in graph.nodes if isinstance(node.op, SYNAPSES)]
    if not synapses:
        return graph
    calibration, timesteps = context.calibration, context.fitting_steps("compensate")
    start = next((node.op.initial_potential for node in graph.nodes if isinstance(node.op, Neuron)), 0.0)
    expected = 1.0 + (1.0 - 2.0 * start) * (calibration.rounding or 0.0) / timesteps
    if calibration.samples is None:
        reason = "no calibration images" if calibration.rounding is None else "expected rounding"
        said = Compensation(expected, timesteps, curve=(), reason=reason)
        return _with_gain(graph, expected).with_provenance(compensation=said)
    objective = _Objective(graph, calibration.samples.images, timesteps, context.progress)
    _search(objective, (expected - 1.0) / 2 if expected > 1.0 else 2.0 / timesteps)
    best = objective.nearest(expected)
    curve = tuple(TriedFactor(factor, objective(factor)) for factor in sorted(objective.errors))
    said = Compensation(
        factor=best,
        timesteps=timesteps,
        expected=expected,
        images=len(calibration.samples.images),
        criterion="logit error",
        range=(curve[0].factor, curve[-1].factor),
        curve=curve,
    )
    return _with_gain(graph, best).with_provenance(compensation=said)


def _with_gain(graph: Graph, gain: float) -> Graph:
    def scaled(node: Node) -> Node:
        op = node.op
        if not isinstance(op, SYNAPSES):
            return node
        return replace(node, op=replace(op, spiking=replace(op.spiking or SpikingWeights(), gain=gain)))

    return replace(graph, nodes=tuple(scaled(node) for node in graph.nodes))


class _Objective:
    """The logit error of a factor, image by image; each factor is evaluated once."""

    def __init__(self, graph: Graph, images: Tensor, timesteps: int, progress: bool) -> None:
        self.graph, self.images, self.timesteps = graph, images, timesteps
        self.logits = torch.cat([graph.run(part) for part in analog_parts(graph, images, "compensate")])
        self.errors: dict[float, Tensor] = {}
        self.bar = Progress[None](total=EVALUATIONS, desc="compensate", unit="factor", shown=progress)

    def __call__(self, factor: float) -> float:
        if factor not in self.errors:
            graph = _with_gain(self.graph, factor)
            parts = torch.split(self.images, spiking_images(graph, self.images, "compensate"))
            answer = torch.cat([simulate(graph, part, self.timesteps).outputs[-1] for part in parts])
            apart = (answer - self.logits).abs().mean(1).double()
            self.errors[factor] = apart / self.logits.abs().mean().clamp_min(1e-30)
            self.bar.update()
        return float(self.errors[factor].mean())

    @property
    def best(self) -> float:
        """The factor with the least error; among equal ones the smallest."""
        return min(sorted(self.errors), key=self)

    def nearest(self, expected: float) -> float:
        """The factor nearest to ``expected`` among those within one standard error of the best."""
        least = self.errors[self.best]

        def as_good(factor: float) -> bool:
            worse = self.errors[factor] - least
            return len(worse) == 1 or float(worse.mean()) <= float(worse.std()) / len(worse) ** 0.5

        return min(filter(as_good, self.errors), key=lambda factor: (abs(factor - expected), factor))


def _search(objective: _Objective, step: float) -> None:
    """Bracket the least error: 1 and up, doubling the step, then parabolas."""
    points = [1.0, 1.0 + step]
    with objective.bar:
        while objective(points[-1]) < objective(points[-2]) and len(objective.errors) < EVALUATIONS - 1:
            step *= 2
            points.append(points[-1] + step)
        while len(objective.errors) < EVALUATIONS:
            factor = _vertex(objective)
            # A factor this close changes the input of a neuron by less than an eighth of a spike in T steps.
            if min(abs(factor - tried) for tried in objective.errors) < 0.125 / objective.timesteps:
                break
            objective(factor)


def _vertex(objective: _Objective) -> float:
    """The next factor to try: beside the best one, where the parabola through the errors has its minimum."""
    tried = sorted(objective.errors)
    index = tried.index(objective.best)
    if index == 0:
        return round((tried[0] + tried[1]) / 2, 5)
    if index == len(tried) - 1:
        return round(2 * tried[-1] - tried[-2], 5)
    a, b, c = tried[index - 1 : index + 2]
    fa, fb, fc = (objective(x) for x in (a, b, c))
    numerator = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    denominator = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    vertex = b if denominator == 0 else b - numerator / (2 * denominator)
    if not a < vertex < c or vertex == b:
        vertex = (a + b) / 2 if b - a > c - b else (b + c) / 2
    return round(vertex, 5)
