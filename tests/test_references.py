"""References in docstrings lead to something that exists, wherever it was moved."""

import importlib
import re

from test_house import OURS

import s_resnet

ROLES = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`([\w.]+)`")
FOUND = sorted({(path, target) for path, source in OURS.items() for target in ROLES.findall(source)})


def leads_somewhere(target):
    """Whether a name such as ``s_resnet.graph.Neuron.run`` is there; a relative module is not told from its place."""
    found, path = s_resnet, "s_resnet"
    for name in target.split(".")[1:]:
        path = f"{path}.{name}"
        if not hasattr(found, name):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        found = getattr(found, name)
    return True


def test_a_name_that_is_not_there_leads_nowhere():
    assert leads_somewhere("s_resnet.Graph.stream") and leads_somewhere("s_resnet.conversion.passes.reconstruct")
    assert not leads_somewhere("s_resnet.graph.Provenance") and not leads_somewhere("s_resnet.nowhere.at_all")
    assert len(FOUND) > 100


def test_every_full_name_in_a_docstring_leads_somewhere():
    full = [(path, target) for path, target in FOUND if target.startswith("s_resnet.")]
    lost = [(path, target) for path, target in full if not leads_somewhere(target)]
    relative = [(path, target) for path, target in FOUND if target.startswith(".")]
    assert not lost and not relative, "write the full name of what is there now"
