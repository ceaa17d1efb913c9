"""A comparison in every form: figures come back unrounded, names cannot break out, the page needs nothing else."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import s_resnet
from s_resnet.analysis import Candidate, Measured, compare
from s_resnet.errors import InvalidData
from s_resnet.report import FORMS, comparison_form, comparison_text, write_comparison

NASTY = "50%_a&b|<script>*`[x](y)\x1b"
ROOT = Path(__file__).resolve().parents[2]


def candidate(name, wrong, latency, **others):
    given = tuple(int(place < wrong) for place in range(40))
    others = {"timesteps": latency, "end_to_end_steps": latency, "levels": latency, "bits": 1.0, **others}
    costs = {"seconds": 0.001 * latency, "synops": 1e5 * latency, "macs": 1e4, "ann_macs": 2e6, "run_on": "cpu"}
    return Candidate("net", name, "snn", latency=latency, answers=given, **others, **costs)


@pytest.fixture(scope="module")
def found():
    ann = Candidate("net", "ANN", "ann", answers=(0,) * 40)
    rivals = [
        Candidate("net", f"ANN, {n + 1} levels", "quantized", levels=n, answers=(0,) * 35 + (1,) * 5) for n in (4, 8)
    ]
    shown = [candidate(NASTY, 6, 4), candidate(NASTY, 2, 8, fitted=False), candidate("bad", 30, 4)]
    other = Candidate("other", "mine.snn", "snn", answers=(0,) * 40, timesteps=2, end_to_end_steps=30, levels=2)
    missing = [Candidate("net", "late", "snn", latency=4, reason="answers after 7 steps")]
    return compare([Measured((0,) * 40, (ann, *rivals, *shown, other), data="digits")], missing)


def test_the_form_is_that_of_the_ending(found, tmp_path):
    for suffix, form in ((".txt", "text"), (".MD", "markdown"), (".tex", "latex"), (".csv", "csv"), (".html", "html")):
        assert comparison_form(tmp_path / f"table{suffix}") == form
        if form != "html":  # which has the time in it
            write_comparison(found, tmp_path / f"table{suffix}", "sresnet compare")
            assert (tmp_path / f"table{suffix}").read_text() == comparison_text(found, form, "sresnet compare")
    with pytest.raises(InvalidData, match=re.escape("ending '.doc'; expected one of .txt, .md")):
        write_comparison(found, tmp_path / "table.doc")
    with pytest.raises(InvalidData, match="form 'word'"):
        comparison_text(found, "word")


def test_csv_and_json_have_every_figure_unrounded(found):
    entry = json.loads(comparison_text(found, "json", "sresnet compare x"))
    assert entry["command"] == "sresnet compare x" and entry["images"] == 40 and len(entry["rows"]) == len(found.rows)
    lines = list(csv.DictReader(comparison_text(found, "csv").splitlines()))
    for line, row in zip(lines, entry["rows"], strict=True):
        low, high = row["top1_interval"] or ("", "")
        assert (line["top1_interval_low"], line["top1_interval_high"]) == (str(low), str(high))
        for name in ("network", "timesteps", "top1", "drop", "synops", "seconds", "best", "reason"):
            assert line[name] == ("" if row[name] is None else str(row[name]))
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "reference" / "json.md").read_text()))
    assert not {*entry, *entry["rows"][0]} - named


def test_tables_of_papers_are_whole_and_names_stay_in_their_cells(found):
    latex = comparison_text(found, "latex", "sresnet compare x_y")
    for table in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", latex, re.DOTALL):
        columns = len(re.search(r"tabular\}\{([lr]+)\}", table)[1])
        body = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len(body) >= 2 and {len(re.findall(r"(?<!\\)&", line)) for line in body} == {columns - 1}
    assert r"50\%\_a\&b|\textless{}script\textgreater{}*`[x](y)?" in latex and r"\textbf{85.00}" in latex
    assert r"$+15.00$ [$" in latex and latex.count(r"\begin{tabular}") == 2
    markdown = comparison_text(found, "markdown", "sresnet compare x_y")
    table = [line for line in markdown.splitlines() if line.startswith("| ")]
    net = table[: 2 + len(found.of("net"))]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in net}) == 1
    assert r"50%\_a&b\|\<script\>\*\`\[x\](y)?" in markdown and "**85.00** [" in markdown
    assert "late at E = 4: answers after 7 steps." in markdown.replace("\\", "")


class Page(HTMLParser):
    """The elements of a page, and whether they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_one_file_with_its_charts_in_the_colors_of_its_reader(found):
    text = comparison_text(found, "html", "sresnet compare x")
    page = Page(text)
    assert "prefers-color-scheme: dark" in text and not re.search(r"https?://|@import|url\(", text)
    assert not [tag for tag, attrs in page.found if tag in ("script", "img", "link") or "src" in attrs]
    drawings = [attrs for tag, attrs in page.found if tag == "svg" and attrs.get("role") == "img"]
    assert len(drawings) == 4 and all(one["aria-label"].startswith("Top-1 accuracy over ") for one in drawings)
    marks = [attrs for tag, attrs in page.found if attrs.get("class") == "mark"]
    assert len(marks) == 3 * 4 + 2, "three networks in every chart, quantized ANNs over bits"
    assert "50%_a&b|<script>*`[x](y)?" in page.text, "a name is text"
    assert "Within 8 steps" in page.text and "Within 4 steps" in page.text and "sresnet compare x" in page.text
    cells = [attrs for tag, attrs in page.found if tag == "td" and "colspan" not in attrs]
    assert cells and all(attrs["data-label"] for attrs in cells), "on a phone each cell has its title"
    assert page.text.count("answers after 7 steps") == 2, "in its row and below the table"


def test_points_stand_where_their_figures_are():
    """Twice the latency is the same distance on every doubling, and the best is above."""
    rows = [candidate("a", wrong, latency) for wrong, latency in ((20, 4), (10, 8), (5, 16))]
    shown = compare([Measured((0,) * 40, tuple(rows))]).rows
    drawing = s_resnet.report.comparison_charts.chart(shown, s_resnet.report.comparison_charts.AXES[0])
    spots = [tuple(map(float, spot.split(","))) for spot in re.search(r'points="([^"]+)"', drawing)[1].split()]
    (x4, y4), (x8, y8), (x16, y16) = spots
    assert x8 - x4 == pytest.approx(x16 - x8, abs=0.2) and x4 < x8
    assert y4 > y8 > y16, "an SVG counts from the top"
    assert (y4 - y8) / (y8 - y16) == pytest.approx(0.25 / 0.125, rel=0.02)


def test_every_form_has_a_test_here():
    assert set(FORMS) == {"text", "markdown", "latex", "csv", "json", "html"}
