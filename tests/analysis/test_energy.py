"""Energy against sums by hand, and the constants people may bring."""

import dataclasses
import json
import math

import pytest

from s_resnet.analysis import Constants, LayerOperations, Operations, SourceOperations, Traffic, energy, load_constants
from s_resnet.errors import InvalidData

CONSTANTS = Constants()
PJ = 1e-12
CACHE_8KB, CACHE_32KB, CACHE_1MB, DRAM = 10 / 8, 20 / 8, 100 / 8, 1300 / 8  # pJ per byte

# A stem of 100 MACs, a convolution of 4000, neurons: figures that do not fit together, so that none hides another.
STEM = LayerOperations(
    *("stem", "Conv2d", 48, 1000, 0, 10_000, 0, 0, 100, 0, 7),
    Traffic(weight_reads=100, value_reads=100, value_writes=1000),
    SourceOperations(100, 120, 9, 100, 0, True),
)
CONV = LayerOperations(
    *("conv", "Conv2d", 4000, 3000, 0, 2500, 0, 9000, 30, 0, 0),
    Traffic(weight_reads=9030, sum_reads=9030, sum_writes=8000, value_reads=30, spike_bits_read=640),
    SourceOperations(4000, 4400, 0, 4000, 0),
)
NEURON = LayerOperations(
    *("relu", "Neuron", 3000, 3000, 6000, 0, 50, 20, 0, 500, 600),
    Traffic(value_reads=400, state_reads=1000, state_writes=900, sum_reads=5, spike_bits_written=160),
    SourceOperations(additions=3000, value_reads=70, value_writes=3000),
)


def operations(timesteps=4, most=1, coding="direct"):
    return Operations(timesteps, 8, coding, "binary", most, 48, 4, (STEM, CONV, NEURON))


def test_arithmetic_by_hand():
    e = energy(operations())
    assert e.snn_float32.synapses == pytest.approx((9020 * 0.9 + 130 * 4.6) * PJ)
    assert e.snn_float32.neurons == pytest.approx((500 + 607) * 0.9 * PJ)
    assert e.ann_float32.synapses == pytest.approx(4100 * 4.6 * PJ)
    assert e.ann_float32.neurons == pytest.approx(3009 * 0.9 * PJ)
    assert e.snn_int8.synapses == pytest.approx((9020 * 0.1 + 130 * 0.3) * PJ)
    assert e.snn_int8.neurons == pytest.approx((500 + 607) * 0.1 * PJ)
    # 4 steps say 5 values, which are 3 bits: 0.2 * 3 / 8 for a product; the images have 8.
    assert e.activation_bits == 3
    assert e.ann_int8.synapses == pytest.approx((4000 * (0.075 + 0.1) + 100 * (0.2 + 0.1)) * PJ)
    assert e.ann_int8.neurons == pytest.approx(3009 * 0.1 * PJ)
    assert e.snn_loihi.synapses == pytest.approx(((9020 + 30) * 23.6 + 100 * 0.3) * PJ)
    assert e.snn_loihi.neurons == pytest.approx(500 * 81 * PJ)
    assert e.snn_loihi.memory == e.snn_loihi.scatter == e.ann_float32.scatter == e.ann_int8.scatter == 0


def test_memory_by_hand():
    e = energy(operations())
    float32 = (
        # 40 kB of weights, 192 B of pixels, 4 kB of currents
        100 * 4 * CACHE_1MB + 100 * 4 * CACHE_8KB + 1000 * 4 * CACHE_8KB
        # 10 kB of weights, 16 kB of values, and spikes
        + 9030 * 4 * CACHE_32KB + 30 * 4 * CACHE_32KB + 640 / 8 * CACHE_8KB
        # 12 kB of currents, 24 kB of state, and spikes
        + 400 * 4 * CACHE_32KB + 1900 * 4 * CACHE_32KB + 160 / 8 * CACHE_8KB
        + 48 * 4 * DRAM
    )  # fmt: skip
    assert e.snn_float32.memory == pytest.approx(float32 * PJ)
    int8 = (
        # 10 kB, 48 B; currents and state stay in 4 bytes
        100 * CACHE_32KB + 100 * CACHE_8KB + 1000 * 4 * CACHE_8KB
        + 9030 * CACHE_8KB + 30 * CACHE_8KB + 640 / 8 * CACHE_8KB
        + 400 * 4 * CACHE_32KB + 1900 * 4 * CACHE_32KB + 160 / 8 * CACHE_8KB
        + 48 * DRAM
    )  # fmt: skip
    assert e.snn_int8.memory == pytest.approx(int8 * PJ)
    # Sums of 12 kB each, formed in memory.
    scatter = (9030 + 8000 + 5) * 4 * CACHE_32KB
    assert e.snn_float32.scatter == e.snn_int8.scatter == pytest.approx(scatter * PJ)
    ann_float32 = (
        100 * 4 * CACHE_1MB + 100 * 4 * CACHE_8KB
        + 4000 * 4 * CACHE_32KB + 4000 * 4 * CACHE_32KB
        + 70 * 4 * CACHE_32KB + 3000 * 4 * CACHE_32KB
        + 48 * 4 * DRAM
    )  # fmt: skip
    assert e.ann_float32.memory == pytest.approx(ann_float32 * PJ)
    three = 3 / 8  # bytes of an activation
    ann_int8 = (
        100 * CACHE_32KB + 100 * CACHE_8KB
        + 4000 * CACHE_8KB + 4000 * three * CACHE_8KB
        + 70 * three * CACHE_8KB + 3000 * three * CACHE_8KB
        + 48 * DRAM
    )  # fmt: skip
    assert e.ann_int8.memory == pytest.approx(ann_int8 * PJ)


def test_sums_and_ratios():
    e = energy(operations())
    cost = e.snn_int8
    assert cost.arithmetic == cost.synapses + cost.neurons
    assert cost.total == pytest.approx(cost.synapses + cost.neurons + cost.memory)
    assert cost.scattered == pytest.approx(cost.total + cost.scatter)
    assert e.ratios["float32_arithmetic"] == e.snn_float32.arithmetic / e.ann_float32.arithmetic
    assert e.ratios["int8_total"] == e.snn_int8.total / e.ann_int8.total
    assert e.ratios["int8_scattered"] == e.snn_int8.scattered / e.ann_int8.total
    assert len(e.ratios) == 6


@pytest.mark.parametrize(
    ("timesteps", "most", "bits"),
    [(1, 1, 1), (2, 1, 2), (3, 1, 2), (4, 1, 3), (7, 1, 3), (8, 1, 4), (32, 1, 6), (4, 15, 6), (350, 1, 9)],
)
def test_the_rival_has_the_bits_that_t_steps_can_say(timesteps, most, bits):
    """As many as it takes to write the largest count, T most."""
    assert (timesteps * most).bit_length() == bits
    e = energy(operations(timesteps, most))
    assert e.activation_bits == bits
    assert e.ann_int8.synapses == pytest.approx((4000 * (0.2 * bits / 8 + 0.1) + 100 * 0.3) * PJ)


def test_eight_bits_cost_the_published_figure():
    e = energy(operations(255))
    assert e.activation_bits == 8 and e.ann_int8.synapses == pytest.approx(4100 * 0.3 * PJ)


def test_poisson_input_is_no_stem_off_the_chip():
    e = energy(operations(coding="poisson"))
    assert e.snn_loihi.synapses == pytest.approx((9020 + 130) * 23.6 * PJ)


def test_a_tensor_lies_in_the_smallest_memory_that_holds_it():
    def memory(parameters):
        layer = dataclasses.replace(
            CONV, parameters=parameters, traffic=Traffic(weight_reads=1), ann=SourceOperations(macs=1)
        )
        constants = Constants(dram=0.0)
        return energy(Operations(1, 1, "direct", "binary", 1, 48, 4, (layer,)), constants).snn_int8.memory / PJ

    sizes = {2**13: CACHE_8KB, 2**13 + 1: CACHE_32KB, 2**15: CACHE_32KB, 2**15 + 1: CACHE_1MB, 2**24: CACHE_1MB}
    assert {size: pytest.approx(per_byte) for size, per_byte in sizes.items()} == {s: memory(s) for s in sizes}


def test_the_json_and_the_table(tmp_path):
    e = energy(operations())
    e.save(tmp_path / "energy.json")
    stored = json.loads((tmp_path / "energy.json").read_text())
    assert stored == json.loads(json.dumps(e.to_dict()))
    assert (stored["schema"], stored["estimate"], stored["constants"]["add_float32"]) == (1, True, 0.9)
    assert stored["snn_int8"]["synapses"] == e.snn_int8.synapses and stored["ratios"] == e.ratios
    text = e.table()
    assert "estimate" in text and "3-bit activations" in text and CONSTANTS.name in text
    free = energy(operations(), Constants(**dict.fromkeys(list(vars(CONSTANTS))[1:], 0.0), name="free"))
    assert free.snn_float32.scattered == 0 and math.isinf(free.ratios["int8_total"])
    assert free.to_dict()["ratios"]["int8_total"] is None and "free" in free.table()


# ---- constants from a file ----


def test_the_published_constants():
    """Horowitz 2014 and Davies et al. 2018, typed in again."""
    published = [0.9, 3.7, 0.1, 0.2, 10, 20, 100, 1300, 23.6, 81]
    assert [getattr(CONSTANTS, f.name) for f in dataclasses.fields(CONSTANTS)][1:] == published
    assert energy(operations()).constants == CONSTANTS


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(CONSTANTS.to_toml())
    assert load_constants(path) == CONSTANTS
    text = CONSTANTS.to_toml().replace("add_float32 = 0.9", "add_float32 = 2").replace("name =", "# name =")
    path.write_text(text)
    mine = load_constants(path)
    assert mine == dataclasses.replace(CONSTANTS, name="mine", add_float32=2.0)
    e = energy(operations(), mine)
    assert e.snn_float32.neurons == pytest.approx(1107 * 2 * PJ) and e.constants.name == "mine"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("dram = 1300.0", "dram = -1", "dram, got -1"),
        ("dram = 1300.0", "dram = nan", "dram, got nan"),
        ("dram = 1300.0", "dram = inf", "dram, got inf"),
        ("dram = 1300.0", "dram = true", "dram, got True"),
        ("dram = 1300.0", 'dram = "much"', "dram, got 'much'"),
        ("dram = 1300.0", "", "got no dram"),
        ("dram = 1300.0", "dram = 1300\nflash = 5", "got unknown 'flash'"),
        ("dram = 1300.0", "dram =", "cannot be read"),
        ("dram = 1300.0", "dram = 1\ndram = 2", "cannot be read"),
        ('name = "', 'name = 4 # "', "name, got 4"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, before, after, words):
    path = tmp_path / "bad.toml"
    text = CONSTANTS.to_toml()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(InvalidData) as error:
        load_constants(path)
    message = str(error.value)
    assert words in message and str(path) in message and "expected" in message and "\n" not in message


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(InvalidData, match="cannot be read"):
        load_constants(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(InvalidData, match="cannot be read"):
        load_constants(tmp_path / "latin.toml")
