"""Reading a network from a program of ``torch.export``: as data only, never through torch's own loader.

Torch's loader of such files unpickles parts of them. Here the archive is opened, its JSON checked, and every operator
looked up in a table of our own (:mod:`s_resnet.frontend.exported.aten`); tensors are raw numbers.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

from ...errors import InvalidCheckpoint, UnsupportedModel, message
from ...files import opened, reason
from ..loaded import Checkpoint
from ..program import Program
from ..program_limits import answer_shape
from ..weights.checkpoint_file import LARGEST
from .archive import AGAIN, SCHEMA, VERSION, Archive, Malformed, field
from .graph import ExportedGraph
from .steps import program_of

PROGRAM = "models/"  # where an archive has its programs
OURS = "extra/s_resnet.json"  # what export_torch adds
OTHERS = {
    "data/aotinductor/": "code that AOTInductor compiled for one machine",
    "data/executorch/": "a program compiled for ExecuTorch",
}


def is_exported_program(path: Path) -> bool:
    """Whether a file is an archive of ``torch.export.save``, by its content."""
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            return any(name.partition("/")[2] == "archive_format" for name in archive.namelist())
    except Exception:  # a damaged directory can fail in any way; whoever reads the file next says so
        return False


def load(path: Path) -> Checkpoint:
    """The network in a program of ``torch.export``, with free batch size.

    Nodes have the names that they have in the module which was exported, where the file says them. Floating-point
    numbers become float32.

    Raises:
        InvalidCheckpoint: the file is damaged, of another version, or something else than a program.
        UnsupportedModel: the program cannot be converted; the message names the node.
    """
    where = str(path)
    try:
        with opened(path, LARGEST) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            model, writer, size = _read(Archive(file, where))
    except OSError as error:
        remedy = "Name a file that you can read"
        raise InvalidCheckpoint(message(where, "cannot be read", reason(error), "a readable file", remedy)) from None
    answer = answer_shape(model, where, size)
    if len(answer) not in (2, 4) or answer[0] != 2:
        remedy = "Export a network that returns the logits of a batch of images"
        raise UnsupportedModel(message(f"{where}: output", "", f"{list(answer)} for two images", "[B, N]", remedy))
    return Checkpoint(
        model=model.eval(),
        arch=f"torch.export program{writer}",
        num_classes=answer[1],
        input_size=max(model.image_shape[1:]),
        digest=digest,
        name=path.name,
        channels=model.image_shape[0],
    )


def _read(archive: Archive) -> tuple[Program, str, int]:
    """The program, which torch wrote it, and the bytes of the file."""
    try:
        name = _name(archive)
        said = _program(archive, name)
        graph = ExportedGraph(field(said, "graph_module", dict), archive.where)
        tensors = {kind: archive.tensors(name, kind) for kind in ("weights", "constants")}
        version = said.get("torch_version")
        known = isinstance(version, str) and re.fullmatch(r"[\w.+]{1,30}", version, re.ASCII)
        return program_of(graph, tensors), f" of torch {version}" if known else "", archive.size
    except Malformed as error:
        raise archive.bad(str(error)) from None


def _name(archive: Archive) -> str:
    """The name of the one program in an archive.

    Raises:
        InvalidCheckpoint: there are none or several, or it is not a network to convert.
    """
    names = [part for part in archive.parts if part.startswith(PROGRAM) and part.endswith(".json")]
    if OURS in archive.parts:
        got = "a spiking network that sresnet export wrote"
        remedy = "Convert the checkpoint of the ANN; run this file with torch.export.load"
        raise InvalidCheckpoint(message(archive.where, "exported program", got, "a trained ANN", remedy))
    for folder, what in OTHERS.items():
        if not names and any(part.startswith(folder) for part in archive.parts):
            expected, remedy = "a program of torch.export", "Save the exported program itself with torch.export.save"
            raise InvalidCheckpoint(message(archive.where, "compiled network", what, expected, remedy))
    if len(names) != 1:
        got = f"{len(names)} programs{': ' if names else ''}{', '.join(names[:3])}"
        remedy = "Save the program of the network alone with torch.export.save"
        raise InvalidCheckpoint(message(archive.where, "exported program", got, "one program", remedy))
    return names[0].removeprefix(PROGRAM).removesuffix(".json")


def _program(archive: Archive, name: str) -> Any:
    """The JSON of its program, after a check of the versions."""
    kind, version = archive.text("archive_format"), archive.text("archive_version")
    if (kind, version) != ("pt2", VERSION) or archive.text("byteorder") not in ("", "little"):
        got, expected = f"archive {kind} {version} {archive.text('byteorder')}", f"pt2 {VERSION} little"
        raise InvalidCheckpoint(message(archive.where, "exported program", got, expected, AGAIN))
    program = archive.json(f"{PROGRAM}{name}.json")
    major = field(field(program, "schema_version", dict), "major", int)
    if major != SCHEMA:
        got, expected = f"schema {major} of torch {program.get('torch_version')!r:.40}", f"schema {SCHEMA}"
        raise InvalidCheckpoint(message(archive.where, "exported program", got, expected, AGAIN))
    return program
