"""Weights as training programs save them: beside averages, in folders, in several files, with settings around them."""

import argparse
import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from s_resnet import load_checkpoint
from s_resnet.errors import InvalidCheckpoint
from s_resnet.models import CifarResNet

State = dict[str, Tensor]


def network(seed: int) -> State:
    torch.manual_seed(seed)
    return CifarResNet(8, num_classes=3, width=4).state_dict()


def named(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def averaged(state: State) -> State:
    """As torch.optim.swa_utils.AveragedModel saves it."""
    return {"n_averaged": torch.tensor(7), **named(state, "module.")}


PLAIN, MEAN = network(0), network(1)
LIGHTNING = {
    "pytorch-lightning_version": "2.5.0",
    "epoch": 3,
    "global_step": 40,
    "loops": {"fit_loop": {"state_dict": {}}},
}
CALLBACKS = {
    "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best_model_score": torch.tensor(0.9), "dirpath": "x"}}
}
OPTIMIZER = {"optimizer": {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.zeros(3)}}, "param_groups": []}}
# What a program saves; the name of the weights, and of their average if there is one.
SAVED = {
    "Lightning": (
        {**LIGHTNING, "state_dict": named(PLAIN, "model."), "hyper_parameters": {"lr": 0.1}, **CALLBACKS},
        None,
    ),
    "Lightning, network called net, with a loss": (
        {**LIGHTNING, "state_dict": {**named(PLAIN, "net."), "criterion.weight": torch.ones(3)}},
        None,
    ),
    "Lightning, average beside": (
        {**LIGHTNING, "state_dict": {**named(PLAIN, "model."), **named(averaged(MEAN), "ema_model.")}},
        "state_dict.ema_model",
    ),
    "Lightning, WeightAveraging": (
        {
            **LIGHTNING,
            "state_dict": named(MEAN, "model."),
            "current_model_state": named(PLAIN, "model."),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        },
        "state_dict",
    ),
    "timm": (
        {
            "epoch": 9,
            "arch": "resnet8",
            "state_dict": PLAIN,
            "state_dict_ema": MEAN,
            "args": argparse.Namespace(lr=0.1),
            "metric": 71.0,
            **OPTIMIZER,
        },
        "state_dict_ema",
    ),
    "torchvision": (
        {
            "model": PLAIN,
            "model_ema": averaged(MEAN),
            "epoch": 5,
            "lr_scheduler": {"last_epoch": 5},
            "args": argparse.Namespace(model="resnet18"),
            **OPTIMIZER,
        },
        "model_ema",
    ),
    "OpenMMLab": ({"meta": {"mmengine_version": "0.10.0", "epoch": 9}, "state_dict": named(PLAIN, "backbone.")}, None),
    "MMEngine, which exchanges the two": (
        {
            "meta": {"mmengine_version": "0.10.0"},
            "state_dict": named(MEAN, "backbone."),
            "ema_state_dict": {"steps": torch.tensor(5), **named(PLAIN, "module.backbone.")},
        },
        "state_dict",
    ),
    "a plain file": (PLAIN, None),
}


def same(path: Path, state: State, ema: bool = False) -> bool:
    found = load_checkpoint(path, ema=ema).model.state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("saved", SAVED)
def test_weights_of_a_training_program(saved, tmp_path):
    content, average = SAVED[saved]
    torch.save(content, tmp_path / "file.pth")
    checkpoint = load_checkpoint(tmp_path / "file.pth")
    assert same(tmp_path / "file.pth", PLAIN)
    assert bool(checkpoint.weights) == (average is not None)
    if average is None:
        with pytest.raises(InvalidCheckpoint, match=r"average, got .* alone; expected an average .*\. Leave out ema\."):
            load_checkpoint(tmp_path / "file.pth", ema=True)
        return
    assert f"also holds {average}," in checkpoint.weights
    assert same(tmp_path / "file.pth", MEAN, ema=True)
    assert load_checkpoint(tmp_path / "file.pth", ema=True).weights.startswith(f"{average}, an average")


@pytest.mark.parametrize("content", [{"model_ema": MEAN}, averaged(MEAN), {"epoch": 1, "ema": averaged(MEAN)}])
def test_an_average_alone_is_taken_and_said(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    assert same(tmp_path / "file.pth", MEAN) and same(tmp_path / "file.pth", MEAN, ema=True)
    assert "an average over the training; the file holds no others" in load_checkpoint(tmp_path / "file.pth").weights


# ---- folders and parts


def shards(folder: Path, state: State, kind: str = "safetensors") -> Path:
    """The state dict in two files, and their index."""
    folder.mkdir(exist_ok=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names, places = list(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002.{kind}"
        tensors = {name: state[name].clone() for name in part}
        if kind == "safetensors":
            safetensors.torch.save_file(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{kind}.index.json"
    total = sum(tensor.nbytes for tensor in state.values())
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_are_found_by_folder_index_or_part(kind, tmp_path):
    index = shards(tmp_path / "model", PLAIN, kind)
    part = next((tmp_path / "model").glob(f"*-00002-of-00002.{kind}"))
    digests = set()
    for path in (tmp_path / "model", index, part):
        assert same(path, PLAIN)
        digests.add(load_checkpoint(path).digest)
    lines = [
        f"{one.name} {hashlib.sha256(one.read_bytes()).hexdigest()}\n" for one in sorted(part.parent.glob("*-of-*"))
    ]
    assert digests == {hashlib.sha256("".join(lines).encode()).hexdigest()}


def test_a_folder_with_one_file(tmp_path):
    safetensors.torch.save_file(PLAIN, tmp_path / "model.safetensors")
    torch.save(MEAN, tmp_path / "pytorch_model.bin")
    assert same(tmp_path, PLAIN)
    assert load_checkpoint(tmp_path).digest == load_checkpoint(tmp_path / "model.safetensors").digest


def test_a_snapshot_in_the_cache_of_hugging_face(tmp_path):
    """Its files are links to the folder of all blobs."""
    real = shards(tmp_path / "real", PLAIN).parent
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(real.iterdir()):
        os.rename(file, blobs / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / file.name)
    assert same(snapshot, PLAIN)


def changed(index: Path, change) -> None:
    said = json.loads(index.read_text())
    change(said)
    index.write_text(json.dumps(said))


def _place(file: str):
    return lambda said: said["weight_map"].update({"linear.bias": file})


HOSTILE = {
    "a folder above": (_place("../model-00001-of-00002.safetensors"), "files of the index"),
    "an absolute path": (_place("/etc/passwd"), "files of the index"),
    "a backslash": (_place("..\\model.safetensors"), "files of the index"),
    "a control character": (_place("model\x00.safetensors"), "files of the index"),
    "another kind of file": (_place("model.pkl"), "files of the index"),
    "no text": (lambda said: said["weight_map"].update({"linear.bias": 3}), "files of the index"),
    "thousands of files": (
        lambda said: said["weight_map"].update({f"x{i}": f"m{i}.bin" for i in range(2000)}),
        "files of the index",
    ),
    "no files": (lambda said: said["weight_map"].clear(), "files of the index"),
    "a list": (lambda said: said.update(weight_map=[1]), "not an index"),
    "nothing": (lambda said: said.clear(), "not an index"),
    "metadata of another kind": (lambda said: said.update(metadata=[1]), "not an index"),
    "a missing file": (_place("model-00003-of-00003.safetensors"), "parts, got no file"),
    "a tensor in another part": (_place("model-00001-of-00002.safetensors"), "parts, got model-0000"),
    "a tensor in no part": (
        lambda said: said["weight_map"].update({"more": "model-00001-of-00002.safetensors"}),
        "parts, got model-00001-of-00002.safetensors with other tensors \\(more",
    ),
    "a tensor that it does not list": (lambda said: said["weight_map"].pop("conv1.weight"), "with other tensors"),
    "another size": (lambda said: said["metadata"].update(total_size=1), "total size"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_index_that_is_wrong(case, tmp_path):
    index = shards(tmp_path / "model", PLAIN)
    change, words = HOSTILE[case]
    changed(index, change)
    with pytest.raises(InvalidCheckpoint, match=words):
        load_checkpoint(index)


def test_an_index_that_is_no_json(tmp_path):
    index = shards(tmp_path / "model", PLAIN)
    for text in ("", "[" * 100_000, '{"weight_map": ', "\ud800".encode("utf-8", "surrogatepass")):
        index.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InvalidCheckpoint, match="not an index"):
            load_checkpoint(index)


def test_a_part_that_is_a_link_out_of_the_folder(tmp_path):
    index = shards(tmp_path / "model", PLAIN)
    part = index.parent / "model-00001-of-00002.safetensors"
    os.rename(part, tmp_path / "elsewhere.safetensors")
    part.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InvalidCheckpoint, match="a link to"):
        load_checkpoint(index)


def test_a_part_without_its_index(tmp_path):
    index = shards(tmp_path / "model", PLAIN)
    index.unlink()
    with pytest.raises(
        InvalidCheckpoint, match=r"one part of several; expected model\.safetensors\.index\.json beside it"
    ):
        load_checkpoint(index.parent / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(("name", "words"), [("flax_model.msgpack", "Flax"), ("tf_model.h5", "TensorFlow")])
def test_a_folder_of_another_library(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"\x81\xa6params")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InvalidCheckpoint, match=words):
            load_checkpoint(path)


def test_keras_is_refused_by_name(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InvalidCheckpoint, match="not a checkpoint, got Keras"):
        load_checkpoint(tmp_path / "model.keras")


@pytest.mark.parametrize("setting", ["downsample_in_bottleneck", "downsample_in_first_stage"])
def test_settings_that_no_weights_tell_are_read_beside_them(setting, tmp_path):
    """With another stride the same weights are another network."""
    state = {**named(PLAIN, "x."), "resnet.embedder.embedder.convolution.weight": torch.zeros(4, 3, 7, 7)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", setting: True}))
    with pytest.raises(InvalidCheckpoint, match=rf"config\.json: {setting}, got True; expected False"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "hidden_act": "gelu"}))
    with pytest.raises(InvalidCheckpoint, match=r"config\.json: hidden_act, got 'gelu'; expected 'relu'"):
        load_checkpoint(tmp_path / "model.safetensors")
