"""The page and its JSON: figures against independent computation, safe and well-formed HTML, mistakes in one line."""

import base64
import itertools
import json
import math
import random
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import jinja2
import pytest
import torch
from conftest import images, randomized
from test_cli import network as network  # fixtures
from test_cli import program as program
from test_verify import build, conv, scalar
from trained_networks import T, trained

import s_resnet
from s_resnet import RECIPES, SResNetError, convert
from s_resnet.analysis import count_operations, energy
from s_resnet.data import Preprocessing
from s_resnet.data.intervals import Z, paired_difference, wilson
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron
from s_resnet.graph.provenance import SeenData, Source
from s_resnet.models import CifarResNet
from s_resnet.report import ReportSettings, measure, write_page
from s_resnet.report.page import environment
from s_resnet.runtime.display import Table

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
HOSTILE = ("<script>alert(1)</script>", "\"a' onload=b", "x & y </dd>", "$\\alpha$ \u202e", "\udcff")
VOID = {"meta", "img", "br", "hr", "link", "input", "col", "base"}


class Page(HTMLParser):
    """What a page holds; parsing it fails unless what is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.words)


def batches(count=20, size=8, classes=5, batch=8, seed=3):
    """Images with labels, several batches, the last one smaller."""
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    return list(zip(images(count, size, seed=seed).split(batch), labels.split(batch), strict=True))


def small(recipe="s-resnet", timesteps=4, seed=0, classes=5, weights="float32"):
    model = randomized(CifarResNet(8, num_classes=classes, width=4), seed)
    snn = convert(model, [images(16, 8)], RECIPES[recipe].at(timesteps).with_weights(weights))
    preprocessing = Preprocessing(8, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    names = tuple(f"kind {index}" for index in range(classes))
    return snn.with_provenance(preprocessing=preprocessing, classes=names)


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The page of one network, what it was made of, and what was written."""
    snn, folder = small(timesteps=6), tmp_path_factory.mktemp("paper")
    found = measure(snn, batches(), 6, ReportSettings(sha256="abc123"), network="tiny.snn")
    write_page([found], folder, "sresnet report tiny.snn -o DIR")
    return snn, found, folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The page of a phased and a signed network."""
    folder = tmp_path_factory.mktemp("pair")
    named = {"phased.snn": small("phased"), "signed.snn": small("signed")}
    write_page((measure(snn, batches(), 4, network=name) for name, snn in named.items()), folder)
    return folder


def read(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    return Page(text), text, json.loads((folder / "report.json").read_text())


# ---- figures against independent computation


def test_answers_and_accuracies_are_those_of_the_networks(paper):
    snn, _, folder = paper
    entry = read(folder)[2]["networks"][0]
    x, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    ann = snn.run(x)
    for row in entry["evaluation"]["snn"]:
        answers = snn(x, row["timesteps"])
        assert row["top1"] == pytest.approx((answers.argmax(1) == labels).double().mean().item())
        assert row["agreement"] == pytest.approx((answers.argmax(1) == ann.argmax(1)).double().mean().item())
    assert [row["timesteps"] for row in entry["evaluation"]["snn"]] == [1, 2, 4, 6]
    assert entry["evaluation"]["ann"]["top1"] == pytest.approx((ann.argmax(1) == labels).double().mean().item())
    first, second = answers.argmax(1), ann.argmax(1)
    right = {"both": 0, "snn_only": 0, "ann_only": 0, "neither": 0}
    for a, b, label in zip(first.tolist(), second.tolist(), labels.tolist(), strict=True):
        right[{(1, 1): "both", (1, 0): "snn_only", (0, 1): "ann_only", (0, 0): "neither"}[a == label, b == label]] += 1
    assert entry["answers"]["right"] == right and sum(right.values()) == 20
    lost = entry["evaluation"]["ann"]["top1"] - entry["evaluation"]["snn"][-1]["top1"]
    assert entry["drop"] == pytest.approx(lost) == entry["evaluation"]["snn"][-1]["drop"]
    assert entry["drop_interval"] == pytest.approx(entry["evaluation"]["snn"][-1]["drop_interval"])
    differ = [index for index in range(20) if first[index] != second[index]]
    assert entry["answers"]["disagreements"] == len(differ) > 0
    assert [example["place"] for example in entry["answers"]["examples"]] == differ[:12]
    for example in entry["answers"]["examples"]:
        index = example["place"]
        assert [example[who] for who in ("label", "ann", "snn")] == [labels[index], second[index], first[index]]
        assert example["ann_class"] == f"kind {second[index]}"
        assert example["snn_share"] == pytest.approx(answers[index].softmax(0).max().item(), rel=1e-4)
    wrong = [index for index in differ if labels[index] not in (first[index], second[index])]
    assert entry["answers"]["disagreements_both_wrong"] == len(wrong)


def test_the_other_figures_are_those_of_the_rooms_they_come_from(paper):
    snn, _, folder = paper
    entry = read(folder)[2]["networks"][0]
    operations = count_operations(snn, batches(), 6)
    assert entry["operations"] == json.loads(json.dumps(operations.to_dict()))
    assert entry["acs_per_ann_mac"] == pytest.approx(operations.total.acs / operations.total.ann.macs)
    assert entry["energy"] == json.loads(json.dumps(energy(operations).to_dict()))
    verified = s_resnet.verify(snn, batches(), 6, network="tiny.snn").to_dict()
    for layer in verified["layers"]:
        del layer["channels"]
    assert entry["verification"] == json.loads(json.dumps(verified))
    assert entry["end_to_end_steps"] == 6 and entry["alphabet"] == "binary" and entry["sha256"] == "abc123"
    scale = snn.provenance.calibration.scales
    (first, *_) = entry["shortcuts"]
    assert first["ratio"] == pytest.approx(scale["relu"] / scale[first["neuron"]], rel=1e-5)
    assert first["kind"] == "identity" and first["scale"] == pytest.approx(scale[first["neuron"]])
    for trace in entry["traces"]:
        (again,) = s_resnet.simulation.record(snn, batches()[0][0][:1], 6, [trace["layer"]], 24)
        assert [[step for step, _ in row] for row in trace["spikes"]] == [
            [int(step) + 1 for step in column.nonzero()] for column in again.spikes.T
        ]


def test_the_page_shows_the_figures_of_the_json(paper):
    page, _, report = read(paper[2])
    entry = report["networks"][0]
    last, ann = entry["evaluation"]["snn"][-1], entry["evaluation"]["ann"]
    for share in (last["top1"], last["agreement"], ann["top1"], *last["top1_interval"][1:]):
        assert f"{100 * share:.1f}%" in page.text
    assert f"{last['spikes_per_neuron']:.3f}" in page.text and "sresnet report tiny.snn -o DIR" in page.text
    for layer in entry["verification"]["layers"]:
        assert layer["name"] in page.text and f"{layer['rate']:.4f}" in page.text
    assert entry["verification"]["verdict"] in page.text and "estimate" in page.text.lower()
    assert f"{entry['operations']['total']['acs']:,.0f}" in page.text
    for word in ("relu_to_neuron", "abc123", "kind ", "percentile", "s-resnet", "torch"):
        assert word in page.text
    assert "nan" not in page.text.lower().split() and "None" not in page.text


def test_pixels_have_their_normalization_undone(paper):
    """A shown image, decoded, is the one that was evaluated."""
    from io import BytesIO

    import numpy as np
    from PIL import Image

    page, _, report = read(paper[2])
    place = report["networks"][0]["answers"]["examples"][0]["place"]
    (source,) = [img["src"] for img in page.all("img") if img["alt"].startswith(f"Image {place + 1}:")]
    shown = np.array(Image.open(BytesIO(base64.b64decode(source.partition(",")[2])))) / 255
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
    x = torch.cat([part for part, _ in batches()])[place].permute(1, 2, 0).numpy()
    assert np.abs(shown - (x * std + mean).clip(0, 1)).max() <= 0.5 / 255 + 1e-6


def test_pixels_of_gray_images_and_of_signals():
    from types import SimpleNamespace

    from s_resnet.data import AsStored, preprocessing_for
    from s_resnet.report.spikes_section import _pixels

    def shown(image, preprocessing):
        return _pixels(image, SimpleNamespace(provenance=SimpleNamespace(preprocessing=preprocessing)))

    gray = torch.arange(16.0).view(1, 4, 4) / 16
    seen = shown((gray - 0.4) / 0.2, preprocessing_for(4, (0.3, 0.4, 0.5), (0.1, 0.2, 0.3), gray=True))
    assert torch.equal(seen, (gray * 255).round().to(torch.uint8).permute(1, 2, 0).expand(4, 4, 3))
    signal = torch.tensor([[[-1.0, 0, 1]], [[3, 3, 3]]])  # a row of pixels for each channel
    assert shown(signal, AsStored((2, 3)))[:, :, 0].tolist() == [[0, 64, 128], [255, 255, 255]]


# ---- intervals


@pytest.mark.parametrize(("right", "images"), [(0, 10), (1, 10), (5, 10), (455, 500), (500, 500), (1, 1)])
def test_wilson_is_where_the_score_test_is_at_its_limit(right, images):
    """Its ends solve |p - q| = z sqrt(q (1 - q) / n), by bisection."""
    share = right / images

    def end(inside, outside):
        for _ in range(80):
            middle = (inside + outside) / 2
            far = abs(share - middle) > Z * math.sqrt(middle * (1 - middle) / images)
            inside, outside = (inside, middle) if far else (middle, outside)
        return inside

    assert wilson(right, images) == pytest.approx((end(share, 0.0), end(share, 1.0)), abs=1e-9)
    assert wilson(0, images)[0] == 0.0 and wilson(images, images)[1] == 1.0


@pytest.mark.parametrize("chances", [(0.85, 0.03, 0.06, 0.06), (0.5, 0.1, 0.1, 0.3), (0.9, 0.0, 0.05, 0.05)])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(chances):
    draw = random.Random(0)
    truth, hits = chances[1] - chances[2], 0
    for _ in range(600):
        drawn = draw.choices(range(4), chances, k=150)
        low, high = paired_difference(*(drawn.count(kind) for kind in range(4)))
        hits += low <= truth <= high
    assert 0.92 <= hits / 600 <= 1.0


def test_the_interval_of_a_difference_knows_that_the_images_are_the_same():
    low, high = paired_difference(450, 2, 5, 43)
    assert low < -3 / 500 < high and high - low < 0.04  # single intervals are 0.05 wide each
    assert paired_difference(450, 5, 2, 43) == pytest.approx((-high, -low))
    assert paired_difference(500, 0, 0, 0) == pytest.approx((-wilson_width(500), wilson_width(500)), abs=1e-12)


def wilson_width(images):
    return 1 - wilson(images, images)[0]


# ---- the file


@pytest.mark.parametrize("which", ["paper", "pair"])
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(which, request):
    found = request.getfixturevalue(which)
    folder = found if which == "pair" else found[2]
    page, text, _ = read(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.json"]
    assert text.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.all("meta") and any(m.get("name") == "viewport" for m in page.all("meta"))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) >= 8
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name, "data:")
            assert value.startswith("data:image/") or value == "data:" or (tag == "a" and value[1:] in ids), value
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r'src="data:[^"]*"', "", text).replace("DATA", ""))
    for img in page.all("img"):
        assert len(img["alt"]) > 10
        kind, _, content = img["src"].partition(";base64,")
        if kind == "data:image/svg+xml":
            drawing = base64.b64decode(content, validate=True)
            root = ElementTree.fromstring(drawing)
            assert root.tag == "{http://www.w3.org/2000/svg}svg" and not drawing.count(b"<!")
            links = [value for part in root.iter() for name, value in part.attrib.items() if name.endswith("href")]
            assert all(link.startswith("#") for link in links) and not re.search(rb"<(\w+:)?(script|image)", drawing)
    for region in page.all("div"):
        if region.get("class") == "scroll":
            assert region["tabindex"] == "0" and region["role"] == "region" and region["aria-label"]
    assert len(text) < 5e6
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_hostile_names_stay_names(tmp_path):
    """Of classes, of the file, of its source and in the command: nothing of them becomes markup."""
    snn = small(timesteps=2)
    source = Source(arch="<b>arch", name=HOSTILE[0], sha256="<i>")
    data = SeenData("<u>", extra={"<s>": "</table>"})
    snn = snn.with_provenance(classes=tuple(HOSTILE), source=source, data=data)
    name = "<img src=x onerror=alert(1)>$a_{\\$ \udce4.snn"
    found = measure(snn, batches(), 2, network=name)
    write_page([found, replace(found, network=f"2{name}")], tmp_path, f"sresnet '{HOSTILE[0]}'")
    page, text, report = read(tmp_path)
    assert not {"script", "b", "i", "u", "s"} & {tag for tag, _ in page.elements}
    assert not any("onerror" in attributes or "onload" in attributes for _, attributes in page.elements)
    assert "<script" not in text and HOSTILE[0] in page.text and "<b>arch" in page.text and "<u>" in page.text
    assert report["networks"][0]["network"] == name and report["networks"][0]["classes"] == list(HOSTILE)


def test_templates_escape_what_is_no_html():
    """Texts and attributes, in sentences, tables and captions; what is no letter is a mark."""
    templates = environment()
    shown = templates.from_string('<p title="{{ word }}">{{ word }}{{ "%s" % word }}{{ word ~ "!" }}</p>')
    assert shown.render(word='"<i>\udcff\x1b') == '<p title="&#34;&lt;i&gt;??">' + "&#34;&lt;i&gt;??" * 3 + "!</p>"
    macros = templates.get_template("macros.html.j2").module
    table = str(macros.table(Table(("a", "<u>"), (("<i>", "&"),)), "<caption>\udcff"))
    assert "&lt;i&gt;" in table and "&amp;" in table and "&lt;u&gt;" in table and "<i>" not in table
    assert table.count("<caption>") == 1 and table.count("&lt;caption&gt;?") == 2
    with pytest.raises(jinja2.UndefinedError):
        templates.from_string("{{ nowhere }}").render()


# ---- one, two, and special networks


def test_two_networks_are_in_every_chart_and_table(pair):
    page, text, report = read(pair)
    assert [entry["network"] for entry in report["networks"]] == ["phased.snn", "signed.snn"]
    first, second = (entry["evaluation"]["snn"][-1]["top1"] for entry in report["networks"])
    low, high = report["top1_difference_interval"]
    assert report["top1_difference"] == pytest.approx(first - second) and low <= first - second <= high
    assert "phased.snn at T = 4 against signed.snn at T = 4" in page.text
    bodies = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    assert len(bodies) >= 8
    constants = [body for body in bodies if "add float32" in body]
    nodes = [body for body in bodies if "node by node" in body]
    assert len(constants) == 1 and len(nodes) == 2
    for body in bodies:
        if body not in (*constants, *nodes):
            assert "phased.snn" in body and "signed.snn" in body
    for title in ("Top-1 accuracy", "Agreement", "Estimated energy"):
        (alt,) = [img["alt"] for img in page.all("img") if img["alt"].startswith(title)]
        assert "phased.snn" in alt and "signed.snn" in alt
    captions = [alt for img in page.all("img") if (alt := img["alt"]).count("Errors of each layer")]
    assert [alt.partition(".")[0] for alt in captions] == ["phased", "signed"]


def test_windows_and_alphabets_of_phased_and_signed_networks(pair):
    page, _, report = read(pair)
    phased, signed = report["networks"]
    layers = len(phased["verification"]["layers"])  # of which the stem's, whose input is constant, does not wait
    assert phased["end_to_end_steps"] == 4 * layers and phased["alphabet"] == "binary"
    assert signed["end_to_end_steps"] == 4 + layers - 1 and signed["alphabet"] == "signed"
    assert f"{4 * layers} steps" in page.text and "Spikes: signed" in page.text
    for entry in (phased, signed):
        for trace in entry["traces"]:
            assert {len(row) for row in trace["membrane"]} == {trace["lag"] + 4}
            steps = [step for row in trace["spikes"] for step, _ in row]
            assert min(steps) > trace["begins"] + trace["lag"]
            assert max(steps) <= trace["begins"] + trace["lag"] + 4 <= entry["end_to_end_steps"]
    assert any(amount < 0 for trace in signed["traces"] for row in trace["spikes"] for _, amount in row)


@pytest.mark.usefixtures("unrendered")
def test_networks_of_other_layers_are_shown_one_after_the_other(tmp_path):
    other = convert(randomized(CifarResNet(14, num_classes=5, width=4)), [images(16, 8)], timesteps=2)
    named = {"a.snn": small(timesteps=2), "b.snn": other}
    write_page([measure(snn, batches(), 2, network=name) for name, snn in named.items()], tmp_path)
    page, _, report = read(tmp_path)
    assert [len(entry["verification"]["layers"]) for entry in report["networks"]] == [7, 13]
    assert "layer3.1.relu_1" in page.text


def two_classes(**neuron):
    """A single neuron that the image itself drives, whose spikes speak for the first of two classes."""
    layers = ("conv", conv(1.0)), ("neuron", Neuron(torch.tensor(1.0), **neuron))
    return build(*layers, classifier=((1.0,), (-1.0,)))


@pytest.mark.usefixtures("unrendered")
def test_where_they_agree_everywhere_it_says_so(tmp_path):
    """Every answer is the first class."""
    found = measure(two_classes(), [(scalar(0.25, 0.5, 0.75), torch.zeros(3, dtype=torch.int64))], 4, network="one.snn")
    write_page([found], tmp_path)
    page, _, report = read(tmp_path)
    answers = report["networks"][0]["answers"]
    assert answers["disagreements"] == 0 and answers["examples"] == []
    assert "both give the same answer to all 3 images" in page.text and "100.0%" in page.text
    assert "No residual branches" in page.text and "class 0" in page.text


@pytest.mark.parametrize(
    ("neuron", "image", "shows"),
    [({}, 0.0, "0.0%"), ({"correction": torch.tensor(0.5)}, 0.0, "\N{INFINITY}"), ({}, 5.0, "1 of 1")],
    ids=["silent", "active of itself", "saturated"],
)
def test_figures_that_do_not_exist_or_are_at_their_limit(neuron, image, shows, tmp_path):
    """No spikes at all; an error where the ANN is silent, null in the JSON; a neuron at its largest count."""
    found = measure(
        two_classes(**neuron), [(scalar(image, image), torch.zeros(2, dtype=torch.int64))], 4, network="one.snn"
    )
    write_page([found], tmp_path)
    page, text, report = read(tmp_path)
    (layer,) = report["networks"][0]["verification"]["layers"]
    assert (layer["errors"]["total"] is None) == (shows == "\N{INFINITY}")
    assert f"<td>{shows}</td>" in text and "inf" not in page.text.split() and "nan" not in page.text.split()


@pytest.mark.usefixtures("unrendered")
def test_what_is_not_known_of_an_integer_network_is_said(tmp_path):
    snn = small("phased", weights="int8")
    found = measure(snn, batches(), 4, network="int8.snn")
    assert found.verification is None and found.operations is not None
    write_page([found], tmp_path)
    page, _, report = read(tmp_path)
    assert "got an integer network" in report["networks"][0]["missing"]["verification"]
    assert "Not available. verify: got an integer network" in page.text
    assert "Membranes are not recorded of integer networks" in page.text
    beside = measure(small("phased"), batches(), 4, network="float.snn")
    write_page([found, beside], tmp_path)
    assert "int8.snn: " in read(tmp_path)[0].text


def test_only_the_first_images_are_looked_at_closely():
    """128 of 150 for layers and operations, over batches that do not divide them; every answer counts."""
    found = measure(small(timesteps=1), batches(150, batch=60), 1)
    assert found.verification.images == found.operations.images == 128
    assert found.report.images == sum(found.answers.right) == 150
    assert len(found.answers.examples) <= 12 < found.answers.disagreements


# ---- directly trained networks


def written(folder, *networks):
    """The page, its text and its JSON, of (name, network, T)."""
    write_page([measure(snn, batches(), steps, network=name) for name, snn, steps in networks], folder)
    return read(folder)


@pytest.mark.parametrize("arch", ["ms_resnet8", "ds_resnet8"])
def test_a_trained_network_has_a_page_without_an_ann(tmp_path, arch):
    _, graph = trained(arch)
    page, _, entry = written(tmp_path, ("net.snn", graph, T))
    (found,) = entry["networks"]
    x, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    top1 = float((graph(x, T).argmax(1) == labels).double().mean())
    assert found["evaluation"]["snn"][-1]["top1"] == pytest.approx(top1)
    assert found["evaluation"]["ann"] is found["drop"] is found["answers"] is None
    assert found["evaluation"]["trained_for"] == T and found["shortcuts"] == []
    assert all(layer["errors"] is None for layer in found["verification"]["layers"])
    titles = {attributes.get("id") for attributes in page.all("section")}
    assert titles == {"headline", "accuracy", "layers", "spikes", "energy", "settings"}
    said = page.text.replace("as an ANN would make it", "").replace("there is no ANN", "")
    said = said.replace("The fair rival of a spiking network is the ANN quantized to equal bits", "")
    assert "ANN" not in said and f"directly trained for T = {T}" in said and "dormant" in said
    assert "dense MAC" in said and "Trained for" in said and "Drop from" not in said


@pytest.mark.usefixtures("unrendered")
def test_a_trained_network_at_another_number_of_steps(tmp_path):
    _, graph = trained("ms_resnet8")
    page, _, entry = written(tmp_path, ("net.snn", graph, 1))
    found = entry["networks"][0]
    x = torch.cat([part for part, _ in batches()])
    assert found["evaluation"]["snn"][0]["agreement"] == pytest.approx(
        float((graph(x, 1).argmax(1) == graph(x, T).argmax(1)).double().mean())
    )
    assert f"Drop from T = {T}, trained for" in page.text and "drift" in page.text


@pytest.mark.usefixtures("unrendered")
def test_both_roads_beside_each_other(tmp_path):
    """A converted and a trained network on one page: the ANN is the converted one's alone."""
    converted, (_, graph) = small(timesteps=4), trained("ms_resnet8")
    page, _, entry = written(tmp_path, ("converted.snn", converted, 4), ("trained.snn", graph, T))
    one, other = entry["networks"]
    assert one["evaluation"]["ann"]["top1"] >= 0 and other["evaluation"]["ann"] is None
    assert entry["top1_difference"] == pytest.approx(
        one["evaluation"]["snn"][-1]["top1"] - other["evaluation"]["snn"][-1]["top1"]
    )
    assert {"shortcuts", "disagreements"} <= {attributes.get("id") for attributes in page.all("section")}
    assert "Dormant" in page.text and "unevenness" in page.text and "ANN or dense pass" in page.text


# ---- mistakes


def test_mistakes_from_python(paper, tmp_path):
    _, found, _ = paper
    with pytest.raises(InvalidData, match="got 0 networks"):
        write_page([], tmp_path)
    with pytest.raises(InvalidData, match="got 3 networks"):
        write_page([found] * 3, tmp_path)
    other = measure(small(timesteps=1, classes=3), batches(classes=3), 1)
    with pytest.raises(InvalidData, match=r"\[3, 5\] classes"):
        write_page([found, other], tmp_path)
    with pytest.raises(InvalidData, match=r"\[12, 20\] images"):
        write_page([found, measure(small(), batches(12), 1)], tmp_path)
    with pytest.raises(InvalidData, match="no images"):
        measure(small(), [], 1)
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(SResNetError, match="cannot be written"):
            write_page(never(), tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def never():
    """Reports that nobody may ask for."""
    raise AssertionError("measured in vain")
    yield


def test_without_matplotlib_it_names_it_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(s_resnet.errors.BackendUnavailable, match=r"pip install matplotlib"):
        write_page(never(), tmp_path / "page")
    assert not (tmp_path / "page").exists()
