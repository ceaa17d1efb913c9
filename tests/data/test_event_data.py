"""Event recordings: binning against a plain loop, files as tonic keeps them, and frames through the simulator."""

import contextlib
import json
import os
import pickle
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randomized
from sresnet_cli.__main__ import sresnet
from torch import Tensor, nn

import s_resnet
from s_resnet import RECIPES, Graph, convert, evaluate, save, simulate, trace, verify
from s_resnet.analysis import EvaluationSettings, count_operations
from s_resnet.data import (
    EVENT_BINS,
    Binning,
    EventData,
    EventLoader,
    Events,
    ImageData,
    MeanFrameLoader,
    bin_events,
    choose,
    fingerprints,
    loader_for,
    open_data,
    preprocessing_for,
    used_for_calibration,
)
from s_resnet.data.open import read_preprocessing, stored_preprocessing
from s_resnet.errors import BackendUnavailable, InvalidData
from s_resnet.frontend import Checkpoint
from s_resnet.models import CifarResNet
from s_resnet.models.catalog import build
from s_resnet.runtime import shard
from s_resnet.simulation import SimulationSettings, closed_form, features, record, simulate_with_early_exit

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GESTURES = 11
SMALL = Binning(4, 1000, (8, 8))


# ---- files as tonic stores them ----


def some_events(seed: int, count: int = 60, start: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(0, 128, count) for name in "xy"}
    return {"t": start + np.sort(rng.integers(0, 5, count)) * 1000, **columns, "p": rng.integers(0, 2, count)}


def flatbuffer(identifier: bytes, fields: int, body: bytes) -> bytes:
    """A size-prefixed flatbuffer of one table, whose last field is the only one: a text or a vector."""
    vtable = struct.pack(f"<HH{fields}H", 4 + 2 * fields, 8, *[0] * (fields - 1), 4)
    vtable += bytes(-len(vtable) % 4)
    table = 8 + len(vtable)
    vector = table + 8 + (4 - table - 8) % 8  # its elements are aligned to 8 bytes
    whole = struct.pack("<I4s", table, identifier) + vtable + struct.pack("<iI", len(vtable), vector - table - 4)
    whole += bytes(vector - len(whole)) + body
    return struct.pack("<I", len(whole)) + whole


def aedat4(events: dict[str, np.ndarray]) -> bytes:
    """An AEDAT 4 file of two packets, uncompressed: inivation's format, which CIFAR10-DVS is stored in."""
    text = (
        b'<dv version="2.0"><node name="outInfo"><node name="0"><attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info"><attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr></node>'
        b"</node></node></dv>"
    )
    kind = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1"), ("", "V3")])
    records = np.zeros(len(events["t"]), kind)
    for name, values in events.items():
        records[name] = values
    content = b"#!AER-DAT4.0\r\n" + flatbuffer(b"IOHE", 3, struct.pack("<I", len(text)) + text + b"\0")
    for part in np.array_split(records, 2):
        packet = flatbuffer(b"EVTS", 1, struct.pack("<I", len(part)) + part.tobytes())
        content += struct.pack("<II", 0, len(packet)) + packet
    return content


def make_gestures(root: Path) -> Path:
    """Train: two users with every gesture each; test: one. Times are in milliseconds there."""
    for part, users in (("Train", (1, 2)), ("Test", (24,))):
        for user in users:
            folder = root / "DVSGesture" / f"ibmGesture{part}" / f"user{user:02}_led"
            folder.mkdir(parents=True)
            for label in range(GESTURES):
                events = some_events(100 * user + label, start=5_000_000)
                columns = [events["x"], events["y"], events["p"], events["t"] // 1000]
                np.save(folder / f"{label}.npy", np.stack(columns, 1).astype(np.float64))
    return root


@pytest.fixture(scope="module")
def gestures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_tonic()
    return make_gestures(tmp_path_factory.mktemp("gestures"))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 10 000 names; the recordings are one and the same, but for two."""
    needs_tonic("aedat")
    root = tmp_path_factory.mktemp("cifar10dvs")
    shared = root / "shared"
    shared.write_bytes(aedat4(some_events(0)))
    for name in CIFAR:
        folder = root / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for number in range(1000):
            os.link(shared, folder / f"cifar10_{name}_{number}.aedat4")
    for number in (2, 950):
        path = root / "CIFAR10DVS" / "cat" / f"cifar10_cat_{number}.aedat4"
        path.unlink()
        path.write_bytes(aedat4(some_events(number, start=1_600_000_000_000_000)))
    return root


def needs_tonic(*besides: str) -> None:
    for package in ("tonic", *besides):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 's-resnet[events]'")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What asks for the network is noted, and gets none."""
    asked: list[object] = []

    def refuse(request: object, *_: object, **__: object) -> None:
        asked.append(request)
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


# ---- binning ----


def binned(
    events: dict[str, np.ndarray], bins: int, microseconds: int, size: tuple[int, int], start: int = 0
) -> Tensor:
    """Event by event."""
    frames = torch.zeros(bins, 2, *size)
    for t, x, y, p in zip(*(events[name].tolist() for name in "txyp"), strict=True):
        k = (t - start) // microseconds
        if 0 <= k < bins:
            frames[k, p, y * size[0] // 128, x * size[1] // 128] += 1
    return frames


@pytest.mark.parametrize("size", [(42, 42), (32, 32), (128, 128), (5, 70), (1, 1)])
def test_bins_are_those_of_a_loop_over_the_events(size: tuple[int, int]) -> None:
    events = some_events(3, count=3000)
    events["t"] = np.random.default_rng(4).integers(-2500, 12_000, 3000)  # in any order, before and after the bins
    recording = Events(**{name: torch.from_numpy(events[name]) for name in "txyp"}, sensor=(128, 128))
    frames = bin_events(recording, Binning(7, 999, size))
    assert frames.shape == (7, 2, *size) and frames.dtype == torch.float32
    assert torch.equal(frames, binned(events, 7, 999, size))
    assert frames.sum() == ((events["t"] >= 0) & (events["t"] < 7 * 999)).sum()


def test_the_edges_of_bins_and_pixels() -> None:
    t, x = torch.tensor([0, 9, 10, 19, 20]), torch.tensor([0, 3, 4, 127, 127])
    events = Events(t, x, x, torch.tensor([1, 1, 0, 0, 1]), sensor=(128, 128))
    frames = bin_events(events, Binning(2, 10, (42, 42)))
    assert frames.nonzero().tolist() == [[0, 1, 0, 0], [1, 0, 1, 1], [1, 0, 41, 41]]  # 3 * 42 // 128 = 0, 4: 1
    assert frames[0, 1, 0, 0] == 2
    one = torch.tensor([0])
    wide = bin_events(Events(one, one + 5, one + 2, one, sensor=(4, 6)), Binning(1, 1, (4, 6)))
    assert wide.nonzero().tolist() == [[0, 0, 2, 5]]  # rows are y, columns x


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": torch.tensor([128])}, "x"),
        ({"y": torch.tensor([-1])}, "y"),
        ({"p": torch.tensor([2])}, "p"),
        ({"t": torch.tensor([1.5])}, "integers"),
        ({"t": torch.tensor([1, 2])}, "integers"),
        ({"bins": 0}, "bins"),
        ({"microseconds": 0}, "microseconds"),
        ({"size": (129, 8)}, "frames of"),
    ],
)
def test_binning_refuses(change: dict[str, object], word: str) -> None:
    one = torch.tensor([1])
    given = {**dict.fromkeys("txyp", one), "bins": 2, "microseconds": 5, "sensor": (128, 128), "size": (8, 8)}
    with pytest.raises(InvalidData, match=word):
        settings = {**given, **change}
        binning = Binning(*(settings.pop(name) for name in ("bins", "microseconds", "size")))
        bin_events(Events(**settings), binning)


def test_the_papers_bins_and_what_makes_no_sense() -> None:
    assert EVENT_BINS["cifar10dvs"] == Binning(bins=10, microseconds=10_000, size=(42, 42))
    assert EVENT_BINS["dvsgesture"] == Binning(bins=40, microseconds=30_000, size=(32, 32))
    for settings in ({"bins": 0}, {"microseconds": 1.5}, {"size": (8,)}, {"size": 8}, {"size": (8, 0)}):
        with pytest.raises(InvalidData, match=f"binning: {next(iter(settings))}"):
            Binning(**{"bins": 4, "microseconds": 10, "size": (8, 8), **settings})
    kept = stored_preprocessing(SMALL)
    assert kept == {"events": {"bins": 4, "microseconds": 1000, "size": (8, 8)}}
    assert read_preprocessing({"events": {**kept["events"], "size": [8, 8]}}) == SMALL  # as JSON gives it back
    images = preprocessing_for(32)
    assert read_preprocessing(stored_preprocessing(images)) == images


# ---- files ----


def test_gestures_have_their_own_splits_and_are_read_as_tonic_reads_them(gestures: Path, offline: list[object]) -> None:
    import tonic

    train, test = (open_data(f"dvsgesture:{gestures}", split) for split in ("calibration", "evaluation"))
    assert (train.split, len(train), test.split, len(test)) == ("train", 22, "test", 11)
    assert train.classes == tuple(tonic.datasets.DVSGesture.classes) and len(train.classes) == GESTURES
    assert test.names[10] == "DVSGesture/ibmGestureTest/user24_led/10.npy"  # not before 2
    assert list(test.labels) == list(range(GESTURES))
    assert train.spec == f"dvsgesture:{gestures.resolve()}" and train.binning == EVENT_BINS["dvsgesture"]
    for index in (0, 10):
        oracle, found = some_events(2400 + index), test.events(index)
        assert found.sensor == (128, 128)
        for name in "xyp":
            assert getattr(found, name).tolist() == oracle[name].tolist()
        assert found.t.tolist() == (oracle["t"] - oracle["t"].min()).tolist()  # from its first event on
    assert not offline


def test_cifar_is_split_by_number(cifar: Path, offline: list[object]) -> None:
    train, test = (open_data(f"cifar10dvs:{cifar}", split) for split in ("calibration", "evaluation"))
    assert (train.split, len(train), test.split, len(test)) == ("train", 9000, "test", 1000)
    assert train.classes == CIFAR and train.binning == EVENT_BINS["cifar10dvs"]
    assert np.bincount(train.labels).tolist() == [900] * 10 and np.bincount(test.labels).tolist() == [100] * 10
    for data, first, last in ((train, 0, 899), (test, 900, 999)):
        names = [name for name, label in zip(data.names, data.labels, strict=True) if label == 3]
        assert names[0] == f"CIFAR10DVS/cat/cifar10_cat_{first}.aedat4" and names[-1].endswith(f"_{last}.aedat4")
    assert not set(train.names) & set(test.names)
    for data, number in ((train, 2), (test, 950)):
        found = data.events(data.names.index(f"CIFAR10DVS/cat/cifar10_cat_{number}.aedat4"))
        oracle = some_events(number)
        for name in "xyp":
            assert getattr(found, name).tolist() == oracle[name].tolist()
        assert found.t.tolist() == (oracle["t"] - oracle["t"].min()).tolist()
    assert not offline


def test_choice_fingerprints_and_shards_are_those_of_images(gestures: Path) -> None:
    data = open_data(f"dvsgesture:{gestures}", "calibration")
    chosen = choose(data, 11)
    assert sorted(data.labels[i] for i in chosen) == list(range(GESTURES)) and chosen == choose(data, 11)
    assert shard(chosen, 1, 2) == chosen[1::2]
    marks = fingerprints(data, chosen)
    assert len(set(marks)) == 11 and used_for_calibration(data, marks) == {data.names[i] for i in chosen}
    assert not used_for_calibration(open_data(f"dvsgesture:{gestures}", "evaluation"), marks)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_gives_time_first(gestures: Path, workers: int) -> None:
    data = open_data(f"dvsgesture:{gestures}", "evaluation")
    loader = EventLoader(data, [3, 1, 2], SMALL, 2, workers)
    assert len(loader) == 2 and loader.images == 3
    (events, labels), (rest, _) = list(loader)
    assert events.shape == (4, 2, 2, 8, 8) and rest.shape == (4, 1, 2, 8, 8)
    assert events.dtype == torch.float32 and events.is_contiguous() and labels.tolist() == [3, 1]
    for place, index in enumerate((3, 1)):
        oracle = some_events(2400 + index)
        assert torch.equal(events[:, place], binned(oracle, 4, 1000, (8, 8), oracle["t"].min()))
    means = list(MeanFrameLoader(data, [3, 1, 2], SMALL, 2, workers))
    assert torch.equal(means[0][0], events.mean(0)) and means[0][1].tolist() == [3, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_events_outside_the_bins_are_counted(gestures: Path, workers: int) -> None:
    """By a plain loop over the recordings; the frames hold all others."""
    data = open_data(f"dvsgesture:{gestures}", "evaluation")
    loader = EventLoader(data, [5, 6, 7], SMALL, 2, workers)
    kept = sum(float(frames.sum()) for frames, _ in loader)
    times = torch.cat([data.events(index).t for index in (5, 6, 7)])
    outside = sum(not 0 <= t < SMALL.bins * SMALL.microseconds for t in times.tolist())
    assert loader.events == (len(times), outside) and kept == len(times) - outside and outside > 0
    assert sum(len(labels) for _, labels in loader) == 3 and loader.events == (len(times), outside)  # of the last pass


def test_what_workers_are_given_can_be_pickled(gestures: Path) -> None:
    loader = EventLoader(open_data(f"dvsgesture:{gestures}", "evaluation"), [5, 6], SMALL, 2, 0)
    frames, labels, *_ = pickle.loads(pickle.dumps(loader._batches))[0]
    assert torch.equal(frames.transpose(0, 1), next(iter(loader))[0]) and labels.tolist() == [5, 6]


def test_loader_refuses_what_makes_no_sense(gestures: Path) -> None:
    data = open_data(f"dvsgesture:{gestures}", "evaluation")
    with pytest.raises(InvalidData, match="at most the sensor's 128 x 128"):
        EventLoader(data, [0], Binning(2, 10, (129, 4)), 1)
    with pytest.raises(InvalidData, match="batch size"):
        EventLoader(data, [0], SMALL, 0)
    with pytest.raises(InvalidData, match="got event recordings; expected images"):
        loader_for(data, [0], preprocessing_for(8), 1)
    images = ImageData("x", "all", ("a",), ("0",), (0,), pixels=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(InvalidData, match="got images; expected event recordings"):
        loader_for(images, [0], SMALL, 1)
    assert isinstance(loader_for(data, [0], SMALL, 1), EventLoader)


def in_memory(*recordings: object) -> EventData:
    labels = tuple(0 for _ in recordings)
    names = tuple(str(index) for index in range(len(recordings)))
    return EventData("dvsgesture:/x", "test", ("a",), names, labels, source=[(one, 0) for one in recordings])


def structured(**columns: list[int]) -> np.ndarray:
    kind = [(name, np.int64) for name in columns]
    return np.array(list(zip(*columns.values(), strict=True)), dtype=kind)


def test_recordings_without_events_or_beside_the_sensor_are_unreadable() -> None:
    good = structured(t=[5, 9], x=[0, 1], y=[0, 1], p=[0, 1])
    data = in_memory(good, good[:0], structured(t=[1], x=[128], y=[0], p=[0]))
    loader = EventLoader(data, [0, 1, 2], SMALL, 3, 0)
    ((events, labels),) = list(loader)
    assert events.shape == (4, 1, 2, 8, 8) and events.sum() == 2 and len(labels) == 1
    assert len(loader.unreadable) == 2
    assert loader.unreadable[0] == "1 (no events)" and "x, got 128 to 128" in loader.unreadable[1]
    with pytest.raises(InvalidData, match=r"recording '1': file, got no events; expected .* Repair or remove it\."):
        data.events(1)
    assert isinstance(data.events(0), Events) and data.events(0).t.tolist() == [0, 4]


def test_loader_takes_no_mistake_for_a_damaged_recording() -> None:
    with pytest.raises(TypeError):
        list(EventLoader(in_memory("a mistake in the program"), [0], SMALL, 1, 0))


# ---- what is damaged or missing ----


def test_damaged_recordings_are_left_out(tmp_path: Path) -> None:
    needs_tonic()
    folder = make_gestures(tmp_path) / "DVSGesture" / "ibmGestureTest" / "user24_led"
    content = (folder / "0.npy").read_bytes()
    (folder / "0.npy").write_bytes(content[:-40])
    (folder / "1.npy").write_bytes(b"no array")
    np.save(folder / "2.npy", np.zeros((0, 4)))
    np.save(folder / "3.npy", np.zeros((5, 2)))
    np.save(folder / "4.npy", np.array([{}], dtype=object), allow_pickle=True)
    data = open_data(f"dvsgesture:{tmp_path}", "evaluation")
    (folder / "5.npy").unlink()
    loader = EventLoader(data, range(11), SMALL, 4, 0)
    assert torch.cat([labels for _, labels in loader]).tolist() == [6, 7, 8, 9, 10]
    assert len(loader.unreadable) == 6 and all("\n" not in text for text in loader.unreadable)
    assert loader.unreadable[5] == "DVSGesture/ibmGestureTest/user24_led/5.npy (No such file or directory)"
    with pytest.raises(InvalidData, match="loader: readable images, got none of 2"):
        list(EventLoader(data, [0, 1], SMALL, 2, 0))


@pytest.mark.parametrize("keep", [0, 10, 60, 330, -100])
def test_a_truncated_recording_is_left_out(cifar: Path, keep: int) -> None:
    path = cifar / "CIFAR10DVS" / "ship" / "cifar10_ship_900.aedat4"
    whole = path.read_bytes()
    path.unlink()  # else all that share it are cut
    path.write_bytes(whole[:keep])
    data = open_data(f"cifar10dvs:{cifar}", "evaluation")
    damaged = data.names.index("CIFAR10DVS/ship/cifar10_ship_900.aedat4")
    loader = EventLoader(data, [damaged, damaged + 1], SMALL, 2, 0)
    ((events, _),) = list(loader)
    assert events.shape[1] == 1 and len(loader.unreadable) == 1
    path.write_bytes(whole)


def test_a_damaged_header_is_no_end_of_the_program(cifar: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The decoder panics there."""
    path = cifar / "CIFAR10DVS" / "ship" / "cifar10_ship_901.aedat4"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:44] + b"\x80" + whole[45:])  # where the header's text begins
    data = open_data(f"cifar10dvs:{cifar}", "evaluation")
    with pytest.raises(InvalidData, match=r"cifar10_ship_901.*a damaged header"):
        data.events(data.names.index("CIFAR10DVS/ship/cifar10_ship_901.aedat4"))
    path.write_bytes(whole)


@pytest.mark.parametrize("at", [60, 120, 200, 240])
def test_a_description_that_is_no_text_is_no_end_of_the_program(cifar: Path, at: int) -> None:
    """The decoder aborts over its own error there; beside it, offsets that lead nowhere."""
    path = cifar / "CIFAR10DVS" / "ship" / "cifar10_ship_902.aedat4"
    whole = path.read_bytes()
    data = open_data(f"cifar10dvs:{cifar}", "evaluation")
    index = data.names.index("CIFAR10DVS/ship/cifar10_ship_902.aedat4")
    path.unlink()
    path.write_bytes(whole[:at] + b"\xe1" + whole[at + 1 :])
    with pytest.raises(InvalidData, match=r"cifar10_ship_902.*a damaged header"):
        data.events(index)
    for place in range(14, 46):  # sizes and offsets of the header
        path.write_bytes(whole[:place] + b"\xf0" + whole[place + 1 :])
        with contextlib.suppress(InvalidData):
            data.events(index)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidData, match=r"cifar10_ship_902.*no regular file"):
        data.events(index)
    path.unlink()
    path.write_bytes(whole)


def test_missing_folders_and_files_are_named(tmp_path: Path, offline: list[object]) -> None:
    needs_tonic("aedat")
    with pytest.raises(InvalidData, match=r"recordings, got 0 of class 'airplane' in .*CIFAR10DVS'; .* download=True"):
        open_data(f"cifar10dvs:{tmp_path}/nowhere", "evaluation")
    with pytest.raises(InvalidData, match=r"got none of class 'Hand clapping' in .*ibmGestureTest'.*download=True"):
        open_data(f"dvsgesture:{tmp_path}/nowhere", "evaluation")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(InvalidData, match="directory, got none; expected dvsgesture:DIR"):
        open_data("dvsgesture:", "evaluation")
    (tmp_path / "DVSGesture").mkdir()
    (tmp_path / "DVSGesture" / "ibmGestureTrain.tar.gz").write_bytes(b"")
    with pytest.raises(InvalidData, match=r"Unpack ibmGestureTrain.tar.gz, or pass download=True"):
        open_data(f"dvsgesture:{tmp_path}", "calibration")
    assert not offline


def test_too_few_recordings_are_refused(cifar: Path, tmp_path: Path) -> None:
    path = cifar / "CIFAR10DVS" / "dog" / "cifar10_dog_17.aedat4"
    path.rename(tmp_path / "away")
    with pytest.raises(InvalidData, match=r"got 999 of class 'dog' in .*; expected 1000 .aedat4 files"):
        open_data(f"cifar10dvs:{cifar}", "calibration")
    (tmp_path / "away").rename(path)
    one = make_gestures(tmp_path) / "DVSGesture" / "ibmGestureTest" / "user24_led" / "7.npy"
    one.unlink()
    with pytest.raises(InvalidData, match="got none of class 'Arm roll'"):
        open_data(f"dvsgesture:{tmp_path}", "evaluation")


def test_what_tonic_does_not_expect_is_named(tmp_path: Path) -> None:
    needs_tonic("aedat")
    folder = make_gestures(tmp_path) / "DVSGesture" / "ibmGestureTest" / "user24_led"
    (folder / "11.npy").write_bytes(b"")
    with pytest.raises(InvalidData, match=r"label, got 11; expected 0 to 10\. Remove 11\.npy"):
        open_data(f"dvsgesture:{tmp_path}", "evaluation")
    (folder / "11.npy").rename(folder / "notes.npy")
    with pytest.raises(InvalidData, match=r"tonic cannot open \(ValueError: .*notes.*Remove other files"):
        open_data(f"dvsgesture:{tmp_path}", "evaluation")
    (tmp_path / "CIFAR10DVS" / "lion").mkdir(parents=True)
    (tmp_path / "CIFAR10DVS" / "lion" / "1.aedat4").write_bytes(b"")
    with pytest.raises(InvalidData, match=r"tonic cannot open \(KeyError: 'lion'\)"):
        open_data(f"cifar10dvs:{tmp_path}", "evaluation")


def test_download_is_asked_for_and_its_failure_told(tmp_path: Path, offline: list[object]) -> None:
    needs_tonic()
    with pytest.raises(InvalidData, match=r"URLError: .*no network here.* Repeat it with a connection"):
        open_data(f"dvsgesture:{tmp_path}", "evaluation", download=True)
    assert offline


def test_download_fetches_nothing_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    """tonic itself wants the archive as well, which many delete."""
    needs_tonic()
    import tonic

    def fetch(self: object) -> None:
        print("fetched")
        make_gestures(tmp_path)

    monkeypatch.setattr(tonic.datasets.DVSGesture, "download", fetch)
    for told in ("fetched", ""):
        assert len(open_data(f"dvsgesture:{tmp_path}", "evaluation", download=True)) == 11
        out, err = capsys.readouterr()
        assert (out, err.strip()) == ("", told)  # stdout is for results
    assert not offline


@pytest.mark.parametrize(
    ("kind", "package"), [("cifar10dvs", "tonic"), ("cifar10dvs", "aedat"), ("dvsgesture", "tonic")]
)
def test_without_the_packages_they_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, package: str
) -> None:
    if package != "tonic":
        needs_tonic()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendUnavailable, match=rf"no {package}; .*pip install tonic aedat\.$"):
        open_data(f"{kind}:{tmp_path}", "evaluation")


# ---- through the simulator ----


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).mean([2, 3]))


def frames(steps: int = 12, batch: int = 3, size: int = 8, seed: int = 1) -> Tensor:
    """Counts of events."""
    return torch.poisson(torch.full((steps, batch, 2, size, size), 0.7), torch.Generator().manual_seed(seed))


def small(recipe: str = "s-resnet") -> Graph:
    return convert(randomized(Small()), [frames(batch=16, seed=9).mean(0)], recipe, timesteps=12)


def two_channels(classes: int = 4) -> CifarResNet:
    model = CifarResNet(8, num_classes=classes)
    model.conv1 = nn.Conv2d(2, 16, 3, padding=1, bias=False)
    return randomized(model)


def converted(recipe: str = "s-resnet") -> Graph:
    """A ResNet-8 that sees two channels."""
    return convert(two_channels(), [frames(batch=16, seed=9).mean(0)], recipe, timesteps=8)


@pytest.fixture(scope="module")
def resnet() -> Graph:
    return converted()


def test_step_t_gets_frame_t_as_in_a_loop() -> None:
    """Integrate and fire, written out."""
    events = frames()
    graph = small()
    conv, neuron, readout = graph["conv"].op, graph["relu"].op, graph.nodes[-1].op
    fc = graph["fc"].op
    v = torch.full((3, 6, 8, 8), neuron.initial_potential)
    answers, counts, total = [], [], torch.zeros(3, 3)
    spikes = torch.zeros(3)
    for step, frame in enumerate(events):
        v = v + F.conv2d(frame, conv.weight * conv.spiking.gain, conv.bias, padding=1)
        fired = (v >= 1).float()
        v = v - fired
        spikes = spikes + fired.flatten(1).sum(1)
        total = total + F.linear(fired.mean([2, 3]), fc.weight * fc.spiking.gain, fc.bias)
        answers.append(total / (step + 1) * readout.scale)
        counts.append(spikes)
    result = simulate(graph, events, 12, at=range(1, 13))
    assert torch.equal(torch.stack(counts), result.spikes["relu"].float()) and counts[-1].min() > 0
    torch.testing.assert_close(result.outputs, torch.stack(answers), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(graph(events, 12), answers[-1], rtol=1e-5, atol=1e-5)
    shuffled = simulate(graph, events.flip(0), 12)
    assert not torch.equal(shuffled.spikes["relu"][-1], result.spikes["relu"][-1])  # their order matters


@pytest.mark.parametrize("chunk", [1, 5, 12, None])
def test_results_do_not_depend_on_the_chunk(resnet, chunk: int | None) -> None:
    events = frames()
    want, got = (
        simulate(resnet, events, 12, SimulationSettings(chunk=3), at=(4, 12)),
        simulate(resnet, events, 12, SimulationSettings(chunk=chunk), at=(4, 12)),
    )
    torch.testing.assert_close(got.outputs, want.outputs, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(got.spikes[name], want.spikes[name]) for name in want.spikes)


@pytest.mark.parametrize("recipe", ["s-resnet", "signed", "phased"])
def test_the_same_frame_at_every_step_is_an_image(recipe: str) -> None:
    graph = converted(recipe)
    image = frames(1, seed=4)[0]
    events = image.expand(8, *image.shape)
    want, got = simulate(graph, image, 8, at=(3, 8)), simulate(graph, events, 8, at=(3, 8))
    torch.testing.assert_close(got.outputs, want.outputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(graph.run(events), graph.run(image))
    names = [graph.nodes[1].name, graph.neurons[2].name]
    for name, value in features(graph, events, 8, names).items():
        torch.testing.assert_close(value, features(graph, image, 8, names)[name], rtol=1e-4, atol=1e-4)


def test_a_simulation_goes_on_where_it_stopped(resnet) -> None:
    events = frames()
    first = simulate(resnet, events, 5)
    rest, whole = simulate(resnet, events, 7, state=first.state), simulate(resnet, events, 12)
    torch.testing.assert_close(rest.outputs, whole.outputs, rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidData, match="12 frames of events for 13 steps"):
        simulate(resnet, events, 8, state=first.state)


def test_an_exit_answers_as_the_simulation_does_there(resnet) -> None:
    events = frames(batch=9)
    every = simulate(resnet, events, 12, at=range(1, 13))
    shares = (every.outputs.double() * torch.arange(1, 13).view(-1, 1, 1) / 12).softmax(2).amax(2)
    sure = float(shares[:-1].median())
    stopped = simulate_with_early_exit(resnet, events, 12, sure, SimulationSettings(chunk=2))
    want = [next(t for t in range(1, 13) if shares[t - 1, i] >= sure or t == 12) for i in range(9)]
    assert stopped.steps.tolist() == want and len(set(want)) > 1
    for index, step in enumerate(want):
        torch.testing.assert_close(stopped.outputs[index], every.outputs[step - 1, index], rtol=1e-5, atol=1e-5)


def test_evaluate_and_verify_take_events(resnet) -> None:
    events, labels = frames(batch=9), torch.arange(9) % 4
    batches = [(events[:, :5], labels[:5]), (events[:, 5:], labels[5:])]
    seen_labels = []
    report = evaluate(
        resnet,
        batches,
        12,
        EvaluationSettings(watch=lambda *batch: seen_labels.append(batch[1])),
        at=(6, 12),
        device="cpu",
    )
    ann, snn = resnet.run(events.mean(0)).argmax(1), simulate(resnet, events, 12).outputs[-1].argmax(1)
    assert report.images == 9 and len(torch.cat(seen_labels)) == 9
    assert report.ann["top1"] == pytest.approx(float((ann == labels).float().mean()))
    assert report.snn[1].top1 == pytest.approx(float((snn == labels).float().mean()))
    assert report.snn[1].agreement == pytest.approx(float((snn == ann).float().mean()))
    left = evaluate(resnet, batches, 12, EvaluationSettings(early_exit=0.9), device="cpu").exit
    assert left is not None and left.mean_timesteps <= 12
    layers = verify(resnet, batches, 12)
    assert layers.images == 9 and layers.top1 == {"ann": report.ann["top1"], "snn": report.snn[1].top1}
    neurons = resnet.neurons[0].name
    rate = simulate(resnet, events, 12).spikes[neurons].sum() / (9 * 12 * 16 * 8 * 8)
    assert layers.layers[0].rate == pytest.approx(float(rate), rel=1e-5)


def test_operations_are_counted_on_every_frame(resnet) -> None:
    """The stem reads graded counts: a multiplication per synapse of every value that is not zero, at every step."""
    events = frames(batch=2)
    counted = count_operations(resnet, [events[:, :1], (events[:, 1:], torch.zeros(1))], 12)
    assert (counted.coding, counted.images, counted.pixels) == ("events", 2, 2 * 8 * 8)
    reached = F.conv2d((events[:12] != 0).float().flatten(0, 1), torch.ones(16, 2, 3, 3), padding=1)
    assert next(layer for layer in counted.layers if layer.name == "conv1").macs == reached.sum() / 2
    spikes = simulate(resnet, events, 12).spikes
    for layer in counted.layers:
        if layer.op == "Neuron":
            assert layer.spikes == pytest.approx(float(spikes[layer.name].sum()) / 2)
    with pytest.raises(InvalidData, match="only images, or only events"):
        count_operations(resnet, [events, events[0]], 12)
    with pytest.raises(InvalidData, match="in coding 'poisson'"):
        count_operations(resnet, [events], 12, coding="poisson")


def test_recorded_spikes_are_those_of_the_simulation(resnet) -> None:
    events = frames(batch=1)
    name = resnet.neurons[1].name
    (recorded,) = record(resnet, events, 12, [name], 10_000)
    assert recorded.spikes.shape[0] == 12 and recorded.spikes.sum() == simulate(resnet, events, 12).spikes[name].sum()
    with pytest.raises(InvalidData, match="2 images"):
        record(resnet, frames(batch=2), 12, [name], 4)


def test_membranes_of_a_network_that_waits_hold_the_charge_of_their_frames() -> None:
    graph, events = converted("phased"), frames(batch=1)
    conv, neuron = graph["conv1"].op, graph.neurons[0].op
    (recorded,) = record(graph, events, 12, [graph.neurons[0].name], 20)
    charge = F.conv2d(events.flatten(0, 1), conv.weight, conv.bias, padding=1)
    if neuron.correction is not None:
        charge = charge + neuron.correction.view(-1, 1, 1)
    path = neuron.initial_potential + charge.cumsum(0).flatten(1)[:, list(recorded.neurons)]
    assert graph.windowed and recorded.lag == 0  # its first layer fires at once: it was made for a constant current
    torch.testing.assert_close(recorded.membrane + recorded.spikes.cumsum(0), path, rtol=1e-4, atol=1e-4)


def test_named_nodes_give_means_over_the_frames_that_were_simulated() -> None:
    class Pooled(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.max_pool2d(x, 2))

    events = frames()
    graph = convert(randomized(Pooled()), [frames(batch=16, seed=9).mean(0)], timesteps=12)
    names = [node.name for node in graph.nodes[1:3]]
    pooled, current = features(graph, events, 5, names).values()
    each = F.max_pool2d(events[:5].flatten(0, 1), 2)
    torch.testing.assert_close(pooled, each.unflatten(0, (5, 3)).mean(0))  # not the pool of the mean
    op, scale = graph.spiking()["conv"].op, graph["relu"].op.scale.view(-1, 1, 1)
    want = F.conv2d(pooled, op.weight, op.bias, padding=1) * scale
    torch.testing.assert_close(current, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["ds_resnet14", "ms_resnet20", "sew_resnet20"])
def test_directly_trained_networks_take_events_as_their_modules_do(arch: str) -> None:
    model = randomized(build(arch, 4, timesteps=5, input_shape=(2, 16, 16), width=8))
    events = frames(5, batch=2, size=16).double()
    graph = trace(model, events[0].float()).to(torch.float64)
    with torch.no_grad():
        want = model.double()(events)
    assert want.std() > 0.01 and not torch.equal(want, model(events.flip(0)))
    torch.testing.assert_close(graph(events, 5), want)
    torch.testing.assert_close(graph.run(events), want)
    torch.testing.assert_close(simulate(graph, events, 5, SimulationSettings(chunk=2)).outputs[0], want)


def test_what_does_not_fit_is_refused(resnet) -> None:
    events = frames()
    with pytest.raises(InvalidData, match="12 frames of events for 13 steps; expected one for each"):
        simulate(resnet, events, 13)
    with pytest.raises(InvalidData, match="12 frames of events for 13 steps"):
        verify(resnet, [events], 13)
    with pytest.raises(InvalidData, match=r"2 channels"):
        simulate(resnet, torch.zeros(12, 3, 3, 8, 8), 12)
    with pytest.raises(InvalidData, match=r"2 channels"):
        simulate(resnet, torch.zeros(3, 3, 8, 8), 12)
    with pytest.raises(InvalidData, match="got coding 'poisson' for a current of shape"):
        simulate(resnet, events, 12, SimulationSettings(coding="poisson"))
    with pytest.raises(InvalidData, match="B >= 1"):
        simulate(resnet, events[:, :0], 12)
    with pytest.raises(InvalidData, match="closed_form: got a current of shape"):
        closed_form(small("phased"), events, 12)
    with pytest.raises(InvalidData, match="3 images and a state of 2"):
        simulate(resnet, events, 4, state=simulate(resnet, events[:, :2], 2).state)
    with pytest.raises(InvalidData, match="labels of shape"):
        evaluate(resnet, [(events, torch.zeros(12, dtype=torch.int64))], 12)
    whole = convert(two_channels(), [events.mean(0)], RECIPES["calibrated-lagged"].at(4).with_weights("int8"))
    with pytest.raises(InvalidData, match="events for an integer network"):
        simulate(whole, events, 4)


# ---- the command line ----


def save_network(path: Path, classes: int, preprocessing: object, channels: int = 2) -> Path:
    model = CifarResNet(8, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    graph = convert(randomized(model), [torch.rand(8, channels, 8, 8)], timesteps=4)
    save(graph.with_provenance(preprocessing=preprocessing), path)
    return path


def run(*arguments: object) -> None:
    sresnet.main([str(argument) for argument in arguments], prog_name="sresnet", standalone_mode=False)


def test_the_commands_take_events(
    gestures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: list[object]
) -> None:
    network = save_network(tmp_path / "net.snn", GESTURES, SMALL)
    data = ("--data", f"dvsgesture:{gestures}")
    run("evaluate", network, "--timesteps", 4, *data, "--device", "cpu", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["images"] == 11
    run("verify", network, "--timesteps", 4, *data)
    assert "11 images" in capsys.readouterr().out
    with pytest.raises(InvalidData, match="4 frames of events for 5 steps"):
        run("evaluate", network, "--timesteps", 5, *data)
    images = save_network(tmp_path / "images.snn", GESTURES, preprocessing_for(8), 3)
    with pytest.raises(InvalidData, match="got event recordings; expected images, for which the network was made"):
        run("evaluate", images, "--timesteps", 4, *data)
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 8, 8, 3), np.uint8), y=np.arange(3))
    with pytest.raises(InvalidData, match="got images; expected event recordings"):
        run("evaluate", network, "--timesteps", 4, "--data", tmp_path / "x.npz")
    assert not offline


def test_the_page_shows_events(gestures: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    network = save_network(tmp_path / "net.snn", GESTURES, SMALL)
    run("report", network, "--timesteps", 4, "--data", f"dvsgesture:{gestures}", "-o", tmp_path / "page")
    (entry,) = json.loads((tmp_path / "page" / "report.json").read_text())["networks"]
    assert entry["evaluation"]["images"] == 11 and not entry["missing"]
    assert entry["operations"]["coding"] == "events" and entry["verification"]["images"] == 11


def test_convert_calibrates_on_mean_frames(gestures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CifarResNet(8, num_classes=GESTURES)
    torch.save(randomized(model).state_dict(), tmp_path / "images.pth")
    ask = ("convert", tmp_path / "images.pth", "--calibration", f"dvsgesture:{gestures}", "-o", tmp_path / "net.snn")
    with pytest.raises(InvalidData, match=r"\(2, 2, 32, 32\).* channels"):
        run(*ask)
    with pytest.raises(click.UsageError, match="--mean and --std apply to images"):
        run(*ask, "--mean", "0,0,0")
    loaded = Checkpoint(two_channels(GESTURES), "cifar_resnet8", GESTURES, 32, "0", "x")
    monkeypatch.setattr(s_resnet, "load_checkpoint", lambda *_: loaded)
    run(*ask, "--timesteps", 8)
    network = s_resnet.load(tmp_path / "net.snn")
    assert network.provenance.preprocessing == Binning(40, 30_000, (32, 32))
    assert len(network.provenance.data.fingerprints) == 22
    run("evaluate", tmp_path / "net.snn", "--timesteps", 8)  # the test split of what it was calibrated on
