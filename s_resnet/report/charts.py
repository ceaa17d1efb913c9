"""The charts of the page, by matplotlib, as SVG. Colors are Okabe and Ito's, which color-blind people tell apart."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BackendUnavailable, message, printable
from ..simulation.record import Trace
from .format import count
from .network_report import NetworkReport, Networks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS, MARKERS, STYLES = ("#0072B2", "#D55E00"), ("o", "s"), ("--", ":")  # of networks
PARTS = {  # of errors: color, marker
    "unevenness": ("#D55E00", "^"),
    "quantization": ("#0072B2", "o"),
    "clipping": ("#009E73", "s"),
    "inherited": ("#767676", "D"),
}
COSTS = {"synapses": ("#0072B2", ""), "neurons": ("#E69F00", "//"), "memory": ("#BBBBBB", "..")}
DORMANT = "#767676"
TAKEN_BACK = "#1b1f24"
LOIHI = "SNN, Loihi-like"
WIDTH = 5.2  # inches: on a narrow screen letters keep their size
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # letters of the reader's system
    "svg.hashsalt": "s-resnet",  # the same drawing for the same figures
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.35",
    "path.simplify": False,
}


@dataclass(frozen=True)
class Picture:
    """A drawing in SVG, a description for readers who cannot see it, and its caption."""

    svg: bytes
    alt: str
    caption: str

    @property
    def src(self) -> str:
        """The drawing inside the page."""
        return data_uri("image/svg+xml", self.svg)


def data_uri(kind: str, content: bytes) -> str:
    """A file embedded in the page, as a URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def need_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        BackendUnavailable: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        remedy = "Run: pip install matplotlib"
        raise BackendUnavailable(message("report", "", "no matplotlib", "it for the pictures", remedy)) from error


@contextmanager
def _drawing(height: float, rows: int = 1, ratios: Sequence[float] | None = None) -> Iterator[tuple[Figure, Any, Any]]:
    """A figure, its axes, and where its SVG goes."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **SETTINGS}
    with matplotlib.rc_context(settings):
        picture = Figure(figsize=(WIDTH, height), layout="constrained")
        yield picture, picture.subplots(rows, 1, height_ratios=ratios), file
        picture.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def _svg(file: io.BytesIO) -> bytes:
    """The drawing without the reference to its document type."""
    content = file.getvalue()
    return content[content.index(b"<svg") :]


def over_time(networks: Networks, measure: str, title: str, ann: bool) -> bytes:
    """A share of the images over T with its interval; ``ann`` draws that of a source network as a line."""
    with _drawing(3.3) as (_, axes, file):
        every: set[int] = set()
        for net, color, marker, style in zip(networks, COLORS, MARKERS, STYLES, strict=False):
            rows = net.report.snn
            steps = [row.timesteps for row in rows]
            shares = [getattr(row, measure) for row in rows]
            low, high = zip(*(net.interval(share) for share in shares), strict=True)
            every.update(steps)
            if ann and net.report.ann is not None:
                line = net.report.ann[measure]
                axes.axhline(100 * line, color=color if len(networks) > 1 else "0.25", ls=style, lw=1.2,
                             label=_whose(net, networks, "ANN"))  # fmt: skip
            axes.fill_between(steps, _percent(low), _percent(high), color=color, alpha=0.18, lw=0)
            axes.plot(steps, _percent(shares), color=color, marker=marker, label=_whose(net, networks, "SNN"))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(every), [str(step) for step in sorted(every)])
        axes.minorticks_off()
        axes.set_ylim(-2, 102)
        axes.set(xlabel="time steps T", ylabel=f"{title} (%)")
        axes.grid(alpha=0.25)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc="lower right", frameon=False)
    return _svg(file)


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _whose(net: NetworkReport, networks: Networks, what: str) -> str:
    return f"{_short(net.network)}, {what}" if len(networks) > 1 else what


def _short(name: str, most: int = 28) -> str:
    """A name short enough, without characters that matplotlib would read as mathematics."""
    name = name if len(name) <= most else f"{name[: most // 2]}\N{HORIZONTAL ELLIPSIS}{name[1 - most // 2 :]}"
    return printable(name).replace("$", r"\$")


def rates(networks: Networks) -> bytes:
    """Firing rates layer by layer, the first at the top; networks with different layers follow one another."""
    shown = [net for net in networks if net.verification]
    unit = emitted_unit(shown)
    return _by_layer(shown, same_layers(shown), f"{unit} per neuron and step", _draw_rates)


def emitted_unit(networks: Networks) -> str:
    """What firing rates of these networks count."""
    return "spikes" if {net.rival.unit for net in networks} == {"spikes"} else "thresholds emitted"


def errors(net: NetworkReport, largest: float) -> bytes:
    """The parts of one network's errors layer by layer, up to a ``largest`` that several drawings share."""
    return _by_layer([net], False, "error relative to the ANN's activations (%)", _draw_errors, 100 * largest)


def dormant(net: NetworkReport) -> bytes:
    """The share of dormant neurons of a directly trained network, layer by layer."""
    return _by_layer([net], False, "dormant neurons (%)", _draw_dormant, 100.0)


def same_layers(networks: Networks) -> bool:
    """Whether the networks have layers of the same names."""
    return len({tuple(_names(net)) for net in networks}) == 1


def _names(net: NetworkReport) -> list[str]:
    return [layer.name for layer in net.verification.layers] if net.verification else []


def _by_layer(
    networks: Networks,
    together: bool,
    label: str,
    draw: Callable[[Axes, NetworkReport, Networks], None],
    largest: float | None = None,
) -> bytes:
    names = [_names(net) for net in networks[: 1 if together else None]]
    heights = [len(part) for part in names]
    with _drawing(1.1 + 0.19 * sum(heights), len(names), heights) as (_, parts, file):
        panels = parts.flat if len(names) > 1 else [parts]
        for index, (axes, layers) in enumerate(zip(panels, names, strict=True)):
            for net in networks if together else [networks[index]]:
                draw(axes, net, networks)
            axes.set_yticks(range(len(layers)), [_short(name) for name in layers], fontsize=8)
            axes.set_ylim(len(layers) - 0.4, -0.6)
            axes.set_xlim(*((0, None) if largest is None else (-0.02 * largest, 1.05 * largest)))
            axes.set_xlabel(label)
            axes.grid(alpha=0.25)
            if draw is _draw_errors or (draw is _draw_rates and len(networks) > 1):
                axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=8)
    return _svg(file)


def _draw_rates(axes: Axes, net: NetworkReport, networks: Networks) -> None:
    assert net.verification is not None
    index = networks.index(net)
    layers = net.verification.layers
    offset = (index - (len(networks) - 1) / 2) * 0.3 if same_layers(networks) else 0.0
    places = [place + offset for place in range(len(layers))]
    found = [layer.rate for layer in layers]
    axes.hlines(places, 0, found, color=COLORS[index], lw=1.5, alpha=0.5)
    axes.plot(found, places, MARKERS[index], ms=5, color=COLORS[index], label=_whose(net, networks, "SNN"))


def _draw_dormant(axes: Axes, net: NetworkReport, networks: Networks) -> None:
    assert net.verification is not None
    shares = [100 * (layer.dormant or 0.0) for layer in net.verification.layers]
    axes.hlines(range(len(shares)), 0, shares, color=DORMANT, lw=1.5, alpha=0.5)
    axes.plot(shares, range(len(shares)), "D", ms=5, color=DORMANT)


def _draw_errors(axes: Axes, net: NetworkReport, networks: Networks) -> None:
    assert net.verification is not None
    layers = net.verification.layers
    errors = [layer.errors or {} for layer in layers]
    for place in range(0, len(layers), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.95", lw=0)
    for part, (color, marker) in PARTS.items():
        values = [100 * each[part] for each in errors]
        finite = [(value, place) for place, value in enumerate(values) if math.isfinite(value)]
        axes.plot(*zip(*finite, strict=True), marker, color=color, ms=4.5, label=part) if finite else None
    total = [100 * each["total"] for each in errors]
    axes.plot(total, range(len(layers)), color="0.1", lw=1.2, label="total")


def energies(networks: Networks) -> bytes:
    """Energy per image, spiking beside its rivals, in microjoules."""
    shown = [net for net in networks if net.energy]
    bars = [(net, name, cost) for net in shown for name, cost in costs(net)]
    with _drawing(0.9 + 0.26 * len(bars) + 0.2 * len(shown)) as (_, axes, file):
        labels, places, place = [], [], 0.0
        for index, (net, name, cost) in enumerate(bars):
            if index and net is not bars[index - 1][0]:
                place += 0.7
            places.append(place)
            labels.append(_whose(net, shown, name) if len(shown) > 1 else name)
            left = 0.0
            for part, (color, hatch) in COSTS.items():
                value = 1e6 * getattr(cost, part)
                axes.barh(place, value, left=left, color=color, hatch=hatch, edgecolor="white", lw=0.5, height=0.75,
                          label=part if index == 0 else None)  # fmt: skip
                left += value
            axes.annotate(f" {count(left)}", (left, place), va="center", fontsize=8)
            place += 1
        axes.set_yticks(places, labels, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("energy per image (µJ), estimate")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, fontsize=8)
    return _svg(file)


def costs(net: NetworkReport) -> list[tuple[str, Any]]:
    """The costs that are compared, by the names that page and chart use."""
    found = net.energy
    if found is None:
        return []
    ann = net.rival.short
    return [
        ("SNN, float32", found.snn_float32),
        (f"{ann}, float32", found.ann_float32),
        ("SNN, 8-bit weights", found.snn_int8),
        (f"{ann}, 8/{found.activation_bits}-bit", found.ann_int8),
        (LOIHI, found.snn_loihi),
    ]


def trace(found: Trace, color: str) -> bytes:
    """The raster of a layer's recorded neurons, and below it the membranes of three of them, in its window."""
    three = shown(found)
    rows = 1 if found.membrane is None else 1 + len(three)
    with _drawing(1.9 + 0.55 * (rows - 1), rows, [2.6, *[1] * (rows - 1)]) as (_, parts, file):
        panels = list(parts.flat) if rows > 1 else [parts]
        _draw_raster(panels[0], found, color)
        for axes, row in zip(panels[1:], three, strict=False):
            assert found.membrane is not None
            steps = torch.arange(len(found.membrane)) + found.begins + 1
            axes.plot(steps, found.membrane[:, row], color=color, lw=1)
            axes.axhline(1, color="0.25", ls="--", lw=0.8)
            axes.set_ylabel(f"#{row + 1}", rotation=0, ha="right", va="center")
            axes.grid(alpha=0.2)
            axes.locator_params(axis="y", nbins=3)
        for axes in panels:
            axes.set_xlim(found.begins, found.begins + found.lag + len(found.spikes) + 1)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.tick_params(labelbottom=axes is panels[-1])
        panels[-1].set_xlabel("step, counted from the first input")
    return _svg(file)


def shown(found: Trace) -> list[int]:
    """The rows whose membranes are drawn: the most active neuron, a middling one, the least active that fires."""
    firing = int((found.spikes != 0).any(0).sum())
    return sorted({0, max(0, firing // 2), max(0, firing - 1)})


def _draw_raster(axes: Axes, found: Trace, color: str) -> None:
    most = max(1.0, float(found.spikes.abs().max()))
    for sign, tint in ((1, color), (-1, TAKEN_BACK)):
        across: list[float] = []
        up: list[float] = []
        for step, row in (sign * found.spikes > 0).nonzero().tolist():
            half = 0.42 * abs(float(found.spikes[step, row])) / most
            across += [found.begins + found.lag + step + 1] * 2 + [math.nan]
            up += [row + 1 - half, row + 1 + half, math.nan]
        axes.plot(across, up, color=tint, lw=1.3, solid_capstyle="butt", label="taken back" if sign < 0 else "emitted")
    if bool((found.spikes < 0).any()):
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=8)
    axes.set_ylim(found.spikes.shape[1] + 0.7, 0.3)
    axes.set_ylabel("neuron #")
