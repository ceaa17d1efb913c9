"""The benchmarks of latency: which cases are run, what a line says, how a table reads."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import images, randomized

import s_resnet
from s_resnet.graph.provenance import ReconstructedBlock, Reconstruction, ReconstructionSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
balancing, latency, recipe_names, tables = (
    importlib.import_module(name) for name in ("balancing", "latency", "recipe_names", "tables")
)
FIGURES = {"ann_top1": 91.0, "top1": 90.6, "drop": 0.4, "standard_error": 0.5, "ann_standard_error": 1.28}


def asked(networks=("resnet20",), recipes=("calibrated",), timesteps=(), limit=None):
    return latency.Asked(Path("fixtures"), Path("work"), networks, recipes, timesteps, limit)


@pytest.fixture
def unpacked(monkeypatch):
    """The JPEG images need no unpacking."""
    monkeypatch.setattr(latency, "place", lambda name, fixtures, work: fixtures / name)


# ---- which cases ----


@pytest.mark.usefixtures("unpacked")
def test_without_filters_the_whole_table_is_run():
    ours = [name for name in latency.RECIPES if name != "s-resnet"]
    found = asked(tuple(latency.NETWORKS), tuple(ours)).cases()
    assert len(found) == 11 * (4 + 3 + 4 + 4)
    assert {(c.network, c.timesteps) for c in found} == {
        *((network, t) for network in ("resnet20", "resnet18", "resnet50") for t in (4, 8, 16, 32)),
        *(("resnet56", t) for t in (8, 16, 32)),
    }
    (case,) = asked(("resnet18",), ("phased+reconstruct",), (8,)).cases()
    assert case.options == "--recipe phased --reconstruct --input-size 64"
    assert [(name, limit) for name, _, limit in case.data] == [("jpeg-test", 5000), ("jpeg-test", 500)]


@pytest.mark.usefixtures("unpacked")
def test_filters_choose():
    found = asked(("resnet56", "resnet20"), ("signed", "spikingjelly-ltb"), (8, 64)).cases()
    assert [(c.network, c.recipe, c.timesteps) for c in found] == [
        ("resnet56", "signed", 8),
        ("resnet56", "signed", 64),
        ("resnet20", "signed", 8),
        ("resnet20", "signed", 64),
    ]
    (case,) = asked(("resnet18",), ("signed",), (8,), limit=100).cases()
    assert [(name, limit) for name, _, limit in case.data] == [("jpeg-test", 100)]


def test_peers_have_their_own_steps():
    recipes = ("calibrated", "spikingjelly-ltb", "spikingjelly-max")
    assert asked(("resnet20", "resnet50"), recipes).peer_cases() == [
        ("resnet20", "spikingjelly-ltb", (8, 16, 32, 64)),
        ("resnet20", "spikingjelly-max", (16, 32, 64, 128, 256)),
        ("resnet50", "spikingjelly-ltb", (8, 16, 32, 64)),
    ]
    assert asked(recipes=recipes, timesteps=(8, 128)).peer_cases() == [
        ("resnet20", "spikingjelly-ltb", (8,)),
        ("resnet20", "spikingjelly-max", (128,)),
    ]
    assert asked(recipes=("spikingjelly-ltb",), timesteps=(4,)).peer_cases() == []


def test_every_variation_leaves_out_what_its_name_says():
    mechanisms = {name: latency.without(name) for name in ("move_maxpool", "compensate")}
    found = latency.variations(mechanisms, {"part": latency.setting("relu_to_neuron", initial_potential=0.25)})
    whole = s_resnet.RECIPES["s-resnet"]
    assert list(found) == [
        *("all", "without move_maxpool", "without compensate", "without part"),
        *("only move_maxpool", "only compensate", "none"),
    ]
    left = {name: {s.name for s in whole.steps} - {s.name for s in vary(whole).steps} for name, vary in found.items()}
    assert left["all"] == set() and left["none"] == {"move_maxpool", "compensate"}
    assert left["without compensate"] == left["only move_maxpool"] == {"compensate"}
    assert {s.name: s.settings for s in found["without part"](whole).steps}["relu_to_neuron"][
        "initial_potential"
    ] == 0.25
    with pytest.raises(SystemExit, match="no step 'quantize_weights'"):
        latency.without("quantize_weights")(whole)


def test_the_ablation_varies_what_the_recipe_has():
    whole = s_resnet.RECIPES[latency.ABLATED[1]]
    found = [vary(whole) for vary in latency.variations(latency.MECHANISMS, latency.PARTS).values()]
    assert found[0] == whole
    assert len({str(recipe.steps) for recipe in found}) == len(found) == 2 + 2 * 5 + 3


# ---- what a line says ----


def test_the_standard_error_is_that_of_the_paired_difference():
    generator = torch.Generator().manual_seed(0)
    labels, ann, snn = torch.randint(4, (3, 200), generator=generator)
    snn = torch.where(torch.rand(200, generator=generator) < 0.7, ann, snn)
    right, wrong = (ann == labels).double(), (snn == labels).double()
    shares = [float(x.mean()) for x in (right, wrong, (right != wrong).double(), (ann != snn).double())]
    exact = latency.figures(*shares[:3], 200, exact=True)
    assert exact["standard_error"] == pytest.approx(100 * float((right - wrong).std(correction=0)) / 200**0.5, abs=1e-4)
    assert exact["drop"] == pytest.approx(100 * (shares[0] - shares[1]), abs=1e-4)
    assert exact["ann_standard_error"] == pytest.approx(100 * float(right.std(correction=0)) / 200**0.5, abs=1e-4)
    most = latency.figures(*shares[:2], shares[3], 200, exact=False)
    assert most["standard_error"] > exact["standard_error"]
    assert (exact["standard_error_kind"], most["standard_error_kind"]) == ("paired", "paired, at most")
    assert latency.figures(1.0, 1.0, 0.0, 10, exact=True)["standard_error"] == 0


REPORT = {
    "images": 500,
    "device": "cpu",
    "kernel": "cpu",
    "ann": {"top1": 0.91, "top5": 1.0},
    "snn": [
        {
            "timesteps": 8,
            "end_to_end_steps": 152,
            "top1": 0.9,
            "top5": 1.0,
            "agreement": 0.95,
            "spikes_per_neuron": 0.9,
        }
    ],
}


@pytest.mark.usefixtures("unpacked")
def test_a_case_converts_once_and_gives_a_line_for_each_data_set(monkeypatch, tmp_path):
    calls = []
    blocks = (ReconstructedBlock("relu", 250, True), ReconstructedBlock("all together", 7, False))
    made = Reconstruction(blocks, ReconstructionSettings(250, 1000, 1250, 30), taken=True)
    graph = s_resnet.convert(randomized(s_resnet.models.CifarResNet(8, width=2)), (3, 8, 8), "s-resnet")
    converted = graph.with_provenance(reconstruction=made)

    def sresnet(*arguments):
        calls.append(arguments)
        if arguments[0] == "convert":
            s_resnet.save(converted, arguments[-1])
        else:
            Path(arguments[-1]).write_text(json.dumps(REPORT))
        return 1.25

    monkeypatch.setattr(latency, "sresnet", sresnet)
    (case,) = asked(recipes=("phased+reconstruct",), timesteps=(8,)).cases()
    results = tmp_path / "latency.jsonl"
    assert latency.written(results) == set()
    latency.write(latency.measure(case, tmp_path), results)
    assert [arguments[0] for arguments in calls] == ["convert", "evaluate", "evaluate"]
    assert not list(tmp_path.glob("*.snn"))
    first, second = (json.loads(line) for line in results.read_text().splitlines())
    assert first["convert"] == (
        "sresnet convert resnet20-12fca82f.th --recipe phased --reconstruct --timesteps 8 --calibration cifar10/train"
    )
    assert first["evaluate"] == ("sresnet evaluate NETWORK.snn --timesteps 8 --at 8 --data cifar10/test --limit 500")
    assert (first["data"], first["limit"], second["data"], second["limit"]) == ("cifar10/test", 500, "jpeg-test", 5000)
    assert [first[f"reconstruct_{name}"] for name in ("steps", "steps_asked", "taken")] == [257, 1250, True]
    assert first["reconstruct"] and first["drop"] == 1.0 and first["end_to_end_steps"] == 152
    assert first["standard_error"] == pytest.approx(100 * ((0.05 - 0.0001) / 500) ** 0.5, abs=1e-4)
    assert {"convert_seconds", "evaluate_seconds", "threads", "torch", "python"} <= first.keys()
    done = latency.written(results)
    assert case.without(done).data == ()
    assert list(latency.measure(case.without(done), tmp_path)) == [] and len(calls) == 3
    assert [d[0] for d in case.without({latency.key(first)}).data] == ["jpeg-test"]


def test_a_variation_is_part_of_the_key():
    line = {"question": "ablation", "network": "a", "recipe": "b", "timesteps": 8, "data": "c", "limit": 1}
    keys = {latency.key({**line, **more}) for more in ({}, {"variation": "all"}, {"variation": "none"}, {"limit": 2})}
    assert len(keys) == 4 and latency.key({**line, "drop": 1.0}) in keys


# ---- SpikingJelly ----


def test_a_network_without_relu_modules_is_copied_with_them():
    model = randomized(s_resnet.models.CifarResNet(8, num_classes=3, width=4))
    copied = balancing.traceable(model, images(2, 8))
    assert any(isinstance(module, torch.nn.ReLU) for module in copied.modules())
    torch.testing.assert_close(copied(images(2, 8)), model(images(2, 8)))
    other = randomized(torchvision.models.resnet18(num_classes=3))
    assert balancing.traceable(other, images(2, 32)) is not other


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", balancing.PEERS)
def test_spikingjelly_comes_near_the_network_it_converts(name):
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
    model = randomized(s_resnet.models.CifarResNet(8, num_classes=3, width=4))
    calibration = [images(4, 8, seed=seed) for seed in range(4)]
    tests = [(images(8, 8, seed=seed), torch.zeros(8, dtype=torch.int64)) for seed in (8, 9)]
    few, many = balancing.measure(name, model, calibration, tests, (8, 64))
    assert (few["timesteps"], many["timesteps"], many["images"]) == (8, 64, 16)
    assert many["agreement"] >= 0.75
    assert many["differing"] <= 1 - many["agreement"]
    assert few["spikes_per_neuron"] < many["spikes_per_neuron"] < 64
    assert balancing.PEERS[name].delayed == (many["readout_from"] > 0)


# ---- tables ----


def line_of(recipe="calibrated", timesteps=8, data="jpeg-test", images=2000, **more):
    named = {"question": "recipe", "network": "resnet18", "recipe": recipe, "timesteps": timesteps, "data": data}
    return {**named, "images": images, **FIGURES, "end_to_end_steps": timesteps, "alphabet": "binary", **more}


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Lets the tables read these lines."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(tables, "HERE", tmp_path)

    def give(name, lines):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "results" / f"{name}.jsonl").write_text(text)

    return give


def test_the_table_of_latency_takes_the_most_images_and_the_newest_line(results):
    results(
        "latency",
        [
            line_of(drop=9.0),
            line_of(drop=-0.25),
            line_of(timesteps=16, end_to_end_steps=16),
            line_of("signed+reconstruct", 16, end_to_end_steps=35, alphabet="signed"),
            line_of(images=500, drop=7.0),
            line_of("spikingjelly-ltb", 64, images=500, drop=8.0),
        ],
    )
    assert tables.latency().splitlines() == [
        "| network, images | ANN | recipe | spikes | T = 8 | T = 16 | steps end to end |",
        "|---|---|---|---|---|---|---|",
        "| resnet18, 2,000 JPEG test | 91.00 ± 1.28 | calibrated | binary | -0.25 ± 0.50 | +0.40 ± 0.50 | 8, 16 |",
        "| resnet18, 2,000 JPEG test | 91.00 ± 1.28 | signed + reconstruct | signed |  | +0.40 ± 0.50 | 35 |",
    ]
    assert tables.peers_latency().splitlines()[2:] == [
        "| resnet18, 500 JPEG test | 91.00 ± 1.28 | spikingjelly-ltb | binary |  | +8.00 ± 0.50 | 64 |",
        "| resnet18, 500 JPEG test | 91.00 ± 1.28 | calibrated | binary | +7.00 ± 0.50 |  | 8 |",
    ]
    assert tables.ablation() == tables.imagenet() == "Not measured."


def test_a_table_has_the_names_of_today(results):
    """What was called calibrated answered later than after T steps, and is not what has that name now."""
    lagged, reconstructed = (line_of(f"calibrated{more}", end_to_end_steps=24) for more in ("", "+reconstruct"))
    old = [lagged, reconstructed, line_of("calibrated-streaming"), line_of("calibrated-unlagged")]
    results("latency", [*old, line_of("calibrated", 16), line_of("calibrated-lagged", 16, end_to_end_steps=32)])
    found = [row.split(" | ") for row in tables.latency().splitlines()[2:]]
    assert [(row[2], row[-1]) for row in found] == [
        ("calibrated-lagged", "24, 32 |"),
        ("calibrated-lagged + reconstruct", "24 |"),
        ("calibrated-constant", "8 |"),
        ("calibrated", "8, 16 |"),
    ]


def test_what_started_at_zero_is_not_todays_s_resnet():
    old = {"report": {"recipe": "s-resnet"}}
    found = [recipe_names.of_report(line) for line in (old, {**old, "initial_potential": 0.5})]
    assert found == ["s-resnet-v0", "s-resnet"]
    assert recipe_names.of_report({"report": {"recipe": "s-resnet-released"}}) == "s-resnet-released"


def test_former_names_of_recipes_are_refused(capsys):
    with pytest.raises(SystemExit):
        latency.main(["fixtures", "--recipes", "calibrated-streaming"])
    assert "calibrated-streaming is now named calibrated-constant" in capsys.readouterr().err
    blocks = line_of("calibrated-blocks", 8, end_to_end_steps=16)
    assert recipe_names.today(blocks)["recipe"] == "calibrated-lagged-blocks"
    with pytest.raises(argparse.ArgumentTypeError, match=r"calibrated-unlagged\+x is now named calibrated\+x"):
        recipe_names.current("calibrated-unlagged+x")


def test_the_table_of_the_ablation_has_a_column_for_each_t_and_data_set(results):
    lines = [
        line_of(timesteps=t, data=data, question="ablation", variation=variation)
        for variation in ("all", "without readout fitted")
        for t in (16, 8)
        for data in ("jpeg-test", "cifar10/test")
    ]
    results("latency", lines[:-1])
    assert tables.ablation().splitlines() == [
        "| mechanisms | T = 8, 2,000 lossless test | T = 8, 2,000 JPEG test | T = 16, 2,000 lossless test | "
        "T = 16, 2,000 JPEG test |",
        "|---|---|---|---|---|",
        "| all | +0.40 ± 0.50 | +0.40 ± 0.50 | +0.40 ± 0.50 | +0.40 ± 0.50 |",
        "| without readout fitted |  | +0.40 ± 0.50 | +0.40 ± 0.50 | +0.40 ± 0.50 |",
    ]
    assert tables.latency() == tables.peers_latency() == "Not measured."


def test_tables_go_between_their_markers_and_nowhere_else(monkeypatch):
    monkeypatch.setattr(tables, "TABLES", {"a": lambda: "new a", "b": lambda: r"new \1 b", "c": lambda: "new c"})
    text = "x\n<!-- table:a -->\nold\n<!-- end -->\ny\n<!-- table:b -->\n<!-- end -->\nz"
    assert tables.render(text, "page.md") == (
        "x\n<!-- table:a -->\nnew a\n<!-- end -->\ny\n<!-- table:b -->\nnew \\1 b\n<!-- end -->\nz"
    )
    for wrong in (
        text.replace("<!-- end -->", "", 1),
        text.replace("<!-- table:b -->\n<!-- end -->", "<!-- table:b -->"),
    ):
        with pytest.raises(SystemExit, match=r"page\.md: got no end of table"):
            tables.render(wrong, "page.md")


def test_every_table_has_one_place_on_all_pages(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "TABLES", {"a": lambda: "new a", "b": lambda: "new b"})
    monkeypatch.setattr("sys.argv", ["tables.py"])
    pages = [tmp_path / "one.md", tmp_path / "two.md"]
    monkeypatch.setattr(tables, "PAGES", pages)
    place = "<!-- table:{} -->\nold\n<!-- end -->\n".format
    for one, two in (("", "a"), ("ab", "b"), ("ac", "b"), ("", "")):
        pages[0].write_text("".join(map(place, one)))
        pages[1].write_text("".join(map(place, two)))
        with pytest.raises(SystemExit, match=r"docs: got tables .*; expected each once, of a, b"):
            tables.main()
    pages[0].write_text(place("b"))
    pages[1].write_text(place("a") + "end")
    tables.main()
    assert [page.read_text() for page in pages] == [
        *("<!-- table:b -->\nnew b\n<!-- end -->\n", "<!-- table:a -->\nnew a\n<!-- end -->\nend")
    ]
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    tables.main()
    pages[0].write_text(place("b"))
    with pytest.raises(SystemExit, match=r"one\.md: its tables are not those"):
        tables.main()
