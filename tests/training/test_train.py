"""Training: steps by hand, draws that depend on their seed alone, and runs that end the same when they are killed."""

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import typing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forks import Process
from PIL import Image
from test_cli import Program, unexpected
from test_distributed import forked

import s_resnet
from s_resnet import SResNetError, Training, files, train
from s_resnet.data import ImageData, Preprocessing
from s_resnet.errors import InvalidCheckpoint, InvalidData, TrainingDiverged
from s_resnet.models.catalog import build
from s_resnet.training import loop, processes, run, saved
from s_resnet.training.images import epoch_loader, epoch_order, usual_augmentation
from s_resnet.training.recompute import recomputing, residual_blocks
from s_resnet.training.settings import Execution, derive_seed, learning_rate

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
SIZE = 8
# Two steps per epoch, of 8 of 20 images.
BRIEF = Training(epochs=3, batch_size=8, width=4, timesteps=None, lr=0.05)


def data(count=20, classes=3, split="train", seed=0, size=SIZE):
    """Images whose brightness says their class."""
    rng, labels = np.random.default_rng(seed), tuple(index % classes for index in range(count))
    pixels = rng.integers(0, 100, (count, size, size, 3), dtype=np.uint8)
    pixels += np.array(labels, dtype=np.uint8)[:, None, None, None] * 50
    names = tuple(f"{split}-{index}" for index in range(count))
    return ImageData("made", split, tuple("abcdefghij"[:classes]), names, labels, pixels=pixels)


def trained(path, arch="cifar_resnet8", settings=BRIEF, images=None, test=None, **options):
    execution = Execution(**{"device": "cpu", "workers": 0, **options})
    return train(arch, images or data(), path, settings, test=test, execution=execution)


def content(path):
    return torch.load(path, weights_only=True)


def same_end(one, other):
    """Whether two checkpoints have the same weights, momenta and history to the last bit; all but the seconds."""
    one, other = content(one), content(other)
    for entry in (*one["history"], *other["history"]):
        del entry["seconds"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert tensor.numpy().tobytes() == other["state_dict"][name].numpy().tobytes(), name
    for index, state in one["optimizer"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, other["optimizer"]["state"][index][name]), (index, name)
    parts = ("epoch", "history", "scaler", "settings")
    assert [one[part] for part in parts] == [other[part] for part in parts]
    return True


# ---- steps, by hand


def test_two_steps_are_those_by_hand(tmp_path):
    """The whole set is one batch: momentum, weight decay, label smoothing and cosine are written out here."""
    images = data()
    settings = replace(BRIEF, epochs=2, batch_size=20, lr=0.1, label_smoothing=0.2, weight_decay=0.01, augmentation=())
    result = trained(tmp_path / "x.pt", settings=settings, images=images)

    torch.manual_seed(derive_seed(0, "weights"))
    model = build("cifar_resnet8", 3, input_shape=(3, SIZE, SIZE), width=4)
    x = torch.from_numpy(images.pixels).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(s_resnet.data.IMAGENET_MEAN)[:, None, None]) / torch.tensor(s_resnet.data.IMAGENET_STD)[
        :, None, None
    ]
    y = torch.tensor(images.labels)
    momentum = [torch.zeros_like(p) for p in model.parameters()]
    losses, right = [], []
    for lr in (0.1, 0.05):  # half of a cosine: 0.1 (1 + cos 0) / 2, 0.1 (1 + cos(pi / 2)) / 2
        logits = model.train()(x)
        share = logits.log_softmax(1)
        wanted = 0.8 * F.one_hot(y, 3) + 0.2 / 3
        loss = -(wanted * share).sum(1).mean()
        losses.append(loss.item())
        right.append((logits.argmax(1) == y).float().mean().item())
        for p, m, g in zip(model.parameters(), momentum, torch.autograd.grad(loss, model.parameters()), strict=True):
            m.mul_(0.9).add_(g + 0.01 * p.detach())
            p.data -= lr * m
    assert [entry["loss"] for entry in result.history] == pytest.approx(losses, rel=1e-5)
    assert [entry["train_top1"] for entry in result.history] == pytest.approx(right)
    assert [entry["lr"] for entry in result.history] == pytest.approx([0.1, 0.05])
    for (name, mine), theirs in zip(model.state_dict().items(), result.model.state_dict().values(), strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "step", "step_epochs": 2, "gamma": 0.1}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "step", "step_epochs": 1, "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        ({"schedule": "constant", "warmup": 2}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"schedule": "cosine", "warmup": 1}, [0.5, 1, *((1 + math.cos(math.pi * i / 6)) / 2 for i in range(6))]),
        ({"schedule": "step", "step_epochs": 3, "warmup": 1}, [0.5, 1, 1, 1, 1, 1, 0.1, 0.1]),
    ],
)
def test_learning_rates_by_hand(settings, expected):
    """Four epochs of two steps from a learning rate of 1."""
    run = Training(epochs=4, lr=1.0, **settings)
    assert [learning_rate(run, step, 2) for step in range(8)] == pytest.approx(expected)


def test_adamw_is_torchs(tmp_path):
    settings = replace(BRIEF, optimizer="adamw", lr=0.001, weight_decay=0.02)
    trained(tmp_path / "x.pt", settings=settings)
    group = content(tmp_path / "x.pt")["optimizer"]["param_groups"][0]
    assert group["betas"] == (0.9, 0.999) and group["weight_decay"] == 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "adam"}, {"schedule": "linear"}, {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf},
        {"momentum": 1.0},
        {"weight_decay": -1.0}, {"label_smoothing": 1.0}, {"epochs": 0}, {"batch_size": 2.5}, {"gamma": 0.0},
        {"warmup": -1}, {"seed": -1}, {"limit": 0}, {"width": 0}, {"augmentation": ("cutout",)}, {"epochs": True},
    ],
    ids=str,
)  # fmt: skip
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(InvalidData, match=f"train: {next(iter(wrong))}, got ") as caught:
        Training(**wrong)
    assert "\n" not in str(caught.value)


# ---- images


def drawn(settings, epoch=0, workers=0, images=None, names=("crop", "flip")):
    images = images or data()
    settings = replace(settings, augmentation=names)
    order = epoch_order(range(len(images)), settings, epoch)
    preprocessing = s_resnet.data.preprocessing_for(images.pixels.shape[1], (0, 0, 0), (1 / 255,) * 3)
    batches = list(epoch_loader(images, order, preprocessing, settings, epoch, workers))
    return order, torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_draws_depend_on_seed_and_epoch_alone():
    names = ("crop", "flip", "autoaugment")
    order, x, y = drawn(BRIEF, names=names)
    torch.rand(7)  # whatever else is drawn
    before = torch.get_rng_state()
    for workers in (0, 2):
        again, z, labels = drawn(BRIEF, workers=workers, names=names)
        assert again == order and torch.equal(z, x) and torch.equal(labels, y)
        assert torch.equal(torch.get_rng_state(), before)
    for settings, epoch in ((BRIEF, 1), (replace(BRIEF, seed=1), 0)):
        other, z, _ = drawn(settings, epoch, names=names)
        assert other != order and sum(same_image(order, x, other, z)) < 3
    larger, z, _ = drawn(replace(BRIEF, batch_size=10), names=names)  # an image's draw does not know its batch
    assert same_image(order, x, larger, z) == [True] * 16


def test_images_for_a_gray_network_are_drawn_in_gray():
    images, gray = data(), s_resnet.data.preprocessing_for(SIZE, gray=True)
    ((x, _),) = epoch_loader(images, [[0, 3]], gray, replace(BRIEF, augmentation=()), 0, 0)
    assert x.shape == (2, 1, SIZE, SIZE) and torch.equal(x, torch.stack([gray(images.image(i)) for i in (0, 3)]))


def same_image(order, x, other, z):
    """Of every image that two epochs have, whether it was drawn the same way."""
    where = {index: at for at, index in enumerate(itertools.chain(*other))}
    return [torch.equal(x[at], z[where[i]]) for at, i in enumerate(itertools.chain(*order)) if i in where]


def test_every_draw_is_a_crop_of_the_padded_image_mirrored_or_not():
    images = data(200)
    order, x, y = drawn(replace(BRIEF, batch_size=200), images=images)
    padded = F.pad(torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float(), (1, 1, 1, 1))
    found = set()
    for index, drawn_image, label in zip(order[0], x, y, strict=True):
        assert label == images.labels[index]
        crops = {
            (top, left, mirrored): padded[index, :, top : top + SIZE, left : left + SIZE]
            for top, left, mirrored in itertools.product(range(3), range(3), (False, True))
        }
        fits = [k for k, v in crops.items() if torch.allclose(v.flip(2) if k[2] else v, drawn_image.round(), atol=0.5)]
        assert len(fits) == 1
        found |= set(fits)
    assert len(found) == 18  # all places, both ways


def test_every_image_once_in_full_batches():
    order, following = epoch_order(range(5, 25), BRIEF, 0), epoch_order(range(5, 25), BRIEF, 1)
    assert [len(batch) for batch in order] == [8, 8] and len(set(itertools.chain(*order))) == 16
    assert set(itertools.chain(*order)) < set(range(5, 25)) == set(itertools.chain(*order, *following))
    assert [sorted(batch) for batch in epoch_order(range(5), BRIEF, 0)] == [[0, 1, 2, 3, 4]]  # fewer than a batch
    assert [len(batch) for batch in epoch_order(range(5), BRIEF, 0, world=2)] == [4]
    with pytest.raises(InvalidData, match="got 3 images for 4 processes"):
        epoch_order(range(3), BRIEF, 0, world=4)


def test_augmentation_of_large_images_and_of_digits():
    assert usual_augmentation("digits", 8) == ("crop",) == usual_augmentation("mnist:/x", 28)
    assert usual_augmentation("cifar10:/x", 32) == ("crop", "flip")
    assert usual_augmentation("imagenet:/x", 224) == ("resized-crop", "flip")
    _, x, _ = drawn(BRIEF, images=data(size=72), names=("resized-crop", "autoaugment"))
    assert x.shape == (16, 3, 72, 72) and x.min() >= 0 and 1 < x.max() <= 255.5


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "set" / name)
    images = s_resnet.data.open_data(str(tmp_path / "set"), "calibration")
    (tmp_path / "set" / "b/2.png").write_bytes(b"no image")
    for workers in (0, 2):
        with pytest.raises(InvalidData, match=r"^image 'b/2.png': file, got not an image") as caught:
            drawn_on = s_resnet.data.preprocessing_for(SIZE)
            list(epoch_loader(images, [[0], [3]], drawn_on, replace(BRIEF, augmentation=()), 0, workers))
        assert "\n" not in str(caught.value)


# ---- which images


def test_what_is_tested_on_is_never_learned_from(tmp_path):
    for images, test, size in ((data(60, split="all"), None, 6), (data(60), data(9, split="test"), 9)):
        parts = run.split(images, test, replace(BRIEF, validation=12, limit=30))
        assert (len(parts.train), len(parts.validation), len(parts.test)) == (30, 12, size)
        names = [images.names[index] for index in (*parts.train, *parts.validation)]
        names += [parts.tested.names[index] for index in parts.test]
        assert len(set(names)) == len(names)
        assert sorted(images.labels[index] for index in parts.train) == [0] * 10 + [1] * 10 + [2] * 10
    whole = run.split(data(60, split="all"), None, BRIEF)
    few = run.split(data(60, split="all"), None, replace(BRIEF, test_limit=3))
    assert few.train == whole.train and set(few.test) < set(whole.test) and len(few.test) == 3
    with pytest.raises(InvalidData, match="other classes"):
        run.split(data(), data(classes=2, split="test"), BRIEF)


def test_accuracies_are_those_of_the_network(tmp_path):
    """Of a network in eval mode, on images of noise, where no two networks would agree."""
    images, test = data(60), data(50, split="test", seed=1)
    for noise in (images, test):
        noise.pixels[:] = np.random.default_rng(len(noise)).integers(0, 256, noise.pixels.shape, dtype=np.uint8)
    result = trained(tmp_path / "x.pt", settings=replace(BRIEF, validation=20), images=images, test=test)
    parts = run.split(images, test, replace(BRIEF, validation=20))
    last, prepare = result.history[-1], s_resnet.data.preprocessing_for(SIZE)
    for name, source, indices in (("validation", images, parts.validation), ("test", test, parts.test)):
        x = torch.stack([prepare(source.image(index)) for index in indices])
        with torch.no_grad():
            right = result.model(x).argmax(1) == torch.tensor([source.labels[index] for index in indices])
        assert last[f"{name}_top1"] == pytest.approx(right.float().mean().item()), name
    assert not result.model.training


# ---- blocks that are computed again


@pytest.mark.parametrize(("arch", "count"), [("cifar_resnet8", 3), ("ms_resnet14", 6), ("danet11", 3), ("resnet18", 8)])
def test_recomputed_blocks_give_the_same(arch, count):
    torch.manual_seed(0)
    plain = build(arch, 3, input_shape=(3, SIZE, SIZE), width=None if arch == "resnet18" else 4)
    for p in plain.parameters():  # tdBN's last weight starts at 0, which hides what is before it
        torch.nn.init.uniform_(p, 0.1, 0.5) if p.dim() == 1 else None
    again = build(arch, 3, input_shape=(3, SIZE, SIZE), width=None if arch == "resnet18" else 4)
    again.load_state_dict(plain.state_dict())
    x, y = (
        torch.randn(4, 3, 32 if arch == "resnet18" else SIZE, 32 if arch == "resnet18" else SIZE),
        torch.arange(4) % 3,
    )
    calls = []
    blocks = residual_blocks(again)
    assert len(blocks) == count
    inner = [next(m for m in block.modules() if isinstance(m, torch.nn.Conv2d)) for block in blocks]
    for conv in inner:
        conv.register_forward_hook(lambda *_: calls.append(None))
    F.cross_entropy(plain.train()(x), y).backward()
    with recomputing(again):
        F.cross_entropy(again.train()(x), y).backward()
    assert len(calls) == 2 * count
    for (name, p), q in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, b), c in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(b, c[1]), name
    assert all("forward" not in vars(block) for block in blocks)  # the network is as it was
    again(x)
    assert len(calls) == 3 * count


def test_recomputing_wants_blocks():
    with pytest.raises(InvalidData, match="no residual blocks in Linear"), recomputing(torch.nn.Linear(2, 2)):
        pass


def test_a_run_that_recomputes_ends_the_same(tmp_path):
    spiking = replace(BRIEF, timesteps=2, epochs=2)
    one = trained(tmp_path / "a.pt", "ms_resnet8", spiking)
    two = trained(tmp_path / "b.pt", "ms_resnet8", replace(spiking, recompute=True))
    for (name, p), q in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


# ---- going on


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("cifar_resnet8", BRIEF),
        ("ms_resnet8", replace(BRIEF, timesteps=2, optimizer="adamw", lr=0.01, amp=True)),
        ("ds_resnet8", replace(BRIEF, timesteps=2, schedule="step", step_epochs=1, recompute=True)),
    ],
)
def test_stopped_at_any_step_and_gone_on(tmp_path, monkeypatch, arch, settings):
    """Before each of the six steps of a run, stopped and gone on with: 6 interruptions, one after another."""
    test = data(6, split="test", seed=1)
    trained(tmp_path / "whole.pt", arch, settings, test=test)
    original, seen = loop._step, 0

    def step(*arguments):
        nonlocal seen
        seen += 1
        if seen in stops:
            stops.remove(seen)
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(loop, "_step", step)
    for stop in range(1, 7):
        path = tmp_path / f"{stop}.pt"
        seen, stops = 0, {stop}
        with pytest.raises(Killed):
            trained(path, arch, settings, test=test)
        assert path.exists() == (stop > 2)
        torch.manual_seed(stop)
        result = trained(path, arch, settings, test=test)
        assert result.resumed == (stop - 1) // 2
        assert same_end(path, tmp_path / "whole.pt")


def test_dropout_goes_on_as_it_was(tmp_path, monkeypatch):
    """A network that draws random numbers as it learns."""
    monkeypatch.setattr(run, "build", lambda *_, **__: noisy())
    trained(tmp_path / "whole.pt")

    def stop(entry):
        raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "part.pt", on_epoch=stop)
    trained(tmp_path / "part.pt")
    assert same_end(tmp_path / "part.pt", tmp_path / "whole.pt")


def noisy():
    parts = torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 5), torch.nn.Dropout(0.5), torch.nn.Linear(5, 3)
    return torch.nn.Sequential(*parts)


SCRIPT = """
import os, signal, sys
import torch
from test_train import data, trained, replace, LONG
how, path, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
if how == "writing":
    original, count = torch.save, 0
    def save(content, file):
        global count
        count += 1
        if count == 3:
            original(content, file)
            file.flush()
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        original(content, file)
    torch.save = save
trained(path, settings=LONG)
"""
LONG = replace(BRIEF, epochs=60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.pt"
    trained(path, settings=LONG)
    return path


@pytest.mark.parametrize("how", ["anywhere", "writing"])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, whole, how):
    place = tmp_path / "place"
    place.mkdir()
    path = place / "x.pt"
    process = Process(SCRIPT, how, path, torch.get_num_threads(), place=place, folder=tmp_path)
    if how == "anywhere":
        process.wait_for(path.exists)
        time.sleep(int.from_bytes(os.urandom(1), "big") / 256 * 0.3)
        os.kill(process.pid, signal.SIGKILL)
    done = process.done()
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [name for name in os.listdir(place) if name.endswith(".tmp")]
    if how == "writing":
        assert content(path)["epoch"] == 2 and len(left) == 1  # the half of the third beside it
    result = trained(path, settings=LONG)
    assert 1 <= result.resumed < 60
    assert same_end(path, whole)
    assert os.listdir(place) == ["x.pt"]  # nothing is left of the killed


def test_a_run_may_go_on_with_less_memory(tmp_path):
    def stop(entry):
        raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "x.pt", on_epoch=stop)
    assert trained(tmp_path / "x.pt", settings=replace(BRIEF, recompute=True)).resumed == 1


def test_finished_is_finished(tmp_path):
    path, notes = tmp_path / "x.pt", []
    trained(path)
    before = path.read_bytes()
    result = trained(path, on_note=notes.append)
    assert result.resumed == 3 == len(result.history) and path.read_bytes() == before
    assert notes == [f"{path} holds this run, finished: 3 epochs."]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"settings": replace(BRIEF, lr=0.01)}, "got lr 0.01 (there 0.05)"),
        ({"settings": replace(BRIEF, epochs=4, seed=2)}, "got epochs 4 (there 3), seed 2 (there 0)"),
        ({"settings": replace(BRIEF, augmentation=("flip",))}, "got augmentation flip (there crop,flip)"),
        ({"arch": "cifar_resnet14"}, "got arch cifar_resnet14 (there cifar_resnet8)"),
        ({"images": data(21)}, "got images 21 of digest "),
        ({"images": data(20, classes=2)}, "got classes 2 (there 3)"),
        ({"settings": replace(BRIEF, preprocessing=Preprocessing(SIZE, SIZE, mean=(0, 0, 0)))}, "got preprocessing {"),
    ],
)  # fmt: skip
def test_another_run_is_not_gone_on_with_nor_overwritten(tmp_path, changed, words):
    path = tmp_path / "x.pt"
    trained(path)
    before = path.read_bytes()
    with pytest.raises(SResNetError) as caught:
        trained(path, **changed)
    said = str(caught.value)
    assert words in said and "Use another output, or move the file away" in said and "\n" not in said
    assert path.read_bytes() == before


@pytest.mark.parametrize("there", ["text", "weights", "half", "folder", "newer", "edited", "foreign"])
def test_what_is_no_run_is_not_overwritten(tmp_path, there):
    path = tmp_path / "x.pt"
    if there == "text":
        path.write_text("thesis")
    elif there == "weights":
        torch.save(build("cifar_resnet8", 3).state_dict(), path)
    elif there == "half":
        trained(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif there == "folder":
        path.mkdir()
    else:
        trained(path)
        change = {"newer": {"format": 2}, "edited": {"state_dict": {}}, "foreign": {"data": {}}}[there]
        torch.save({**content(path), **change}, path)
    before = None if there == "folder" else path.read_bytes()
    with pytest.raises(SResNetError, match="is there, ") as caught:
        trained(path)
    assert "Use another output" in str(caught.value) and "\n" not in str(caught.value)
    assert before is None or path.read_bytes() == before


def test_only_files_of_processes_that_are_gone_are_swept(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here, other = files._machine(), "0" * 8
    kept = [
        *(f".x.pt.{here}-{os.getppid()}-0.tmp", f".y.pt.{here}-{gone.pid}-0.tmp", f".x.pt.{other}-{gone.pid}-0.tmp"),
        *(f".x.pt.{here}-abc-0.tmp", "x.pt.tmp"),
    ]
    for name in (*kept, f".x.pt.{here}-{gone.pid}-0.tmp"):
        (tmp_path / name).touch()
    assert saved.resume(tmp_path / "x.pt", {}) is None
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_float16_goes_on_with_its_scale(tmp_path, monkeypatch):
    """As on a GPU without bfloat16: the scale of the loss has fallen from where it starts, and stays there."""
    monkeypatch.setattr(run, "half_type", lambda _: torch.float16)
    monkeypatch.setattr(loop, "half_type", lambda _: torch.float16)
    settings = replace(BRIEF, amp=True)
    trained(tmp_path / "whole.pt", settings=settings)
    scaler = content(tmp_path / "whole.pt")["scaler"]
    assert scaler["scale"] > 0 and scaler["_growth_tracker"] > 0

    def stop(entry):
        raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "part.pt", settings=settings, on_epoch=stop)
    trained(tmp_path / "part.pt", settings=settings)
    assert same_end(tmp_path / "part.pt", tmp_path / "whole.pt")


def test_the_callers_random_numbers_stay(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(tmp_path / "x.pt", settings=replace(BRIEF, epochs=1))
    assert torch.equal(torch.rand(3), expected)


# ---- divergence


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    monkeypatch.setattr(loop, "learning_rate", lambda settings, step, steps: 1e30 if step >= 2 * steps else 0.01)
    with pytest.raises(TrainingDiverged) as caught:
        trained(path)
    said = str(caught.value)
    assert said.startswith("epoch 3, step 2: loss, got ") and "at learning rate 1e+30" in said and "\n" not in said
    assert f"{path} holds the last good epoch" in said and "lower lr" in said
    assert content(path)["epoch"] == 2
    assert all(p.isfinite().all() for p in s_resnet.load_checkpoint(path).model.parameters())


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """The last step of an epoch breaks them: no loss shows it any more."""
    path = tmp_path / "x.pt"
    monkeypatch.setattr(loop, "learning_rate", lambda settings, step, steps: math.inf if step == 3 else 0.01)
    with pytest.raises(TrainingDiverged, match=r"^[\w.]+: after the last step of an epoch, got values that are nan"):
        trained(path)
    assert content(path)["epoch"] == 1


def test_divergence_before_any_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match="No epoch was finished"):
        trained(tmp_path / "x.pt", settings=replace(BRIEF, lr=1e30))
    assert os.listdir(tmp_path) == []


# ---- the file, read again


@pytest.mark.parametrize(("arch", "timesteps"), [("cifar_resnet8", None), ("ms_resnet8", 3), ("ds_resnet8", 2)])
def test_load_checkpoint_reads_what_was_trained(tmp_path, arch, timesteps):
    result = trained(tmp_path / "x.pt", arch, replace(BRIEF, timesteps=timesteps))
    loaded = s_resnet.load_checkpoint(tmp_path / "x.pt")
    x = torch.randn(5, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), result.model(x))
    assert (loaded.arch, loaded.timesteps, loaded.channels) == (arch, timesteps, 3)
    assert (loaded.num_classes, loaded.input_size, loaded.classes) == (3, SIZE, ("a", "b", "c"))
    assert loaded.preprocessing == s_resnet.data.preprocessing_for(SIZE)
    assert loaded.data.spec == "made" and loaded.data.images == 20 and not loaded.model.training
    assert s_resnet.load_checkpoint(tmp_path / "x.pt", arch).arch == arch
    with pytest.raises(InvalidCheckpoint, match=f"got '{arch}'; expected 'resnet18'"):
        s_resnet.load_checkpoint(tmp_path / "x.pt", "resnet18")


def test_data_without_a_split_tell_what_was_learned_from(tmp_path):
    images = data(40, split="all")
    trained(tmp_path / "x.pt", settings=replace(BRIEF, epochs=1), images=images)
    marks = s_resnet.load_checkpoint(tmp_path / "x.pt").data.fingerprints
    learned = {images.names[index] for index in run.split(images, None, BRIEF).train}
    assert s_resnet.data.used_for_calibration(images, marks) == learned and len(learned) == 36


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "got format 2; expected at most 1. Upgrade"),
        ({"arch": "no_resnet8"}, "no network"),
        ({"arch": "cifar_resnet14"}, "names and shapes"),
        ({"settings": {}}, "no network"),
        ({"state_dict": {}}, "names and shapes"),
        ({"state_dict": None}, "no network"),
        ({"classes": 3}, "no network"),
    ],
    ids=str,
)
def test_an_edited_checkpoint_is_refused(tmp_path, change, words):
    path = tmp_path / "x.pt"
    trained(path, settings=replace(BRIEF, epochs=1))
    torch.save({**content(path), **change}, path)
    with pytest.raises(InvalidCheckpoint) as caught:
        s_resnet.load_checkpoint(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- recipes of the papers


@pytest.mark.parametrize(
    ("arch", "spec", "expected"),
    [
        (
            "ms_resnet34",
            "imagenet:/x",
            (125, 256, 0.1, 1e-5, "cosine", 0.1, 6, 224, None, ("resized-crop", "autoaugment")),
        ),
        ("ds_resnet20", "cifar10:/x", (110, 64, 0.1, 1e-4, "step", 0.0, 4, 32, 64, ("crop", "flip"))),
        ("ds_resnet14", "cifar10dvs:/x", (100, 32, 0.1, 1e-3, "step", 0.0, 10, 42, 32, ())),
        ("ds_resnet20", "dvsgesture:/x", (120, 28, 0.1, 1e-4, "step", 0.0, 40, 32, 16, ())),
    ],
)
def test_presets_are_those_of_the_papers(arch, spec, expected):
    chosen = s_resnet.training.preset(arch, replace(data(), spec=spec))
    said = (chosen.epochs, chosen.batch_size, chosen.lr, chosen.weight_decay, chosen.schedule, chosen.label_smoothing)
    assert (*said, chosen.timesteps, chosen.size, chosen.width, chosen.augmentation) == expected
    assert (chosen.optimizer, chosen.momentum) == ("sgd", 0.9)
    assert chosen.schedule != "step" or (chosen.step_epochs, chosen.gamma) == (40, 0.1)
    assert chosen.normalize_input == (spec == "dvsgesture:/x") and chosen.amp == (arch == "ms_resnet34")


def test_class_folders_of_cifar10_are_cifar10():
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert s_resnet.training.preset("ds_resnet32", replace(data(), spec="/x/train", classes=names)).epochs == 110


@pytest.mark.parametrize(
    ("arch", "spec"),
    [
        ("ms_resnet110", "cifar10:/x"),
        ("danet50", "imagenet:/x"),
        ("sew_resnet18", "imagenet:/x"),
        ("ds_resnet20", "made"),
    ],
)
def test_recipes_that_nobody_told_us_are_not_made_up(arch, spec):
    with pytest.raises(InvalidData) as caught:
        s_resnet.training.preset(arch, replace(data(), spec=spec))
    said = str(caught.value)
    assert f"got {arch} on data {spec!r}" in said and "ms_resnet18/34/104 on imagenet" in said and "\n" not in said


# ---- several processes

TOGETHER = """
import hashlib, json, os, sys
import torch
import s_resnet
from s_resnet.runtime import processes as distributed
from test_train import BRIEF, SIZE, data, run, replace, trained

def plain(*_, **__):
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
    return torch.nn.Sequential(*layers)

original, said = run.build, {}
with s_resnet.runtime.process_group("cpu") as (rank, world):
    for name, arch, build, settings in (
        ("plain", "cifar_resnet8", plain, BRIEF),
        ("ms", "ms_resnet8", original, replace(BRIEF, timesteps=2, lr=0.01)),
        ("batchnorm", "cifar_resnet8", original, BRIEF),
    ):
        run.build, notes = build, []
        result = trained(f"{name}.pt", arch, settings, test=data(7, split="test"), on_note=notes.append)
        weights = b"".join(t.numpy().tobytes() for t in result.model.state_dict().values())
        history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]
        said[name] = [hashlib.sha256(weights).hexdigest(), history, notes]
    run.build, names = plain, ("there.png",) * 3 + ("gone.png",)
    broken = s_resnet.data.ImageData("made", "train", ("a", "b"), names, (0, 1, 0, 1), root=os.getcwd())
    for name, images, settings in (("broken", broken, BRIEF), ("diverged", data(), replace(BRIEF, lr=1e30))):
        try:
            with distributed.shared_errors():
                trained(f"{name}.pt", settings=settings, images=images)
        except s_resnet.SResNetError as error:
            said[name] = [type(error).__name__, str(error)]
    said["together"] = s_resnet.runtime.all_gather(rank)  # errors have not put the processes out of step
os.write(1, (json.dumps([rank, said]) + "\\n").encode())
"""


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    """Without batch normalization, and with tdBN, whose statistics are those of all: the weights are those of one."""
    (tmp_path / "script.py").write_text(TOGETHER)
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "there.png")
    code, out, said = forked(tmp_path, "script.py")
    assert code == 0, said
    (_, first), (_, second) = sorted(map(json.loads, out.splitlines()))
    for name in ("plain", "ms", "batchnorm"):
        assert first[name][:2] == second[name][:2], name  # the same weights in both, and the same history
        assert not second[name][2]  # the first speaks
    assert [first[name][2][2:] for name in ("plain", "ms")] == [[], []]  # behind the two lines of every run
    assert first["batchnorm"][2][2:] == ["BatchNorm has statistics per process: torch shares them on GPUs alone."]
    assert first["together"] == second["together"] == [0, 1]
    for name, kind, words in (
        ("broken", "InvalidData", "image 'gone.png': file"),
        ("diverged", "TrainingDiverged", "loss"),
    ):
        assert first[name] == second[name] and first[name][0] == kind and words in first[name][1], name
        assert not (tmp_path / f"{name}.pt").exists()
    space = {}
    exec(TOGETHER[TOGETHER.index("def plain") : TOGETHER.index("original, said")], {"torch": torch}, space)
    spiking = replace(BRIEF, timesteps=2, lr=0.01)
    trained(tmp_path / "ms1.pt", "ms_resnet8", spiking, test=data(7, split="test"))
    monkeypatch.setattr(run, "build", space["plain"])
    trained(tmp_path / "plain1.pt", test=data(7, split="test"))
    for name in ("plain", "ms"):
        one, two = content(tmp_path / f"{name}1.pt"), content(tmp_path / f"{name}.pt")
        for key, tensor in one["state_dict"].items():
            torch.testing.assert_close(two["state_dict"][key], tensor, atol=1e-5, rtol=1e-5, msg=f"{name} {key}")
        for mine, theirs in zip(one["history"], two["history"], strict=True):
            assert mine["test_top1"] == theirs["test_top1"] and mine["train_top1"] == theirs["train_top1"]
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_which_layers_share_their_statistics(kind):
    """torch's own become SyncBatchNorm on a GPU, under the same names; tdBN, though derived from one, shares itself."""
    group, device = object(), torch.device(kind)
    ann, spiking = build("cifar_resnet8", 3), build("ms_resnet8", 3)
    names = list(ann.state_dict())
    assert processes._synchronize(ann, group, device) == (kind == "cpu")
    shared = [m for m in ann.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert len(shared) == (7 if kind == "cuda" else 0) and list(ann.state_dict()) == names
    assert all(m.process_group is group for m in shared)
    assert not processes._synchronize(spiking, group, device)
    normalizations = [m for m in spiking.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert normalizations and all(type(m).__name__ == "TDBatchNorm2d" and m.group is group for m in normalizations)


# ---- TensorBoard


def test_tensorboard_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(s_resnet.errors.BackendUnavailable, match=r"pip install tensorboard") as caught:
        trained(tmp_path / "x.pt", tensorboard=tmp_path / "board")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


def test_tensorboard_gets_every_figure(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    trained(tmp_path / "x.pt", tensorboard=tmp_path / "board")
    assert [path for path in (tmp_path / "board").iterdir() if "tfevents" in path.name]


# ---- the program


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    return Program(monkeypatch, capfd)


TRAIN = ("--data", "digits", "--width", 4, "--limit", 40, "--test-limit", 20, "--batch-size", 20, "--workers", 0,
         "--epochs", 2, "--device", "cpu")  # fmt: skip


def test_the_program_trains_goes_on_and_says_what_comes_next(program, tmp_path):
    first, *rest = program.works("train", "ms_resnet8", *TRAIN, "--timesteps", 2, "-o", "x.pt").splitlines()
    assert (
        first.startswith("epoch 1/2  loss ")
        and "  train " in first
        and "  test " in first
        and first.endswith(" s left")
    )
    assert rest[0].startswith("epoch 2/2  loss ") and rest[1].startswith(
        "x.pt: ms_resnet8, T = 2, 2 epochs, test top-1 "
    )
    assert rest[2:] == ["Next: sresnet convert x.pt"]
    settings = content("x.pt")["settings"]
    assert (settings["size"], settings["augmentation"], settings["limit"]) == (8, ("crop",), 40)
    code, out, err = program("train", "ms_resnet8", *TRAIN, "--timesteps", 2, "-o", "x.pt")
    assert code == 0 and out.splitlines() == rest[1:] and err == "x.pt holds this run, finished: 2 epochs.\n"
    code, out, err = program("train", "ms_resnet8", *TRAIN, "--timesteps", 3, "-o", "x.pt")
    assert code == 1 and out == "" and err.count("\n") == 1 and "timesteps 3 (there 2)" in err


def test_a_run_says_what_it_trains_on_what_and_how_long_it_will_take(program):
    code, out, err = program("train", "cifar_resnet8", *TRAIN, "--schedule", "step", "--gamma", 0.5, "-o", "x.pt")
    count = sum(tensor.numel() for tensor in s_resnet.load_checkpoint("x.pt").model.parameters())
    first, second = err.splitlines()
    assert code == 0 and first == (
        f"Training cifar_resnet8, {count:,} parameters, on 40 of 1,297 images of digits (train), 10 classes, on cpu"
    )
    assert second == (
        "Training by sgd, learning rate 0.1 (step, 0.5 times it every 40), weight decay 0.0005, 2 epochs of batches of "
        "20, crop, seed 0"
    )
    left = [" left" in line for line in out.splitlines()]
    assert left == [True, False, False, False]
    duration = sys.modules["sresnet_cli.train"]._duration
    assert [duration(seconds) for seconds in (0.4, 119, 121, 7199, 7300)] == ["0 s", "119 s", "2 min", "120 min", "2 h"]


def test_a_run_may_be_asked_for_more_epochs(program):
    """To the weights of a run that was asked for them at once; a cosine schedule has other learning rates then."""
    for schedule in (("--schedule", "constant"), ("--schedule", "step", "--step-epochs", 1)):
        given = ("train", "cifar_resnet8", *TRAIN, *schedule)  # of two epochs
        for name, epochs in (("grown.pt", 1), ("grown.pt", 2), ("whole.pt", 2)):
            assert program(*given, "--epochs", epochs, "-o", name)[0] == 0
        grown, whole = content("grown.pt"), content("whole.pt")
        assert grown["epoch"] == grown["settings"]["epochs"] == len(grown["history"]) == 2
        assert all(torch.equal(value, whole["state_dict"][name]) for name, value in grown["state_dict"].items())
        code, _, err = program(*given, "--epochs", 1, "-o", "grown.pt")
        assert code == 1 and "epochs 1 (there 2); expected" in err
        os.remove("grown.pt"), os.remove("whole.pt")
    given = ("train", "cifar_resnet8", *TRAIN, "-o", "x.pt")
    assert program(*given)[0] == 0
    code, _, err = program(*given, "--epochs", 3)
    assert code == 1 and "epochs 3 (there 2), for which a cosine schedule has other learning rates" in err


def test_what_is_given_replaces_the_presets(program, tmp_path):
    cli = sys.modules["sresnet_cli.train"]
    images = replace(data(), spec="imagenet:/x")

    def settings(**given):
        unset = {field.name: None for field in fields(cli.Options)} | {"recompute": False}
        return cli._settings("ms_resnet34", images, cli.Options(**unset | given))

    chosen = settings(preset="paper", lr=0.2, amp=False)
    assert chosen == replace(s_resnet.training.preset("ms_resnet34", images), lr=0.2, amp=False)
    assert settings(optimizer="adamw").lr == 0.001
    assert settings(seed=3) == Training(seed=3)


def test_the_options_are_the_settings_of_training():
    """Each of the type that the setting has; which inputs are normalized, and how, is not for the command line."""
    cli = sys.modules["sresnet_cli.train"]
    asked, there = typing.get_type_hints(cli.Settings), typing.get_type_hints(Training)
    own = [name for name in there if name not in ("normalize_input", "preprocessing")]
    assert asked == {name: there[name] | None for name in own} | {"recompute": bool}


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (
            ("ms_resnet9",),
            1,
            "expected 6 n + 2 from 8 to 482, or ms_resnet18, ms_resnet34, ms_resnet104. Choose one, such as 8 or 14.",
        ),
        (("cifar_resnet8", "--timesteps", 2), 1, "timesteps, got 2 for an ANN"),
        (("cifar_resnet8", "--augment", "crop,cutout"), 2, "'cutout' is not one of crop"),
        (("cifar_resnet8", "--lr", "nan"), 1, "train: lr, got nan"),
        (("cifar_resnet8", "--lr", "1e30"), 1, "epoch 1, step 2: loss, got "),
        (("cifar_resnet8", "--preset", "paper"), 1, "whose recipe we do not know"),
        (("cifar_resnet8", "-o", "nowhere/x.pt"), 1, "no folder nowhere"),
        (("cifar_resnet8", "--tensorboard", "board", "--data", "nothing"), 1, "nothing there"),
        (("cifar_resnet8", "--gamma", 0.5), 2, "--gamma needs --schedule step"),
        (("cifar_resnet8", "--step-epochs", 5, "--schedule", "constant"), 2, "--step-epochs needs --schedule step"),
        (("cifar_resnet8", "--momentum", 0.5, "--optimizer", "adamw"), 2, "--momentum needs --optimizer sgd"),
        (("cifar_resnet8", "--validation", 5000), 1, "got 1297 and 1297 of them to keep apart"),
        (("cifar_resnet8", "--warmup", 9), 1, "warmup, got 9; expected at most the 2 epochs"),
        (("cifar_resnet8", "--data", "alone.npz"), 1, "got 1; expected at least 2"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(program, wrong, code, words):
    np.savez("alone.npz", x=np.zeros((20, 8, 8, 3), np.uint8), y=np.zeros(20, np.int64))
    got, out, err = program("train", wrong[0], *TRAIN, "-o", "x.pt", *wrong[1:])
    assert got == code and out == "" and words in err and unexpected(err).count("\n") == 1, err
    assert not Path("x.pt").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_first_epoch(program, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    code, out, err = program("train", "ms_resnet8", *TRAIN, "-o", "x.pt")
    assert code == 1 and out == "" and err.count("\n") == 1 and "x.pt: cannot be written, got no permission" in err


def test_danet_is_called_our_interpretation(program, tmp_path):
    code, _, said = program("train", "danet11", *TRAIN, "--timesteps", 2, "-o", "x.pt")
    assert code == 0 and "our interpretation" in said
    out = program.works("convert", "x.pt") + program.works("inspect", "x-trained-T2.snn")
    assert out.count("danet11 (our interpretation)") >= 2


ROTTEN = {
    "a momentum of another shape": lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.tensor(1.0)),
    "a momentum that is none": lambda c: c["optimizer"]["state"][0]["momentum_buffer"].fill_(float("nan")),
    "another momentum": lambda c: c["optimizer"]["param_groups"][0].update(momentum=0.1),
    "no momentum at all": lambda c: c["optimizer"]["param_groups"][0].pop("momentum"),
    "no word of dampening": lambda c: c["optimizer"]["param_groups"][0].pop("dampening"),
    "steps upwards": lambda c: c["optimizer"]["param_groups"][0].update(maximize=True),
    "a weight that is none": lambda c: c["state_dict"]["linear.weight"].view(-1)[:1].fill_(float("nan")),
    "an epoch too many": lambda c: c.update(epoch=c["epoch"] + 1),
    "an epoch in a text": lambda c: c.update(epoch="3"),
    "no history": lambda c: c.update(history=[]),
    "a loss that is none": lambda c: c["history"][0].update(loss=float("nan")),
    "tensors for settings": lambda c: c["settings"].update(lr=torch.ones(2)),
    "data in a text": lambda c: c.update(data="x"),
    "a scale in a text": lambda c: c.update(scaler={"scale": "x"}),
    "gigabytes of one number": lambda c: c.update(more=torch.zeros(1).expand(2**36)),
    "a sparse tensor": lambda c: c.update(more=torch.eye(3).to_sparse()),
    "a dict that holds itself": lambda c: c["data"].update(more=c["data"]),
}


@pytest.mark.parametrize("what", ROTTEN)
def test_what_does_not_fit_together_is_not_gone_on_with(tmp_path, what):
    path = tmp_path / "x.pt"
    trained(path, settings=replace(BRIEF, epochs=2))
    there = content(path)
    ROTTEN[what](there)
    with contextlib.suppress(ValueError, RuntimeError):  # sealed again, where that can be
        there["digest"] = saved.digest({name: value for name, value in there.items() if name != "digest"})
    torch.save(there, path)
    before = path.read_bytes()
    with pytest.raises(SResNetError, match=r"is there, |holds another run") as caught:
        trained(path, settings=replace(BRIEF, epochs=2))
    assert path.read_bytes() == before and str(caught.value).isprintable()
