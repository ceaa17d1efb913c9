"""Run an exported integer network with numpy alone, step by step, as a microcontroller would.

python examples/microcontroller.py

Only ``make`` needs S-ResNet. The rest keeps one int32 membrane per neuron, adds int8 weights and compares with a
threshold; only the answer is a real number. docs/reference/npz.md lists every field of the file.
"""

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
TIMESTEPS = 16


def make(path: str) -> tuple[Array, Array, int]:
    """Write a network of whole numbers that knows digits; return an image, the answer to expect, and its label."""
    import s_resnet

    data = s_resnet.data.open_data("digits", "calibration")
    s_resnet.train("cifar_resnet8", data, "ann.pt", s_resnet.Training(epochs=6, width=8))
    model = s_resnet.load_checkpoint("ann.pt").model
    chosen, how = s_resnet.data.choose(data, 256), s_resnet.data.preprocessing_for(8)
    loader = s_resnet.data.ImageLoader(data, chosen, how, batch_size=64)

    recipe = s_resnet.RECIPES["calibrated-constant"].at(TIMESTEPS).with_weights("int8")
    snn = s_resnet.convert(model, loader, recipe)
    s_resnet.export.export_npz(snn, path)
    images, labels = next(iter(loader))
    return images[0].numpy(), snn(images[:1], TIMESTEPS)[0].numpy(), int(labels[0])


def convolve(x: Array, weight: Array, stride: list[int], padding: list[int]) -> Array:
    """``[C, H, W]`` to ``[C_out, h, w]``: sums of whole numbers."""
    x = np.pad(x, ((0, 0), *((p, p) for p in padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2))
    return np.einsum("chwij,ocij->ohw", windows[:, :: stride[0], :: stride[1]], weight.astype(np.int32))


def fire(v: Array, current: Array, threshold: Array) -> tuple[Array, Array]:
    """Integrate, send a spike where the threshold is reached, and subtract it there."""
    v = v + current
    spikes = (v >= threshold).astype(np.int32)
    return spikes, v - threshold * spikes


def by_channel(value: Array) -> Array:
    return value.reshape(-1, 1, 1)


def steps(path: str, image: Array, count: int) -> Iterator[tuple[int, Array]]:
    """The spikes of all neurons in each step, and the mean answer so far."""
    file = np.load(path, allow_pickle=False)
    nodes = json.loads(bytes(file["graph"]))["nodes"]
    membranes: dict[str, Array] = {}
    answer: Array = np.zeros(1)
    for step in range(count):
        values: dict[str, Array] = {}
        spikes = 0
        for node in nodes:
            s, name = node["settings"], node["name"]
            a = {field: file[f"{name}/{field}"] for field in node["arrays"]}
            x = sum(values[i] for i in node["inputs"]) if node["inputs"] else image
            match node["op"]:
                case "Input":
                    x = np.clip(np.round(s["grid"] * x), -8 * s["grid"], 8 * s["grid"]).astype(np.int32)
                case "Conv2d":
                    x = convolve(x, a["weight"], s["stride"], s["padding"])
                    x = np.round(x / s["grid"]).astype(np.int32) if s["grid"] else x  # a shift, of a real image alone
                    x = x + by_channel(a["bias"]) if "bias" in a else x
                case "Scale":
                    x = x * by_channel(a["weight"])
                case "Neuron":
                    v = membranes.get(name, np.broadcast_to(by_channel(a["v0"]), x.shape))
                    x, membranes[name] = fire(v, x + by_channel(a["correction"]), by_channel(a["threshold"]))
                    spikes += int(x.sum())
                case "Slice":
                    x = x[tuple(slice(*part) for part in s["slices"])]
                case "Pad":
                    x = np.pad(x, s["padding"])
                case "AdaptiveAvgPool2d":
                    x = x.mean((1, 2), dtype=np.float32)
                case "Linear":
                    x = s["weight_step"] * (a["weight"] @ x) + a["bias"]
                case "Readout":
                    answer = (step * answer + a["scale"] * x + a.get("correction", 0)) / (step + 1)
            values[name] = x
        yield spikes, answer


def main() -> None:
    image, expected, label = make("network.npz")
    print(f"an image of a {label}")
    for step, (spikes, answer) in enumerate(steps("network.npz", image, TIMESTEPS), 1):
        print(f"step {step:2}: {spikes:4} spikes, class {answer.argmax()}")
    print(f"largest difference from S-ResNet's answer: {np.abs(answer - expected).max():.1e}")


if __name__ == "__main__":
    main()
