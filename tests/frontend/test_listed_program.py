"""A file's operations as a module: named steps, constants that follow casts, results that are let go."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import images

import s_resnet
from s_resnet.errors import InvalidData, UnsupportedModel
from s_resnet.frontend.program import Earlier, Program, Step

KERNEL = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
MATRIX = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def steps(rectify=torch.relu):
    """A convolution whose result is used twice in one argument."""
    conv = Step("/stem/conv.0", "Conv", F.conv2d, (Earlier("x"), KERNEL), {"padding": 1}, "c")
    rectified = Step("rect", "Relu", rectify, (Earlier("c"),))
    both = Step("both", "Concat", torch.cat, ([Earlier("rect"), Earlier("rect")], 1))
    mean = Step("mean", "ReduceMean", torch.mean, (Earlier("both"), (2, 3)))
    return [conv, rectified, both, mean, Step("fc", "Gemm", F.linear, (Earlier("mean"), MATRIX))]


def program(made=None, answer="fc"):
    return Program(made or steps(), "x", answer, (3, 8, 8)).eval()


def expected(x, kernel=KERNEL, matrix=MATRIX):
    rectified = F.conv2d(x, kernel, padding=1).clamp(min=0)
    return torch.cat([rectified, rectified], 1).mean((2, 3)) @ matrix.T


def test_it_computes_the_steps_and_nodes_have_their_names():
    x = images(2, 8)
    graph = s_resnet.trace(program(), x)
    assert torch.allclose(program()(x), expected(x), atol=1e-6) and torch.equal(graph.run(x), program()(x))
    assert {"/stem/conv.0", "rect", "both", "mean", "fc"} <= {node.name for node in graph.nodes}


def test_constants_follow_casts_and_copies():
    x, made = images(2, 8).double(), copy.deepcopy(program()).double()
    assert torch.allclose(made(x), expected(x, KERNEL.double(), MATRIX.double()), atol=1e-12)
    assert {tensor.dtype for tensor in program().buffers()} == {torch.float32}


def test_two_steps_of_one_name_are_two_nodes():
    made = steps()
    made.insert(2, Step("rect", "Relu", torch.relu, (Earlier("rect"),), result="again"))
    made[3] = Step("both", "Concat", torch.cat, ([Earlier("again"), Earlier("again")], 1))
    names = [node.name for node in s_resnet.trace(program(made), images(2, 8)).nodes]
    assert {"rect", "rect_1"} <= set(names) and len(set(names)) == len(names)


def test_results_are_let_go_once_nobody_needs_them():
    alive = []

    def watched(x):
        alive.append(weakref.ref(x))
        return torch.relu(x)

    def counted(x, dims):
        gc.collect()
        assert [reference() is None for reference in alive] == [True]
        return x.mean(dims)

    made = steps(watched)
    made[3] = Step("mean", "ReduceMean", counted, (Earlier("both"), (2, 3)))
    program(made)(images(2, 8))
    assert len(alive) == 1


def test_an_answer_in_the_middle_is_kept():
    assert program(answer="rect")(images(2, 8)).shape == (2, 4, 8, 8)


def test_errors_name_the_step():
    with pytest.raises(InvalidData, match=r"node /stem/conv.0: Conv, got .* for inputs of \(2, 2, 8, 8\)"):
        program()(images(2, 8, 2))
    with pytest.raises(UnsupportedModel, match="node rect: cannot be converted, got operator Relu; expected logits"):
        s_resnet.trace(program(steps(torch.sigmoid)), images(2, 8))
    assert "(/stem/conv.0: Conv)" in repr(program())


def test_convert_without_images_takes_its_shape():
    with pytest.raises(s_resnet.SResNetError, match="BatchNorm"):
        s_resnet.convert(program())
    with pytest.raises(InvalidData, match="for a network of 3 channels"):
        s_resnet.convert(program(), (1, 8, 8))
