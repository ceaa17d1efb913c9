"""A GPU whose kernel cannot be had: it runs the reference, and says once what that costs and what to do."""

import contextlib
import warnings
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from s_resnet import kernels
from s_resnet.errors import BackendUnavailable
from s_resnet.graph.neuron import Neuron
from s_resnet.kernels import Update, fallback
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.membrane import cuda, reference

REASON = "no cuda-bindings (pip install 'cuda-bindings==13.*')"
FIRST = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def nobody_was_told(monkeypatch):
    monkeypatch.setattr(fallback, "_warned", set())
    monkeypatch.setattr(cuda, "_reasons", {})


@pytest.fixture
def without_kernel(monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda device: REASON)


def test_one_warning_for_each_device(without_kernel):
    for device in (FIRST, torch.device("cuda:1")):
        with pytest.warns(UserWarning) as caught:
            assert kernels.select(*given(device)) is reference
        (said,) = map(str, [warning.message for warning in caught])
        assert said.startswith(f"{device}: got the reference kernel") and REASON in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for device in ("cuda:0", "cuda:1", "cuda"):  # without an index it is the current one
            kernels.select(*given(device))


def test_it_is_the_callers_line_that_is_warned_of(without_kernel):
    with pytest.warns(UserWarning) as caught:
        kernels.select(*given())
    assert caught[0].filename == __file__


def test_the_device_without_an_index_is_the_current_one(without_kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    with pytest.warns(UserWarning, match="cuda:3: got the reference"):
        kernels.fastest(torch.device("cuda"))
    kernels.fastest(torch.device("cuda:3"))


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_the_reference_was_asked_for_or_is_not_slower(without_kernel, monkeypatch):
    assert kernels.select(*given(), "reference") is reference
    kernels.select(*given("cpu"))
    monkeypatch.setattr(cuda, "unavailable", lambda device: None)
    assert kernels.select(*given()) is cuda
    assert not fallback._warned


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_double_precision_is_the_references_own(dtype, without_kernel):
    """No kernel would run it, so that nothing is missing."""
    neuron = Neuron(torch.tensor(1.0))
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        current = torch.zeros(2, 1, 4, device="cuda", dtype=dtype)
        neuron.advance([current], (torch.zeros(1, 4, device="cuda", dtype=dtype),))
    assert len(caught) == (dtype == torch.float32)


# ---- whether it can be had ----


@pytest.fixture
def a_device(monkeypatch):
    monkeypatch.setattr(nvrtc, "compiler", lambda: (print, "NVRTC 13.0 by cuda-bindings 13.5.0"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(nvrtc, "loaded", lambda instance, device: print)
    monkeypatch.setattr(cuda, "_probe", lambda device: ())
    monkeypatch.setattr(cuda, "integrate_and_fire", lambda *_: None)


def given(device=FIRST, dtype=torch.float32):
    """One step of a layer on a device that is claimed."""
    with FakeTensorMode():
        v = torch.empty(1, 4, device=device, dtype=dtype)
        return v[None], v, Update(torch.ones((), device=device, dtype=dtype))


def raises(error):
    def function(*_, **__):
        raise error

    return function


@pytest.mark.parametrize("where", [(nvrtc, "loaded"), (cuda, "integrate_and_fire")], ids=["load", "first launch"])
@pytest.mark.parametrize("error", [AttributeError("no launch"), TypeError("odd"), BackendUnavailable("said")], ids=repr)
def test_whatever_the_bindings_raise_is_a_reason(where, error, a_device, monkeypatch):
    monkeypatch.setattr(*where, raises(error))
    reason = cuda.unavailable(FIRST)
    assert reason == (str(error) if isinstance(error, BackendUnavailable) else f"{type(error).__name__}: {error}")
    with pytest.warns(UserWarning, match=str(error)):
        assert kernels.select(*given()) is reference
    with pytest.raises(BackendUnavailable, match=str(error)):
        kernels.select(*given(), "cuda")


def test_describe_says_nvrtc_bindings_and_device(a_device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert kernels.describe().endswith("; cuda (NVRTC 13.0 by cuda-bindings 13.5.0, sm_90) on a GPU")
    monkeypatch.setattr(cuda, "_reasons", {torch.device("cuda"): REASON})
    assert kernels.describe().endswith(f"; reference ({REASON}) on a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_probe_launches_the_instance_that_was_loaded(dtype):
    """Whatever torch's default type is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        current, v, update = cuda._probe(torch.device("cpu"))
    finally:
        torch.set_default_dtype(before)
    spikes = torch.empty(2, 1, 8, dtype=update.spike_dtype)
    plan = cuda.plan(current, v, replace(update, after=torch.empty_like(v)), spikes)
    assert plan.instance == cuda._instance(*cuda.PROBE)
