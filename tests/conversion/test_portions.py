"""Images in parts that fit in memory: what is held stays below the limit, and no result depends on it."""

import warnings

import pytest
import torch
from conftest import images, randomized
from test_fitting import model, same

from s_resnet import RECIPES, convert
from s_resnet.conversion import Auto, layerwise, portions
from s_resnet.conversion.layerwise import Pairs
from s_resnet.conversion.spill import Once
from s_resnet.errors import InvalidData
from s_resnet.models import CifarResNet
from s_resnet.runtime import memory, memory_limit

MB = 10**6
REST = 500 * MB  # what the process holds besides


@pytest.fixture
def held(monkeypatch):
    """A process that always holds so much, where 4 GB are free."""
    monkeypatch.setattr(memory, "held", lambda *_: REST)
    monkeypatch.setattr(memory, "free", lambda *_: 4000 * MB)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_depends_on_the_limit(held, monkeypatch, recipe):
    """With room for one image of the largest layer, and with room for all."""
    x = images(24, 16, seed=3)
    made, sizes, seen = [], [], portions.analog_images

    def noted(graph, images, where):
        sizes.append(seen(graph, images, where))
        return sizes[-1]

    monkeypatch.setattr(portions, "analog_images", noted)
    for limit in (4000, 502):
        with memory_limit(int(limit * MB)):
            made.append(convert(model(), [x], recipe, timesteps=4))
        assert (max(sizes) < 24) == (limit < 1000), sizes
        sizes.clear()
    assert made[0].provenance.calibration == made[1].provenance.calibration
    for name, value in made[0].tensors().items():
        torch.testing.assert_close(made[1].tensors()[name], value, rtol=1e-4, atol=1e-5)


def test_where_not_one_image_fits_the_least_that_would_do_is_said(held):
    with memory_limit(REST + 1000), pytest.raises(InvalidData) as refused, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(model(), [images(8, 16)], "phased", timesteps=4)
    assert 'one image takes 1MB; expected 501MB at least. Pass memory_limit("501MB")' in str(refused.value)


@pytest.mark.filterwarnings("ignore")
def test_the_least_that_is_said_to_do_does(held):
    """For the whole conversion: a pass that needs more says so in turn."""
    limit, said = REST + 1000, []
    while True:
        try:
            with memory_limit(limit):
                convert(model(), [images(8, 16)], "phased", timesteps=4)
            break
        except InvalidData as refused:
            limit = memory.budget(str(refused).rpartition('Pass memory_limit("')[2].partition('"')[0])
            said.append(limit)
    assert said == sorted(set(said)) and len(said) < 4


# ---- what is kept ----


def pairs_of(limit, made):
    def of(part):
        made.append(part.start)
        return torch.full((1, 2, 1000), float(part.start)), torch.zeros(2)

    return Pairs([[slice(0, 2)], [slice(2, 4), slice(4, 6)], []], of, limit)


def test_what_fits_is_computed_once(monkeypatch):
    made = []
    monkeypatch.setattr(memory, "held", lambda *_: REST + 8000 * len(made))
    each = layerwise.SPARE * (8000 + 8)
    for limit, wanted in ((0, [0, 2, 4] * 2), (REST + 8000 + each, [0, 2, 4, 2, 4]), (float("inf"), [0, 2, 4])):
        made.clear()
        pairs = pairs_of(limit, made)
        for _ in range(2):
            assert [float(currents.mean()) for currents, _ in pairs] == [0, 2, 4]
        assert made == wanted and len(pairs) == 3
        assert [len(list(group)) for group in pairs.groups()] == [1, 2, 0]


@pytest.mark.parametrize("counts", [[40], [20, 20], [14, 13, 13], [1]])
@pytest.mark.parametrize("each", [1, 2**20, 2**22, 2**25])
def test_groups_depend_on_the_images_and_not_on_processes(monkeypatch, counts, each):
    total, world, found = sum(counts), len(counts), []
    for rank in range(world):
        monkeypatch.setattr(layerwise, "rank_and_world_size", lambda rank=rank: (rank, world))
        groups = layerwise._groups(counts, each)
        assert all(part.stop - part.start <= max(1, layerwise.PART // each) for group in groups for part in group) or (
            len(groups) == 1
        )
        mine = [[i * world + rank for part in group for i in range(part.start, part.stop)] for group in groups]
        assert [i for group in mine for i in group] == list(range(rank, total, world))
        found.append(mine)
    together = [sorted(i for mine in found for i in mine[at]) for at in range(len(found[0]))]
    monkeypatch.setattr(layerwise, "rank_and_world_size", lambda: (0, 1))
    alone = [[i for part in group for i in range(part.start, part.stop)] for group in layerwise._groups([total], each)]
    assert together == alone and len(alone) <= layerwise.GROUPS


# ---- images are read once ----


class Counting(list):
    """Batches that count how often they are read."""

    read = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.read += 1
            yield batch


def test_batches_come_back_as_they_were():
    given = [(images(3, 8, seed=1), torch.tensor([1, 2, 0])), images(2, 8, seed=2), (images(1, 12, seed=3), ["cat"])]
    counting = Counting(given)
    once = Once(counting)
    assert next(iter(once)) is given[0]  # whoever stops early takes nothing from the others
    for _ in range(3):
        first, second, third = once
        assert torch.equal(first[0], given[0][0]) and torch.equal(first[1], given[0][1])
        assert torch.equal(second, given[1])
        assert torch.equal(third[0] if isinstance(third, tuple) else third, given[2][0])
    assert counting.read == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", [RECIPES["calibrated-lagged"].at(2), Auto(latency=2)], ids=["one", "auto"])
def test_a_conversion_decodes_each_image_once(recipe):
    """But for the first batch, by which the network is traced."""
    batches = Counting(images(4, 8, seed=part) for part in range(5))
    convert(randomized(CifarResNet(8, width=4)), batches, recipe)
    assert batches.read == 5 + 1


def test_the_networks_of_the_tests_are_alike():
    assert same(*(convert(model(), [images(8, 16)], "phased", timesteps=4) for _ in range(2)))
