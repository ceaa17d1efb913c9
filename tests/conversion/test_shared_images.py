"""Two processes that share the calibration images, for real: they make the network that one makes."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import images
from forks import PATIENCE, context, words_to
from test_fitting import model

import s_resnet
from s_resnet.conversion import Auto, layerwise, least_squares, spill

COUNT = 37  # one process has an image more
RECIPES = {
    "calibrated": 4,
    "phased": 4,
    "multilevel": 2,
    "calibrated-constant": 5,
    "s-resnet": 8,
    "auto": 4,
    "phased trained": 4,
    "signed trained": 4,
}
# Rooms for all images, and for about three of them in the largest layer.
ROOMS = {"large": {}, "small": {"ROOM": 3 * 2048 * 4, "PART": 3 * 2048 * 4}}
# What is trained begins with what the recipe makes in a large room.
ASKED = [*((name, "large") for name in RECIPES if name != "phased"), ("calibrated", "small"), ("phased", "small")]


def made(recipe, room, mine):
    """The network that this process makes of its images."""
    for name, value in ROOMS[room].items():
        setattr(layerwise, name, value)
    if room == "small":
        spill.ROOM, least_squares.ROOM = 1000, 5000
    x = images(COUNT, 16, seed=3)[mine]
    labels = torch.arange(COUNT)[mine] % 10
    batches = list(zip(x.split(5), labels.split(5), strict=True))
    (name, _, trained), steps = recipe.partition(" "), RECIPES[recipe]
    wished = Auto(latency=steps) if name == "auto" else s_resnet.RECIPES[name].at(steps)
    wished = wished.reconstructed(steps=3, joint=3) if trained else wished
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return s_resnet.convert(model(), batches, wished, device="cpu")


def as_rank(rank, port, folder, asked):
    """One of two processes: makes every network, and writes what it is."""
    words_to(folder, rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for recipe, room in asked:
        snn = made(recipe, room, s_resnet.runtime.shard(range(COUNT), rank, 2))
        s_resnet.save(snn, Path(folder) / f"{recipe}-{room}-{rank}.snn")
    few = images(1, 16, seed=3)[rank:]
    for recipe, batches in (("phased", [few] if rank == 0 else []), ("no such", [few])):
        try:
            s_resnet.convert(model(), batches, recipe, device="cpu")
        except s_resnet.SResNetError as error:
            sys.stderr.write(json.dumps([recipe, str(error)]) + "\n")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of what both processes made, and what each said."""
    folder = tmp_path_factory.mktemp("shared")
    fork = context()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store  # the first process listens there
    processes = [fork.Process(target=as_rank, args=(rank, port, folder, ASKED)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
        process.join()
    said = [(folder / f"err{rank}").read_text() for rank in range(2)]
    assert [process.exitcode for process in processes] == [0, 0], said
    return folder, said


def alone(recipe, room):
    before = {(module, name): getattr(module, name) for module in (layerwise, spill, least_squares)
              for name in ("ROOM", "PART") if hasattr(module, name)}  # fmt: skip
    try:
        return made(recipe, room, list(range(COUNT)))
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


@pytest.mark.parametrize(("recipe", "room"), ASKED)
def test_two_processes_make_the_network_that_one_makes(shared, recipe, room):
    """Statistics to the last bit; what is fitted to sums of float numbers but for rounding."""
    folder, _ = shared
    first, second = (s_resnet.load(folder / f"{recipe}-{room}-{rank}.snn") for rank in range(2))
    assert first.provenance == second.provenance
    assert all(torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))
    one = alone(recipe, room)
    mine, theirs = one.provenance, first.provenance
    assert mine.calibration == theirs.calibration
    first_check, check = theirs.check, mine.check
    assert first_check.confidence == pytest.approx(check.confidence)
    assert (first_check.images, first_check.right, first_check.notes) == (check.images, check.right, check.notes)
    assert mine.calibration.images + (mine.calibration.held_out or 0) == COUNT
    if recipe == "auto":
        tried = [[(trial.recipe, trial.agreement) for trial in each.choice.trials] for each in (mine, theirs)]
        assert tried[0] == tried[1]
    for name, value in one.tensors().items():  # a spike that rounding moves changes a mean over 37 images by so much
        torch.testing.assert_close(first.tensors()[name], value, rtol=1e-3, atol=1e-3)
    if recipe == "s-resnet":  # nothing is fitted to sums
        assert all(torch.equal(first.tensors()[name], value) for name, value in one.tensors().items())


def test_an_error_is_the_same_in_both(shared):
    first, second = ([json.loads(line) for line in said.splitlines() if line.startswith("[")] for said in shared[1])
    assert first == second and [recipe for recipe, _ in first] == ["phased", "no such"]
    assert "a process without images to fit to" in first[0][1]
