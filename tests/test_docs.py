"""README and docs keep their word: their Python and their commands run, their tables are those of the results."""

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import narrow_resnet18, randomized
from PIL import Image
from sresnet_cli.__main__ import sresnet
from test_event_data import GESTURES, make_gestures, save_network

import s_resnet
from s_resnet.data import EVENT_BINS
from s_resnet.data.wordnet import imagenet_ids
from s_resnet.models import CifarResNet

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README, INDEX = ROOT / "README.md", DOCS / "index.md"
# Pages of the API hold nothing but the name of a namespace: test_site.py.
PAGES = [README, *sorted(page for page in DOCS.rglob("*.md") if page.parent.name != "api")]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REMOVED = re.compile(r"^### Removed\n.*?(?=^##)", re.DOTALL | re.MULTILINE)  # of a changelog: names that are gone
# What is run elsewhere: the two commands by .ci/run, several processes by test_distributed.
ELSEWHERE = ("make demo", "make test", "torchrun ")
NEEDS = {
    "export.md": "nir",
    "model-files.md": "onnx",
    "events.md": "tonic",
    "first-network.md": "sklearn",
}  # what a page wants installed
CLASSES = ("airplane", "bird", "cat", "dog")


def name(page):
    """What a test of a page is called."""
    return str(page.relative_to(ROOT))


def with_blocks(*languages):
    """The pages that have such blocks."""
    return [page for page in PAGES if blocks(page, *languages)]


def blocks(page, *languages):
    """The fenced blocks of a page in one of these languages, in order."""
    return [(language, text) for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(page):
    """Every command of a page that starts with sresnet."""
    found = []
    for language, text in blocks(page, "sh", "console"):
        lines = text.splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += [line for line in lines if line and not line.startswith("#")]
    return found


def installed(page, folder):
    """Skip where a page wants what is not here; make what this page alone wants."""
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name], reason=f"{NEEDS[page.name]} is not installed")
    if page.name == "model-files.md":
        import onnx_models

        (folder / "network.onnx").write_bytes(onnx_models.small_resnet(len(CLASSES)).SerializeToString())
    if page.name == "events.md":
        save_network(folder / "gestures.snn", GESTURES, EVENT_BINS["dvsgesture"])
        make_gestures(folder / "recordings")
    if page.name == "imagenet.md":
        small = randomized(CifarResNet(8, num_classes=1000, width=4))
        torch.save(small.state_dict(), folder / "resnet50.pth")
        for number, (name, wnid) in enumerate(zip(CLASSES, imagenet_ids(), strict=False)):
            for place in (f"ilsvrc/train/{wnid}", f"ilsvrc/val/{wnid}", f"some-classes/{wnid}"):
                shutil.copytree(folder / "cifar10" / ("train" if "train" in place else "test") / name, folder / place)
            if number > 1:
                shutil.rmtree(folder / "some-classes" / wnid)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small stand-ins for the files that the pages name: checkpoints, and images in class folders."""
    folder, generator = tmp_path_factory.mktemp("files"), torch.Generator().manual_seed(0)
    for split, size, count in (
        ("cifar10/train", 32, 8),
        ("cifar10/test", 32, 2),
        ("photos/train", 72, 3),
        ("photos/val", 72, 1),
    ):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(40 * label, 100 + 40 * label, (size, size, 3), generator=generator)
                image = Image.fromarray(pixels.to(torch.uint8).numpy())
                image.save(folder / split / name / f"{index}.png")
    torch.save(randomized(CifarResNet(8, num_classes=4, width=4)).state_dict(), folder / "resnet20.th")
    torch.save(narrow_resnet18(4).state_dict(), folder / "resnet18.pth")
    return folder


@pytest.fixture
def world(files, tmp_path, monkeypatch, request):
    """A folder of a page's own with copies of those files; where a page speaks of reports, charts come out empty."""
    if "report" in request.node.callspec.params["page"].read_text():
        request.getfixturevalue("unrendered")
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_the_python_of_a_page_runs(page, world):
    installed(page, world)
    names = {}
    for _, text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_the_commands_of_a_page_run(page, world, request):
    installed(page, world)
    if NEEDS.get(page.name) == "sklearn":
        request.getfixturevalue("few_digits")
    ran = 0
    for command in commands(page):
        if command.startswith(ELSEWHERE):
            continue
        program, *arguments = shlex.split(command, comments=True)
        assert program == "sresnet", command
        assert sresnet.main(arguments, prog_name="sresnet", standalone_mode=False) in (None, 0), command
        ran += 1
    assert ran


def test_there_is_something_to_run():
    assert sum(len(commands(page)) for page in PAGES) >= 30
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 15
    assert {page.parent.name for page in with_blocks("python", "sh", "console")} >= {"tutorials", "how-to"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_command_hides_where_it_is_not_run(page):
    for language, text in BLOCK.findall(page.read_text()):
        assert language in ("", "sh", "console", "python"), language
        if not language:
            for line in text.splitlines():
                assert not line.removeprefix("$ ").startswith("sresnet "), line
                assert not line.startswith(("torchrun", "make")) or line.startswith(ELSEWHERE), line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_that_a_page_names_are_there(page):
    text = page.read_text()
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("http")]
    named = re.findall(r"`((?:docs|benchmarks|examples|s_resnet|tests)/[\w./-]+)`", text)
    for target in linked:
        assert (page.parent / target).exists(), target
    for target in named:
        assert (ROOT / target).exists(), target
    assert linked or named


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_names_of_the_package_that_a_page_uses_are_public(page):
    text = REMOVED.sub("", page.read_text())
    for dotted in set(re.findall(r"\bs_resnet(?:\.\w+)+", text)) - {"s_resnet.json"}:  # a file of torch.export
        found = s_resnet
        for part in dotted.split(".")[1:]:
            assert not hasattr(found, "__all__") or part in found.__all__, dotted
            found = getattr(found, part)


def kind(line):
    """What a line of Markdown belongs to: a fence, a table, a list, a comment, or text."""
    marks = {"fence": "```", "table": r"\|", "list": r"([*-]|\d+\.) |  ", "comment": "<!--"}
    return next((name for name, mark in marks.items() if re.match(mark, line)), "text" if line.strip() else "")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tables_lists_and_blocks_stand_alone(page):
    """A blank line before and after each: the site's Markdown needs it, other readers forgive."""
    kinds = [kind(line) for line in BLOCK.sub("```\n```", page.read_text()).splitlines()]
    pairs = {(a, b) for a, b in pairwise(kinds) if a and b and a != b and "comment" not in (a, b)}
    assert not pairs


def test_every_page_is_found_from_the_first_one():
    """No page lies outside the four kinds, and the index links to each."""
    found = {DOCS / target for target in re.findall(r"\]\(([^)#:]+\.md)\)", INDEX.read_text())}
    assert found == set(PAGES) - {README, INDEX}
    assert {page.parent.name for page in found} == {"tutorials", "how-to", "reference", "explanation"}


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 100


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "RELEASE.md", "SECURITY.md", "docs/explanation/architecture.md"])
def test_files_that_a_page_for_builders_names_are_there(page):
    """From the root or from the package; NAME stands for a new one."""
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", (ROOT / page).read_text())
    named = [target for target in named if "NAME" not in target]
    assert named and not [t for t in named if not (ROOT / t).exists() and not (ROOT / "s_resnet" / t).exists()]


def test_the_version_is_the_same_everywhere():
    """In the citation with the date of the newest release, above which there is a place for what comes next."""
    sections = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = dict(re.findall(r"^(version|date-released): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert sections[:2] == [("Unreleased", ""), (s_resnet.__version__, cited["date-released"])]
    assert cited["version"] == s_resnet.__version__


def keys(value):
    """Every key of a JSON value, at any depth, without names of layers."""
    if isinstance(value, dict):
        yield from value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(below)


def test_every_key_of_the_results_is_on_its_page():
    text = (DOCS / "reference" / "json.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    batches = [(torch.rand(32, 3, 16, 16), torch.arange(32) % 4)]
    snn = s_resnet.convert(randomized(CifarResNet(8, num_classes=4)), batches, "s-resnet", timesteps=4)
    settings = s_resnet.analysis.EvaluationSettings(early_exit=0.9)
    found = [s_resnet.evaluate(snn, batches, 4, settings, at=[2, 4]), s_resnet.verify(snn, batches, 4)]
    for result in found:
        written = set(keys(result.to_dict())) - {"loader"}
        assert len(written) > 20 and not written - named


def test_tables_are_those_of_the_results():
    checked = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
