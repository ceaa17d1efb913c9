"""The package as the site shows it: docstrings as Markdown, and functions that are called like their modules."""

import re
from collections.abc import Iterator
from typing import Any

import griffe


class AsShown(griffe.Extension):
    """Docstrings are written for readers of the source; and ``s_resnet.simulation.simulate`` is the function."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """One colon before a block for two, and a name as code for a name with its role."""
        if obj.docstring:
            text = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r":[a-z]+:(`[^`]+`)", r"\1", text)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Griffe takes the module where a function has the same name: take the function, wherever it is exported."""
        modules = [module for module in _modules(pkg) if module.exports]
        aliases = [member for module in modules for member in module.members.values() if member.is_alias]
        for alias in aliases:
            if alias.target_path.startswith(f"{pkg.path}."):
                alias.resolve_target()
        functions = {
            module[name].path: module[name][name]
            for module in modules
            for name in module.exports
            if name in module.modules and name in module.imports and name in module[name].functions
        }
        for alias in aliases:
            if alias.resolved and alias.target.path in functions:
                _show(alias.parent, alias.name, functions[alias.target.path])
        for function in functions.values():
            _show(function.module.parent, function.name, function)


def _show(module: griffe.Module, name: str, function: griffe.Object) -> None:
    module.members[name] = griffe.Alias(name, function, parent=module)


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for below in module.modules.values():
        if not below.is_alias:
            yield from _modules(below)
