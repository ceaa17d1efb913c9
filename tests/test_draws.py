"""What tests draw is the same in every run: torch's and Python's generators by a seed, hypothesis without chance."""

import random
import re
from pathlib import Path

import pytest
import torch
from conftest import SEED

TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


@pytest.fixture(scope="module")
def drawn():
    return torch.rand(3), random.random()


def test_fixtures_and_tests_draw_from_the_seed(drawn):
    generator, chance = torch.Generator().manual_seed(SEED), random.Random(SEED)
    assert torch.equal(drawn[0], torch.rand(3, generator=generator)) and drawn[1] == chance.random()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=generator)) and random.random() == chance.random()


def test_hypothesis_takes_the_same_examples_every_time():
    found = [(path.name, call) for path in TESTS for call in re.findall(r"@settings\([^)]*\)", path.read_text())]
    assert len(found) >= 8 and not [(name, call) for name, call in found if "derandomize=True" not in call]
