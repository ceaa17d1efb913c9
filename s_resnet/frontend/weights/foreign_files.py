"""What a file is that holds no weights of PyTorch, by its content or else by its name, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ...errors import InvalidCheckpoint, message

EXPECTED = "a file that torch.save, safetensors, ONNX or torch.export wrote"
TRAINED = "Take the network's PyTorch weights, or export the network to ONNX"
UNPACK, AGAIN = "Unpack it, and pass the file inside", "Download it again, and look at the address"

# (where, bytes there, what the file is, what to do). The longest beginnings first.
_BEGINNINGS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS", "Run git lfs pull to have the file itself"),
    (0, b"\x89HDF\r\n", "HDF5 (TensorFlow, Keras)", TRAINED),
    (0, b"\x89PNG\r\n", "a picture (PNG)", "Pass a checkpoint; images go into calibration_batches"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", "Pass a checkpoint; images go into calibration_batches"),
    (0, b"%PDF", "a document (PDF)", AGAIN),
    (0, b"GGUF", "GGUF, weights of llama.cpp", TRAINED),
    (4, b"TFL3", "TensorFlow Lite", TRAINED),
    (4, b"ET1", "ExecuTorch", "Take the network from before it was lowered, and save its weights with torch.save"),
    (0, b"ftrt", "TensorRT, code for one GPU", TRAINED),
    (0, b"ptrt", "TensorRT, code for one GPU", TRAINED),
    (0, b"\x93NUMPY", "an array of NumPy", "Load the weights into the network in Python, and call torch.save"),
    (0, b"\x12\x01\x00\x00\x00\x00\x00\x00", "parameters of MXNet", TRAINED),
    (0, b"7767517\n", "a network of ncnn", TRAINED),
    (0, b"\x1f\x8b", "compressed (gzip)", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd)", UNPACK),
    (0, b"BZh", "compressed (bzip2)", UNPACK),
    (0, b"\xfd7zXZ", "compressed (xz)", UNPACK),
    (0, b"7z\xbc\xaf", "an archive (7z)", UNPACK),
    (257, b"ustar", "an archive (tar)", UNPACK),
)
_TEXTS = ((b"<!doctype html", "a web page"), (b"<html", "a web page"), (b"<?xml", "XML (an OpenVINO network)"))
# By the suffix, where the content does not tell.
_SUFFIXES = {
    ".h5": "HDF5 (TensorFlow, Keras)",
    ".hdf5": "HDF5 (TensorFlow, Keras)",
    ".keras": "Keras",
    ".pb": "TensorFlow",
    ".mlmodel": "Core ML",
    ".engine": "TensorRT, code for one GPU",
    ".plan": "TensorRT, code for one GPU",
    ".trt": "TensorRT, code for one GPU",
    ".tflite": "TensorFlow Lite",
    ".pdmodel": "Paddle",
    ".pdparams": "Paddle",
    ".caffemodel": "Caffe",
    ".weights": "Darknet",
    ".msgpack": "Flax (MessagePack)",
}
# By the name in a folder of Hugging Face.
IN_FOLDERS = {
    "flax_model.msgpack": "Flax",
    "tf_model.h5": "TensorFlow",
    "model.weights.h5": "Keras",
    "saved_model.pb": "TensorFlow",
}
# Zip archives and pickles as torch's files are, but never of torch.
UNMISTAKABLE = (".keras", ".pdparams")
# By the name of a part of a zip archive.
_PARTS = {
    "serialized_exported_program.json": (
        "a program of torch.export in the layout of torch 2.7 or older",
        "Load it with that torch, and save the program again with torch 2.9 or newer",
    ),
    "model.weights.h5": ("Keras", TRAINED),
    "MAR-INF/MANIFEST.json": ("an archive of TorchServe", UNPACK),
    "META-INF/MANIFEST.MF": ("a program for Java", AGAIN),
    "[Content_Types].xml": ("a document of an office program", AGAIN),
}


def kind_of(head: bytes, path: Path) -> tuple[str, str] | None:
    """What a file is that begins with ``head``, and what to do; None where neither content nor name tells."""
    for at, beginning, what, remedy in _BEGINNINGS:
        if head.startswith(beginning, at):
            return what, remedy
    text = head[:64].lstrip().lower()
    for beginning, what in _TEXTS:
        if text.startswith(beginning):
            return what, AGAIN if "page" in what else TRAINED
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b":", b"B"):  # the version, then the producer or graph
        return "ONNX by its content", "Rename it so that its name ends in .onnx"
    what = _SUFFIXES.get(path.suffix.lower(), "")
    return (what, TRAINED) if what else None


def kind_of_zip(names: Collection[str]) -> tuple[str, str] | None:
    """What a zip archive of these parts is, and what to do; None where they do not tell."""
    for part, found in _PARTS.items():
        if any(name == part or name.endswith(f"/{part}") for name in names):
            return found
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy", "Load the weights into the network in Python, and call torch.save"
    inside = [name for name in names if name.endswith((".pth", ".pt", ".safetensors", ".onnx", ".ckpt", ".bin"))]
    return (f"a zip archive with {inside[0][:80]}", UNPACK) if inside else None


def refusal(where: str, found: tuple[str, str]) -> InvalidCheckpoint:
    """The error for such a file."""
    what, remedy = found
    return InvalidCheckpoint(message(where, "not a checkpoint", what, EXPECTED, remedy))
