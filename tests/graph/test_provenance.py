"""The provenance: what files said before it had types comes back, and what is of another kind is refused."""

import json
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest
import torch
from conftest import images, randomized

from s_resnet import Graph, SResNetError, convert, load, save
from s_resnet.conversion.recipes import RECIPES
from s_resnet.data import Binning, Preprocessing
from s_resnet.errors import InvalidData
from s_resnet.graph import Node, ops, provenance
from s_resnet.graph.provenance import AppliedPass, AppliedRecipe, Parts, Provenance, Source
from s_resnet.graph.provenance.entry import Entry
from s_resnet.models import CifarResNet

# As files of format 5 have it: of `sresnet convert` with recipe auto and a fine-tuning after it, and of older ones.
LITERAL = """{
 "calibration": {"fitted": 20, "held_out": 20, "images": 20, "marks": [-612031, 4], "percentile": 99.9,
  "scales": {"linear": 28.0, "relu": 3}, "seed": 7, "silent": [], "source": "data"},
 "check": {"batchnorm": {"first": null, "score": 0.5}, "confidence": 0.75, "images": 40, "mean": [0.1, 0, -0.2],
  "notes": ["odd"], "right": 36, "std": [1.5, 1.25, 1.0]},
 "choice": {"reason": "the fastest", "spikes": "signed", "trials": [{"agreement": 0.8,
  "disagreement_interval": [0.08, 0.4], "end_to_end_steps": 28, "images": 20,
  "recipe": "phased", "standard_error": 0.1, "timesteps": 4}]},
 "answer_shape": [10, 1, 1],
 "classes": ["Katze", "猫"],
 "compensation": {"criterion": "accuracy", "curve": [{"accuracy": 1.0, "factor": 1.0, "logit_error": 0.5}],
  "expected": 1.1, "factor": 1.0, "images": 20, "range": [1.0, 1.0], "timesteps": 64},
 "data": {"digest": "ab", "fingerprints": ["9-f0"], "images": 40, "spec": "digits", "split": "train"},
 "fixed_size": [32, 30],
 "input_shape": [3, 32, 32],
 "preprocessing": {"mean": [0.5, 0.4, 0.3], "resize": 9, "size": 8, "std": [0.2, 0.25, 1.0]},
 "recipe": {"name": "phased", "passes": [{"pass": "fold_batchnorm"},
  {"initial_potential": 0.5, "pass": "relu_to_neuron", "schedule": "phased"}], "timesteps": 4},
 "reconstruction": {"asked": {"joint": 1000, "minutes": 30, "steps": 250, "total": 1250}, "blocks": [
  {"better": true, "block": "relu", "steps": 250}, {"better": false, "block": "all together", "steps": 7}],
  "images": 20, "taken": true},
 "source": {"arch": "cifar_resnet8", "classes": 2, "name": "tiny.pth", "sha256": "42"},
 "tuning": {"batch_size": 64, "data": "digits", "epochs": 1, "lr": 0.001, "optimizer": "adamw", "seed": 0,
  "split": "train",  "timesteps": 4, "top1_after": 0.75, "top1_before": 0.5, "validation": 32, "weight_decay": 0.0},
 "versions": {"s_resnet": "0.1.0", "torch": "2.14.1+cu130"},
 "who": "me", "where": {"room": [1, null, 2.5]}
}"""
EVENTS = {"events": {"bins": 10, "microseconds": 30000, "size": [32, 48]}}


def graph(known=None):
    nodes = (Node("input", ops.Input(), ()), Node("relu", ops.ReLU(), ("input",)))
    return Graph(nodes, known or Provenance())


# ---- JSON ----


def test_what_a_file_says_comes_back_to_the_letter(tmp_path):
    said = json.loads(LITERAL)
    known = Provenance.from_json(said)
    assert json.dumps(known.to_json(), sort_keys=True) == json.dumps(said, sort_keys=True)
    assert known.checked() == known == Provenance.from_json(known.to_json())
    save(graph(known), tmp_path / "x.snn")
    assert load(tmp_path / "x.snn").provenance == known


def test_what_it_says_has_types():
    known = Provenance.from_json(json.loads(LITERAL))
    assert (known.recipe.name, known.recipe.timesteps, known.input_shape) == ("phased", 4, (3, 32, 32))
    settings = {"initial_potential": 0.5, "schedule": "phased"}
    assert known.recipe.passes == (AppliedPass("fold_batchnorm"), AppliedPass("relu_to_neuron", extra=settings))
    assert known.preprocessing == Preprocessing(8, 9, (0.5, 0.4, 0.3), (0.2, 0.25, 1))
    assert known.check.batchnorm.first is None and known.choice.trials[0].disagreement_interval == (0.08, 0.4)
    assert known.compensation.curve[0].extra == {"accuracy": 1.0}  # of a version that looked at labels
    assert known.extra == {"who": "me", "where": {"room": [1, None, 2.5]}}
    assert Provenance.from_json({"preprocessing": EVENTS}).preprocessing == Binning(10, 30_000, (32, 48))
    assert Provenance(preprocessing=Binning(10, 30_000, (32, 48))).to_json() == {"preprocessing": EVENTS}


def test_the_literal_has_every_part_and_every_field():
    """So that what is added is added there too."""
    said, seen = json.loads(LITERAL), set()

    def look(entry):
        seen.add(type(entry))
        for one in fields(entry):
            value = getattr(entry, one.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Entry):
                    look(part)

    look(Provenance.from_json(said))
    assert seen == {kind for kind in vars(provenance).values() if isinstance(kind, type) and issubclass(kind, Entry)}
    kinds = {one.name: type(one.default) for one in fields(Provenance) if isinstance(one.default, Entry)}
    missing = {f"{name}.{one.name}" for name, kind in kinds.items() for one in fields(kind)}
    missing -= {f"{name}.{part}" for name in kinds for part in said[name]} | {f"{name}.extra" for name in kinds}
    assert missing == {"compensation.reason", "reconstruction.key"}


def test_what_is_not_said_is_none_and_not_written():
    nothing = Provenance()
    assert not nothing and nothing.to_json() == {} and Provenance.from_json({}) == nothing
    assert nothing.recipe.timesteps is nothing.classes is nothing.data.spec is None
    assert not nothing.choice and bool(Provenance(extra={"mine": 1})) and bool(AppliedRecipe(timesteps=4))
    assert Provenance.from_json({"recipe": {}, "calibration": {}, "classes": []}).to_json() == {"classes": []}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_conversion_says_is_the_same_from_its_file(tmp_path, recipe):
    snn = convert(randomized(CifarResNet(8, width=2)), [images(12, 8)], recipe, timesteps=2)
    save(snn, tmp_path / "x.snn")
    assert load(tmp_path / "x.snn").provenance == snn.provenance
    assert json.loads(json.dumps(snn.provenance.to_json(), allow_nan=False)) == snn.provenance.to_json()


# ---- kinds ----

WRONG = {
    "recipe": [3, "x", {"timesteps": 0}, {"timesteps": 2**31}, {"timesteps": True}, {"passes": [{"no": "pass"}]}],
    "source": ["mine", {"arch": None}, {"classes": -1}, {"sha256": 7}],
    "data": [{"spec": 1}, {"fingerprints": "a"}, {"fingerprints": [1]}, {"images": 2**31}],
    "calibration": [{"scales": {"a": 0}}, {"scales": {"a": float("inf")}}, {"marks": [1.5]}, {"silent": [None]}],
    "preprocessing": [
        [8],
        {"size": 8, "resize": 8, "mean": [0, 0], "std": [1, 1, 1]},
        {"size": 2**12 + 1, "resize": 2**12 + 1},
        {"size": 8, "resize": 2**13 + 1},
        {"events": {"bins": 2**9 + 1, "microseconds": 1, "size": [8, 8]}},
        {"events": {"bins": 1, "microseconds": 1, "size": [8, 2**13]}},
        {"events": 3},
        {"speed": 3},
    ],
    "classes": ["ab", [1], {"0": "a"}],
    "input_shape": [[3, 8], [3, 0, 8], [3, 8, 8.0], 3],
    "fixed_size": [[8], [8, 2**13]],
    "answer_shape": [7, [1.5]],
    "check": ["fine", {"mean": ["a"]}, {"std": [1e31]}, {"batchnorm": {"score": 1.0}}, {"notes": "all"}],
    "compensation": [[], {"factor": "1"}, {"curve": [{}]}],
    "reconstruction": [{"blocks": [{"block": "relu", "steps": 3}]}, {"asked": {}}, {"taken": 1}, {"key": 2}],
    "choice": [{"trials": [{"recipe": "phased"}]}, {"reason": 1}],
    "tuning": [{"lr": "small"}, {"epochs": 1.5}],
    "versions": [{"torch": 2}, "2"],
}


@pytest.mark.parametrize("name", WRONG)
def test_another_kind_is_refused_wherever_it_comes_from(name):
    for value in WRONG[name]:
        with pytest.raises(InvalidData) as caught:
            Provenance.from_json({name: value})
        assert "; expected " in str(caught.value) and name in str(caught.value)
        with pytest.raises(InvalidData):
            graph().with_provenance(**{name: value})


def test_the_message_names_the_place():
    with pytest.raises(InvalidData, match=r"^provenance: recipe\.passes\.pass, got 3; expected a text: S-ResNet reads"):
        Provenance.from_json({"recipe": {"passes": [{"pass": 3}]}})
    with pytest.raises(InvalidData, match=r"^provenance: source, got 'mine'; expected a dict with name, arch,"):
        graph().with_provenance(source="mine")


def test_every_part_is_refused_somewhere_and_can_be_given():
    names = {one.name for one in fields(Provenance)} - {"extra"}
    assert names == WRONG.keys() and all(one.default is not MISSING for one in fields(Provenance) if one.name in names)
    own, given = get_type_hints(Provenance), get_type_hints(Parts)
    assert own.keys() == given.keys()
    assert all(own[name] in (given[name], given[name] | None) for name in given)


# ---- with_provenance ----


def test_parts_take_the_place_of_parts_and_own_entries_are_added():
    one = graph().with_provenance(source=Source("a", "b"), classes=("x",), extra={"mine": 1, "other": (1, 2)})
    two = one.with_provenance(source=Source("c"), extra={"mine": 2})
    assert two.provenance.source == Source("c") and two.provenance.classes == ("x",)
    assert two.provenance.extra == {"mine": 2, "other": (1, 2)} and one.provenance.extra["mine"] == 1
    assert two.nodes is one.nodes


def test_own_entries_must_be_json_and_have_names_of_their_own(tmp_path):
    with pytest.raises(InvalidData, match=r"recipe, got 1; expected nothing under that name in extra"):
        graph().with_provenance(extra={"recipe": 1})
    with pytest.raises(SResNetError, match="not JSON"):
        save(graph().with_provenance(extra={"weights": torch.ones(2)}), tmp_path / "x.snn")
    assert not list(tmp_path.iterdir())


def test_long_lists_are_left_out_of_what_people_read():
    short = Provenance.from_json(json.loads(LITERAL)).without_lists().to_json()
    assert short["data"] == {"digest": "ab", "images": 40, "spec": "digits", "split": "train"}
    assert not {"marks", "scales"} & short["calibration"].keys() and short["classes"] == ["Katze", "猫"]


def test_parts_that_do_not_exist_and_dicts_in_place_of_a_provenance_are_refused():
    """Before it had types, any entry could be passed by its name, and the provenance was a dict."""
    graph = Graph((Node("input", ops.Input(), ()),))
    with pytest.raises(InvalidData, match=r"got part 'owner'; expected one of recipe, .*extra=\{\.\.\.\}"):
        graph.with_provenance(owner="me")
    with pytest.raises(InvalidData, match="extra, got a value of type list"):
        graph.with_provenance(extra=["me"])
    assert graph.with_provenance(extra={"owner": "me"}).provenance.extra == {"owner": "me"}
    with pytest.raises(InvalidData, match=r"graph: provenance, got a value of type dict.*from_json"):
        Graph(graph.nodes, {})
