"""Docstrings in one form, errors by one builder, and calls that say what they pass."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from s_resnet import errors

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "s_resnet").rglob("*.py"))
ERRORS = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
SECTIONS = ("Args", "Attributes", "Raises")


@cache
def parsed(path):
    """A file as it was parsed once for all rules."""
    return ast.parse((ROOT / path).read_text())


def documented(tree):
    """Modules, classes and functions with a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node, text


def entries(text, section):
    """The names that a section lists, with what it says of them."""
    body = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    return re.findall(r"^    (\*{0,2}\w+): (.*)", body[1], re.MULTILINE) if body else []


def known(node):
    """The arguments of a function or a class, and the fields of a class."""
    if isinstance(node, ast.FunctionDef):
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        return {argument.arg for argument in every if argument is not None}
    inside = [part for part in ast.walk(node) if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)]
    fields = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)} if node.body else set()
    makers = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    return fields | {part.attr for part in inside} | {name for maker in makers for name in known(maker)}


def faults(tree):
    """What is not in the form: single backticks, errors in running text, and names that are not there."""
    for node, text in documented(tree):
        plain = re.sub(r"``[^`]*``|:\w+:`[^`]*`", "", text)
        if "`" in plain:
            yield "a single backtick"
        if re.search(r"^(?!Raises:).*\bRaises? (InvalidData|[A-Z]\w+Error)\b", plain, re.MULTILINE):
            yield "an error outside of Raises:"
        if isinstance(node, ast.Module):
            continue
        for section in ("Args", "Attributes"):
            for name, _ in entries(text, section):
                if name.lstrip("*") not in known(node):
                    yield f"{name}, which {node.name} has not"


def test_docstrings_have_sections():
    assert not {path: found for path in FILES if (found := list(faults(parsed(path))))}


def test_there_are_sections_to_be_seen():
    found = [
        name
        for path in FILES
        for _, text in documented(parsed(path))
        for section in SECTIONS
        for name, _ in entries(text, section)
    ]
    assert len(found) > 1000


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('def f(x):\n    """The `x`."""', "a single backtick"),
        ('def f(x):\n    """The x. Raises InvalidData for none."""', "an error outside of Raises:"),
        ('def f(x):\n    """The x.\n\n    Args:\n        y: a number.\n    """', "y, which f has not"),
        (
            'class A:\n    """An A.\n\n    Attributes:\n        y: a number.\n    """\n\n    x: int',
            "y, which A has not",
        ),
    ],
)
def test_the_check_of_docstrings_sees_it(text, fault):
    assert list(faults(ast.parse(text))) == [fault]
    assert not list(faults(ast.parse('def f(x):\n    """``x`` of :func:`f`.\n\n    Args:\n        x: it.\n    """')))


# ---- messages


def written(tree):
    """Errors of ours whose text is written where they are raised."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in ERRORS:
            continue
        if any(isinstance(part, ast.Constant | ast.JoinedStr | ast.BinOp) for part in node.args):
            yield node.lineno


def test_errors_are_built_by_message():
    assert not {path: found for path in FILES if (found := list(written(parsed(path))))}


def test_the_check_of_messages_sees_it():
    assert list(written(ast.parse('raise InvalidData(f"{x}: got 1; expected 2. Pass 2.")'))) == [1]
    assert not list(written(ast.parse('raise InvalidData(message("x", "", 1, 2, "Pass 2"))')))


# ---- calls


def spread(tree):
    """Calls with a literal tuple that is spread to make them fit on a line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for part in node.args:
                if isinstance(part, ast.Starred) and isinstance(part.value, ast.Tuple | ast.List):
                    yield part.lineno


def test_no_call_spreads_a_literal_tuple():
    assert not {path: found for path in FILES if (found := list(spread(parsed(path))))}


def test_the_check_of_calls_sees_it():
    assert list(spread(ast.parse("f(*(a, b), c=1)"))) == [1] and not list(spread(ast.parse("f(*a, b)")))
