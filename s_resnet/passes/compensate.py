"""Pass: the compensation for discretization, one factor on every synaptic weight."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from tqdm import tqdm

from ..calibrate import Calibration, Samples
from ..graph import Graph
from ..ops import SYNAPSES, Conv2d, Node
from ..simulate import simulate

EVALUATIONS = 6
# Multiply-accumulates that a whole search may cost: about a minute on two cores.
BUDGET = 3e12
FEWEST_IMAGES = 8


def compensate(graph: Graph, calibration: Calibration, timesteps: int = 350, progress: bool = False) -> Graph:
    """Set ``gain = c`` on every synapse, shortcut synapses included; biases and the analog run stay as they are.

    A neuron's rate is its current rounded down to the grid 1/T, and layer after layer the loss adds up::

        r_l(T) = W r_{l-1}(T) + b - (V_l(T) - V_l(0)) / T

    A factor c a little above 1 makes up for it. It is searched on the held-out calibration images for the network's
    own accuracy (without labels: its agreement with the analog run); equal ones are told apart by the mean distance of
    the answers from the analog logits. The search starts at c = 1, which may win, doubles its step 2/T while the score
    rises, and closes the bracket by parabolas through its three points: at most six evaluations, on as many images as
    the budget of 3e12 multiply-accumulates allows (at least 8). Curve and range go into the provenance.

    Without held-out images c is what the BatchNorm statistics imply: an active neuron loses half a grid step of its
    rate, ``c = 1 + mean over layers of P(x > 0) lambda / (2 T E[ReLU(x)])``. Without those either it stays 1.

    Source: arXiv:1805.01352, "Compensation of Propagation Error"; which weights are scaled is known from the released
    code, the search is ours (the paper's is not published).
    """
    synapses = [node for node in graph.nodes if isinstance(node.op, SYNAPSES)]
    if not synapses:
        return graph
    samples = calibration.samples
    if samples is None:
        known = calibration.rounding is not None
        factor = 1.0 + (calibration.rounding or 0.0) / timesteps
        reason = "expected rounding, from the BatchNorm statistics" if known else "no calibration images"
        return _with_gain(graph, factor).with_provenance(
            compensation={"factor": factor, "timesteps": timesteps, "curve": [], "reason": reason}
        )
    samples = _affordable(graph, samples, timesteps)
    objective = _Objective(graph, samples, timesteps, progress)
    best = _search(objective, 2.0 / timesteps)
    curve = [
        {"factor": factor, "accuracy": score[0], "logit_error": -score[1]}
        for factor, score in sorted(objective.scores.items())
    ]
    return _with_gain(graph, best).with_provenance(
        compensation={
            "factor": best,
            "timesteps": timesteps,
            "images": len(samples.images),
            "criterion": "agreement" if samples.labels is None else "accuracy",
            "range": [curve[0]["factor"], curve[-1]["factor"]],
            "curve": curve,
        }
    )


def _with_gain(graph: Graph, gain: float) -> Graph:
    def scaled(node: Node) -> Node:
        return replace(node, op=replace(node.op, gain=gain)) if isinstance(node.op, SYNAPSES) else node

    return replace(graph, nodes=tuple(scaled(node) for node in graph.nodes))


def _affordable(graph: Graph, samples: Samples, timesteps: int) -> Samples:
    """As many of the images as the budget allows."""
    per_step = 0
    for name, value in graph.activations(samples.images[:1]):
        op = graph[name].op
        if isinstance(op, Conv2d):
            per_step += value.numel() * op.weight[0].numel()
    count = max(FEWEST_IMAGES, int(BUDGET / EVALUATIONS / (timesteps * max(1, per_step))))
    return Samples(samples.images[:count], None if samples.labels is None else samples.labels[:count])


Score = tuple[float, float]  # accuracy or agreement, minus the logit error: larger is better


class _Objective:
    """The score of a factor, each computed once."""

    def __init__(self, graph: Graph, samples: Samples, timesteps: int, progress: bool) -> None:
        self.graph, self.samples, self.timesteps = graph, samples, timesteps
        self.logits = graph.run(samples.images)
        self.target: Tensor = self.logits.argmax(1) if samples.labels is None else samples.labels
        self.scores: dict[float, Score] = {}
        self.bar = tqdm(
            total=EVALUATIONS,
            desc="compensate",
            unit="factor",
            leave=False,
            disable=None if progress else True,
        )

    def __call__(self, factor: float) -> Score:
        if factor not in self.scores:
            answer = simulate(_with_gain(self.graph, factor), self.samples.images, self.timesteps).outputs[-1]
            accuracy = (answer.argmax(1) == self.target).double().mean()
            error = (answer - self.logits).abs().mean() / self.logits.abs().mean().clamp_min(1e-30)
            self.scores[factor] = (float(accuracy), -float(error))
            self.bar.update()
        return self.scores[factor]


def _search(objective: _Objective, step: float) -> float:
    """The best factor found by bracketing: 1 and up, doubling the step, then parabolas."""
    points = [1.0, 1.0 + step]
    with objective.bar:
        while objective(points[-1]) > objective(points[-2]) and len(objective.scores) < EVALUATIONS - 1:
            step *= 2
            points.append(points[-1] + step)
        while len(objective.scores) < EVALUATIONS:
            factor = _vertex(objective)
            # A factor this close changes the input of a neuron by less than an eighth of a spike in T steps.
            if min(abs(factor - tried) for tried in objective.scores) < 0.125 / objective.timesteps:
                break
            objective(factor)
    return max(sorted(objective.scores), key=lambda factor: objective.scores[factor])


def _vertex(objective: _Objective) -> float:
    """The next factor to try: beside the best one, where the parabola through the logit errors has its minimum."""
    tried = sorted(objective.scores)
    index = tried.index(max(tried, key=lambda factor: objective.scores[factor]))
    if index == 0:
        return round((tried[0] + tried[1]) / 2, 5)
    if index == len(tried) - 1:
        return round(2 * tried[-1] - tried[-2], 5)
    a, b, c = tried[index - 1 : index + 2]
    fa, fb, fc = (-objective.scores[x][1] for x in (a, b, c))
    numerator = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    denominator = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    vertex = b if denominator == 0 else b - numerator / (2 * denominator)
    if not a < vertex < c or vertex == b:
        vertex = (a + b) / 2 if b - a > c - b else (b + c) / 2
    return round(vertex, 5)
