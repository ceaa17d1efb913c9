"""Python's messages speak of arguments, the program's of options."""

import ast
import dataclasses
import importlib
import inspect
import re

import pytest
from sresnet_cli.__main__ import sresnet
from sresnet_cli.words import NAMED, PHRASES, spoken
from test_house import OURS, SPACES

# Options of other programs, and what is made for the command line alone.
OTHERS = {"--upgrade", "--nproc-per-node", "--master-addr", "--version", "--std", "--fmad", "--gpu-architecture"}
FOR_THE_PROGRAM = {"s_resnet/conversion/alternatives.py"}  # whose result is a line of options


def texts(source):
    """The strings of a module that are no docstrings; those that stand beside each other as one."""
    tree = ast.parse(source)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said | inner:
            yield node.value


MESSAGES = {path: list(texts(source)) for path, source in OURS.items()}
EVERY = [text for messages in MESSAGES.values() for text in messages]


def test_the_texts_that_are_checked_are_there():
    assert set(texts('"""Doc --x."""\nraise E(f"a {b} " "c --d")\nx = "e"')) == {"a ... c --d", "e"}
    assert len(EVERY) > 1000


@pytest.mark.parametrize("path", [path for path in MESSAGES if path not in FOR_THE_PROGRAM])
def test_no_message_of_the_library_names_an_option(path):
    found = {option for text in MESSAGES[path] for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert not found - OTHERS, "say the argument; sresnet_cli.words makes it an option"


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in PHRASES])
def test_every_phrase_is_said_somewhere(pattern):
    """Looked for in the texts joined, as a message may be put together from several."""
    heads = re.sub(r"\(\?<?=.*?\)", "", pattern)
    assert any(re.search(heads, text) for text in EVERY)


def arguments():
    """The parameters of all public functions."""
    rooms = [importlib.import_module(f"s_resnet.{space}") for space in SPACES]
    functions = [getattr(room, name) for room in rooms for name in room.__all__]
    usable = [
        one for one in functions if inspect.isfunction(one) or (inspect.isclass(one) and dataclasses.is_dataclass(one))
    ]
    return {name for function in usable for name in inspect.signature(function).parameters}


def options():
    return {option for command in sresnet.commands.values() for one in command.params for option in one.opts}


def test_arguments_and_options_have_the_same_names():
    assert set(NAMED) <= arguments()
    assert {f"--{name.replace('_', '-')}" for name in NAMED} <= options()
    said = {option for _, text in PHRASES for option in re.findall(r"--[a-z-]+", text)}
    assert said and said <= options()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Pass calibration_batches, or choose s-resnet.", "Pass --calibration DATA, or choose s-resnet."),
        ('Use device="cpu" or device="auto".', "Use --device cpu or --device auto."),
        ("pass download=True again", "pass --download again"),
        ("warmup=5 or amp=False, with", "--warmup 5 or no --amp, with"),
        ('recipe="calibrated-constant".', "--recipe calibrated-constant."),
        ("a larger T (convert with timesteps=32);", "a larger T (convert with --timesteps 32);"),
        ("Export with split_maxpool=True if", "Export with --pool host if"),
        ("Leave out arch, or leave out arch", "Leave out --arch, or leave out --arch"),
        (
            "a lower lr or a larger warmup=2. Lower validation.",
            "a lower --lr or a larger --warmup 2. Lower --validation.",
        ),
        ("the batch_size", "the --batch-size"),
        ("auto: got latency and target_drop; ", "auto: got --latency and --target-drop; "),
        ("a streaming network. Leave the confidence out.", "a streaming network. Leave out --exit-confidence."),
        ("T = 4: top-1 is 5, my_recipe=3", "T = 4: top-1 is 5, my_recipe=3"),
    ],
)
def test_what_the_program_says(message, said):
    assert spoken(message) == said
