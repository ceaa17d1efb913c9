"""What a visit to a GPU runs, as a dry run without one: no check fails, no timing breaks, and nothing is silent."""

import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import s_resnet

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "benchmarks" / "gpu"
for folder in (GPU.parent, GPU):
    sys.path.insert(0, str(folder))
checking, checks, contenders, gpu_imagenet, inside, networks, packed, sanitize, share, speed, tables, warm = (
    importlib.import_module(name)
    for name in (
        *("checking", "checks", "contenders", "gpu_imagenet", "inside", "networks", "packed", "sanitize", "share"),
        *("speed", "tables", "warm"),
    )
)
SAID = {"device", "driver", "kernels", "python", "versions", "command"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small networks of every recipe, and what the CPU says of them."""
    made = tmp_path_factory.mktemp("networks")
    networks.make(made, networks.made_up(8, 8, 16, 8), 8)
    return made


def check(folder, output, *options):
    """The exit status of the checks on the CPU, and their lines by name."""
    failed = checks.main(["--device", "cpu", "--networks", str(folder), "--output", str(output), *options])
    return failed, {line["check"]: line for line in map(json.loads, output.read_text().splitlines())}


# ---- is it right ----


def test_every_check_passes_on_the_cpu_or_says_that_it_needs_a_gpu(folder, tmp_path):
    failed, lines = check(folder, tmp_path / "lines.jsonl")
    assert failed == 0
    assert {line["check"]: line["told"] for line in lines.values() if line["state"] == "FAIL"} == {}
    assert list(lines) == list(checking.CHECKS) and len(lines) >= 40
    for name, line in lines.items():
        assert line["state"] == ("needs a GPU" if checking.CHECKS[name].gpu else "PASS")
        assert line.keys() >= SAID and line["device"] == "cpu" and line["versions"]["torch"] == torch.__version__
    assert {line["group"] for line in lines.values()} == set(checks.GROUPS)
    for name in s_resnet.RECIPES:
        assert {f"{name} exact as on the CPU", f"{name} fast as on the CPU"} <= lines.keys()


def test_a_wrong_answer_fails_and_the_rest_goes_on(folder, tmp_path, monkeypatch):
    changed = tmp_path / "networks"
    changed.mkdir()
    for name in ("s-resnet", "int8", "dyadic"):
        (changed / f"{name}.snn").symlink_to(folder / f"{name}.snn")
    reference = torch.load(folder / "reference.pt", weights_only=True)
    for spikes in reference["networks"]["int8"]["spikes"].values():
        spikes[0] += 1  # one spike in one image of each layer
    torch.save(reference, changed / "reference.pt")

    def broken(given):
        raise RuntimeError("no such kernel\nand more")

    name = "two runs give the same"
    monkeypatch.setitem(checking.CHECKS, name, dataclasses.replace(checking.CHECKS[name], run=broken))
    asked = ["int8 exact as on the CPU, bit for bit", name, "s-resnet exact as on the CPU"]
    failed, lines = check(changed, tmp_path / "lines.jsonl", "--only", ";".join(asked))
    assert failed == 1 and list(lines) == asked
    assert [line["state"] for line in lines.values()] == ["FAIL", "FAIL", "PASS"]
    assert "spikes_apart" in lines[asked[0]]["told"]
    assert re.match(r"RuntimeError: no such kernel at .*test_gpu_visit\.py:\d+", lines[name]["told"])
    with pytest.raises(SystemExit, match="no such check"):
        check(changed, tmp_path / "lines.jsonl", "--only", "no such check")


def test_a_device_that_broke_leaves_the_rest_to_another_process(folder, tmp_path, monkeypatch):
    given = networks.Networks(folder, torch.device("cpu"))
    monkeypatch.setattr(checking, "broken", lambda device: True)
    monkeypatch.setattr(checking, "answer", lambda one, given: {"state": "FAIL", "told": "illegal access"})
    names = list(checking.CHECKS)[:3]
    assert checking.run(names, given, tmp_path / "lines.jsonl") == (1, names[1:])


def test_what_a_gpu_would_launch_is_recorded(folder):
    """Instances follow the precision, and a network as on a GPU fires as on the CPU."""
    given, found = networks.Networks(folder, torch.device("cpu")), {}
    for precision in inside.PRECISIONS:
        found[precision] = set()
        with inside.as_on_a_gpu(found[precision]):
            got = s_resnet.simulate(
                given.load("dyadic"), given.images, 8, s_resnet.simulation.SimulationSettings(precision=precision)
            )
        assert found[precision] and all(file == "membrane.cu" for file, _ in found[precision])
        spikes = {name: counts[-1] for name, counts in got.spikes.items()}
        if precision == "exact":
            want = given.reference["networks"]["dyadic"]["spikes"]
            assert all(torch.equal(spikes[name], want[name]) for name in want)
    assert any("::f16" in name for _, name in found["fast"])
    assert not any("::f16" in name for _, name in found["exact"])


def test_trained_networks_are_laid_out_as_the_gpus_kernel_takes_them(folder, tmp_path):
    """Recipes: test_engine_on_source. A second part of a convolution has to lie as the first one does."""
    found = set()
    with inside.as_on_a_gpu(found):
        failed, lines = check(folder, tmp_path / "lines.jsonl", "--only", "trained networks fire as on the CPU")
    assert failed == 0 and found, lines


def test_the_instances_of_the_tests_are_those_of_every_width():
    found = {name for file, name in warm.of_tests() if file == "membrane.cu"}
    assert {re.search(r"(?:float|int), (\d)", name)[1] for name in found} == {"1", "4", "8"}
    assert len(found) >= 250 and any(file == "surrogate.cu" for file, _ in warm.of_checks())


def test_the_sanitizers_launches_run(capsys):
    sanitize.main(["--device", "cpu", "--quick"])
    assert re.match(r"[1-9]\d* layers of membranes, [1-9]\d* of trained neurons", capsys.readouterr().out)


# ---- networks of photographs ----


def photographs(file, count=6, classes=10):
    """An archive of seeded JPEG files."""
    generator, jpeg = np.random.default_rng(0), []
    for _ in range(count):
        jpeg.append(io.BytesIO())
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(jpeg[-1], "JPEG")
    data = [np.frombuffer(one.getvalue(), np.uint8) for one in jpeg]
    arrays = {"jpeg": np.concatenate(data), "offset": np.cumsum([0, *map(len, data)])}
    arrays |= {
        "label": np.arange(count, dtype=np.uint16) % classes,
        "wnid": np.array([f"n{i}" for i in range(classes)]),
    }
    np.savez(file, **arrays, name=np.array([f"photograph {i}" for i in range(count)]))


def changed(file, **arrays):
    """The archive with other arrays; each is a function of the one that is there."""
    with np.load(file) as held:
        found = {name: arrays[name](held[name].copy()) if name in arrays else held[name] for name in held.files}
    np.savez(file, **found)


def one_more(spikes):
    spikes[3, 1] += 1
    return spikes


def test_a_packed_network_fires_as_its_own_and_what_differs_is_told(folder, tmp_path):
    made = {"preprocessing": s_resnet.data.Preprocessing(16, 18), "classes": tuple(f"n{9 - i}" for i in range(10))}
    names = ("calibrated-lagged", "calibrated-lagged-int8")  # converted apart
    float32, int8 = (s_resnet.load(folder / f"{name}.snn").with_provenance(**made) for name in names)
    s_resnet.save(float32, tmp_path / "net.snn")
    photographs(tmp_path / "jpeg.npz")
    travel, output = tmp_path / "packed", tmp_path / "lines.jsonl"
    packed.main([str(travel), str(tmp_path / "net.snn"), "--photographs", str(tmp_path / "jpeg.npz"), "--limit", "5"])

    given = packed.Packed(travel)
    images = packed.read(given.photographs, int8)
    assert images.labels.tolist() == [9, 8, 7, 6, 5, 4] and images.images.shape == (6, 3, 16, 16)
    want, told = s_resnet.simulate(int8, images.images[:5], 8), given.reference("net")
    assert told.layers.tolist() == list(want.spikes) and told.spikes.sum() > 0
    assert np.array_equal(told.spikes, torch.stack([counts[-1] for counts in want.spikes.values()]))
    assert np.array_equal(told.answers, want.outputs[-1].argmax(1))
    assert np.array_equal(told.ann, float32.run(images.images[:5]).argmax(1))
    travels = given.load("net")
    assert travels.provenance.recipe == int8.provenance.recipe
    assert not any(bool(node.op.weight.any()) for node in travels.nodes if hasattr(node.op, "weight"))

    options = ["--networks", str(travel), "--device", "cpu", "--quick", "--output", str(output)]
    gpu_imagenet.main(options)
    changed(travel / "net.npz", spikes=one_more)
    gpu_imagenet.main([*options, "--only", "net"])
    changed(travel / "net.npz", marks=lambda marks: marks + (np.arange(len(marks)) == 1))
    gpu_imagenet.main(options)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line in lines:
        assert line["question"] == "imagenet" and line["dry_run"] and line["passes_alike"] and line.keys() >= SAID
    parts = ("compared", "decoded_apart", "answers_apart", "spikes_apart", "counts_apart", "first_layer_apart")
    found = [tuple(line[part] for part in parts) for line in lines]
    assert found == [(4, 0, 0, 0, 0, None), (4, 0, 0, 1, 1, told.layers[3]), (3, 1, 0, 0, 0, None)]
    changed(tmp_path / "jpeg.npz", label=lambda labels: labels + 1)
    with pytest.raises(SystemExit, match="other photographs"):
        packed.main([str(travel), str(tmp_path / "net.snn"), "--photographs", str(tmp_path / "jpeg.npz")])
    changed(travel / "net.npz", network=lambda digest: np.array("0" * 64))
    with pytest.raises(SystemExit, match="another network"):
        gpu_imagenet.main(options)


# ---- how fast is it ----


@pytest.mark.parametrize("name", ["ceilings", "membrane", "share", "convolutions", "overheads"])
def test_a_timing_runs_dry(name, folder, tmp_path):
    output = tmp_path / "lines.jsonl"
    options = ["--device", "cpu", "--quick", "--output", str(output)]
    importlib.import_module(name).main(options + ["--networks", str(folder)] * (name == "overheads"))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert lines and all(line["question"] == name and line["dry_run"] and line.keys() >= SAID for line in lines)
    if name == "share":
        assert [line["way"] for line in lines] == list(share.WAYS)
        assert all(line["shares"] == "needs a GPU" for line in lines)
    if name == "ceilings":
        assert lines[0]["int8"] == "needs a GPU" and lines[0]["copy"] > 0


def test_the_fused_kernel_is_exact_in_int8(tmp_path, monkeypatch):
    """In Triton's interpreter, in the process that fused.py starts for that."""
    pytest.importorskip("triton", reason="Triton is not installed")
    output = tmp_path / "lines.jsonl"
    run, started = subprocess.run, []

    def captured(command, env):
        started.append(run(command, env=env, capture_output=True, text=True, timeout=300))
        return started[0]

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(subprocess, "run", captured)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("fused").main(["--device", "cpu", "--quick", "--output", str(output)])
    assert ended.value.code == 0, started[0].stderr
    lines = list(map(json.loads, output.read_text().splitlines()))
    assert len(lines) == 2 and not any(line["wrong"] for line in lines)
    assert all(line["us"][line["tile"]] == line["fused_us"] > 0 < line["pair_us"] for line in lines)


def test_kernels_are_told_apart_by_name():
    times = {
        "void cudnn::ops::nchwToNhwcKernel<__half, __half, float, false, true>": 1.0,
        "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": 4.0,
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop>": 2.0,
        "void sresnet::membrane<sresnet::f16, sresnet::f32, sresnet::f16, float, 8>": 2.0,
        "void at::native::vectorized_elementwise_kernel<4, convert_to_float>": 1.0,
    }
    found = share.shares(times)
    assert found == {"membrane": 0.2, "rearranged for convolutions": 0.1, "convolutions": 0.6, "others": 0.1}
    assert share.outside(found) == 0.3


def test_the_table_has_the_newest_line_of_each_way(monkeypatch):
    line = {"question": "share", "dry_run": False, "device": "A", "way": "fast", "recipe": "s-resnet", "batch": 64}
    line |= {"precision": "fast", "steps": 64, "us_per_step_per_image": 50.0, "busy_us_per_step_per_image": 45.0}
    line |= {"share_outside_convolutions": 0.512, "peak_GB": 10.5}
    found = [line, {**line, "us_per_step_per_image": 40.0}, {**line, "dry_run": True}, {**line, "question": "fused"}]
    monkeypatch.setattr(tables, "lines", lambda name: found if name == "gpu_timings" else [])
    assert tables.gpu().splitlines()[2:] == ["| A | s-resnet | fast | 64 | 64 | 40.0 | 45.0 | 51 % | 10.5 |"]
    monkeypatch.setattr(tables, "lines", lambda name: found[2:])
    assert tables.gpu() == "Not measured."


def test_the_table_of_contenders_on_a_gpu_has_the_newest_figures_of_each(monkeypatch):
    def figures(us, **others):
        times = dict.fromkeys(("median", "min", "max"), us / 1000)
        return {"ms_per_step_per_image": times, "arithmetic": "TF32", "rate": 0.25, **others}

    line = {"question": "speed", "network": "resnet50", "weights": "random", "size": 224, "batch": 64}
    line |= {"steps": [33, 96], "threads": 8, "device": "A", "layout_of_others": "contiguous", "float32": "TF32"}
    bound = {"over_floor": dict.fromkeys(("median", "min", "max"), 1.0)}
    found = [{**line, "contenders": {"floor": figures(70, **bound), "ours": figures(50)}}]
    found += [{**line, "contenders": {"ours": figures(40), "ann": figures(90, rate=None)}}]
    found += [{**line, "device": "cpu", "contenders": {"ours": figures(9000)}}]
    monkeypatch.setattr(tables, "lines", lambda name: found)
    where = "| resnet50 (random), 224 px, 64, A, TF32 |"
    assert tables.gpu_speed().splitlines()[2:] == [
        f"{where} floor | TF32 | 70.0 (70.0 to 70.0) | 0.250 | 1.00 (1.00 to 1.00) |",
        f"{where} ours | TF32 | 40.0 (40.0 to 40.0) | 0.250 |  |",
        f"{where} ann | TF32 | 90.0 (90.0 to 90.0) |  |  |",
    ]
    assert len(tables.speed().splitlines()) == 3 and "| ours | 9 |" in tables.speed()
    monkeypatch.setattr(tables, "lines", lambda name: found[2:])
    assert tables.gpu_speed() == "Not measured."


# ---- beside others ----


def test_spikingjelly_calibrates_on_as_many_images_as_torch_quantile_takes():
    """Of a batch at 224 px; at 64 px on all of it."""
    for size, images in ((224, 20), (64, 64)):
        setting = contenders.Setting("resnet50", size, 64, "cpu", "contiguous", None, Path("work"))
        stem = torch.Size((64, size // 2, size // 2))
        vars(setting).update(shapes={"stem": stem, "fc": torch.Size((1000,))}, images=torch.zeros(64, 3, 2, 2))
        assert [len(batch) for batch in setting.peer_calibration] == [images]


def test_float32_is_one_arithmetic_for_all_contenders_of_a_run(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: object())
    ran = {
        (device, tf32): {
            name: one.arithmetic(device, tf32)
            for name, one in contenders.CONTENDERS.items()
            if one.missing(device, tf32) is None
        }
        for device, tf32 in (("cpu", False), ("cuda", False), ("cuda", True))
    }
    exact, tf32 = ran["cuda", False], ran["cuda", True]
    assert exact.pop("ours exact") == tf32.pop("ours exact") == "float32 as two in TF32"
    assert set(exact.values()) == {"float32", "float16"} and set(tf32.values()) == {"TF32", "float16"}
    assert "ours int8" in tf32.keys() - exact.keys()
    assert "ours exact without compiler" in ran["cpu", False].keys() - exact.keys()
    assert {"floor float16", "spikingjelly multi-step float16"} <= exact.keys() - ran["cpu", False].keys()
    assert contenders.CONTENDERS["ours int8"].missing("cuda", False).endswith("add --tf32")
    for tf32 in (False, True):
        setting = contenders.Setting("resnet50", 64, 2, "cuda", "contiguous", None, Path("work"), tf32)
        for name in ran["cuda", tf32]:
            bound = speed.floor_of(setting, name)
            assert bound in ("floor", "floor float16")
            arithmetics = {contenders.CONTENDERS[each].arithmetic("cuda", tf32) for each in (name, bound)}
            assert len(arithmetics) == 1, (name, bound)
        assert speed.floor_of(setting, "ours exact") is None


def test_a_contender_that_fails_says_so_and_stops_no_other(monkeypatch, capsys):
    steps = []
    ours = contenders.Contender(lambda setting: contenders.Runner(steps.append))

    def broken(setting):
        raise RuntimeError("no kernel\nand a long story")

    monkeypatch.setattr(speed, "CONTENDERS", {"a": contenders.Contender(broken), "b": ours})
    setting = contenders.Setting("resnet50", 64, 2, "cpu", "contiguous", None, Path("work"))
    runners, failed = speed.ready(setting, ["a", "b"], 64)
    assert list(runners) == ["b"] and failed == {"a": "RuntimeError: no kernel"} and steps == [64]
    assert "failed: RuntimeError: no kernel" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_spikingjelly_in_multi_step_mode_is_spikingjelly_step_by_step():
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
    peers = importlib.import_module("peers")
    torch.manual_seed(0)
    model, x = s_resnet.models.CifarResNet(8).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        single, many, half = (peers.spikingjelly_network(model, [x], x) for _ in range(3))
        given = peers.spikingjelly_multistep(many, x, half=False)
        assert given.shape == (peers.AT_ONCE, *x.shape)
        torch.testing.assert_close(many(given).sum(0), sum(single(x) for _ in given))
        given = peers.spikingjelly_multistep(half, x, half=True)
    assert given.dtype == torch.float16 and given[0].is_contiguous(memory_format=torch.channels_last)
    for neuron in peers.spikingjelly_neurons(half):
        assert neuron._neuron_precision == (torch.float32, "fp32", "fp32")


# ---- the scripts ----


def test_a_part_has_its_limit_and_stops_nothing(tmp_path):
    script = (
        '. benchmarks/gpu/machine.sh; part 9 false; part 1 sleep 5; part 9 echo "still here"; BUDGET=0; part 9 echo no'
    )
    settings = {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "SITE": str(tmp_path / "site"), "BUDGET": "60"}
    command = ["bash", "-c", script, "benchmarks/gpu/right.sh"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **settings}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = [re.sub(r" after .*", "", line) for line in done.stdout.splitlines()]
    assert told == [
        *("== false", "-- exit 1", "== sleep 5", "-- stopped at its limit", "-- exit 124"),
        *("== echo still here", "still here", "-- exit 0", "== echo no", "-- left out: the time is used up"),
    ]


@pytest.mark.parametrize("script", sorted(GPU.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_names_files_that_are_there(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    for name in re.findall(r"(?:benchmarks|tests)/[\w/]+\.(?:py|sh)", text):
        assert (ROOT / name).is_file(), name
    for names in re.findall(r'--only "([^$]*?)"', text):
        assert set(names.split(",")) <= contenders.CONTENDERS.keys()
    for names in re.findall(r'^WHOLE="(.*)"', text, re.MULTILINE):
        assert set(names.split(";")) <= checking.CHECKS.keys()
