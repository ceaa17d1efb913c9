"""The site is built in strict mode, with a page for every namespace, and needs no other host to be read."""

import html
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
from sresnet_cli.__main__ import sresnet

from s_resnet.frontend.weights.architectures import WORDS
from s_resnet.frontend.weights.layouts import LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "reference" / "api"


def public(name):
    """What a module lists in its ``__all__``: modules, and the rest."""
    module = importlib.import_module(name)
    shown = getattr(module, "__all__", [])
    modules = [key for key in shown if inspect.ismodule(getattr(module, key))]
    return modules, [key for key in shown if key not in modules and key != "__version__"]


def namespaces(name="s_resnet"):
    """Every module that one reaches by public names."""
    yield name
    for below in public(name)[0]:
        yield from namespaces(f"{name}.{below}")


PAGES = {name: name.removeprefix("s_resnet.") + ".md" for name in namespaces()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; what strict mode finds fails here."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert built.returncode == 0 and not built.stderr.strip(), built.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser fetches to show a page: scripts, styles, pictures and frames, not links to follow."""

    def __init__(self):
        super().__init__()
        self.addresses, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.addresses += [attrs[key] for key in ("src", "srcset") if attrs.get(key)]
        if tag == "link" and attrs.get("href"):
            self.addresses.append(attrs["href"])


def parsed(page):
    found = Fetched()
    found.feed(page.read_text())
    return found


def test_every_namespace_has_a_page_that_holds_nothing_else():
    assert len(PAGES) > 15 and {page.name for page in API.glob("*.md")} == set(PAGES.values())
    for name, page in PAGES.items():
        assert (API / page).read_text() == f"::: {name}\n"


@pytest.mark.parametrize("space", PAGES)
def test_a_page_shows_every_public_name(site, space):
    shown = parsed(site / "reference" / "api" / PAGES[space].replace(".md", ".html")).ids
    assert not {space, *(f"{space}.{name}" for name in public(space)[1])} - shown


def test_no_page_needs_another_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not [address for address in parsed(page).addresses if re.match(r"(https?:)?//", address)], page


def test_the_page_of_the_command_line_has_every_command_and_option(site):
    text = re.sub(r"<[^>]+>", "", (site / "reference" / "command-line.html").read_text())
    assert len(sresnet.commands) >= 8
    for name, command in sresnet.commands.items():
        assert f"Usage: sresnet {name} " in text
        for option in command.params:
            assert not isinstance(option, click.Option) or option.hidden or option.opts[-1] in text


def test_the_page_of_the_checkpoints_has_every_layout_and_word(site):
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference" / "checkpoints.html").read_text()))
    assert all(layout.name in text and layout.example.split(", ")[-1] in text for layout in LAYOUTS)
    assert all(re.search(rf"\b{word}\b", text) for word in WORDS)


def test_docstrings_announce_blocks_by_one_colon(site):
    """Rest's double colon and roles are for readers of the source."""
    pages = sorted((site / "reference" / "api").glob("*.html"))
    text = "".join(page.read_text() for page in pages)
    assert len(pages) == len(PAGES) and "::</p>" not in text and ":func:" not in text
