"""Training on event recordings: what the network is given, and what a checkpoint says of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train import content, same_end

import s_resnet
from s_resnet import Training, train
from s_resnet.data import Binning, EventData
from s_resnet.errors import InvalidData
from s_resnet.models.catalog import build
from s_resnet.training.settings import Execution, derive_seed

BRIEF = Training(epochs=2, batch_size=8, width=4, lr=0.05, timesteps=3, size=8)


def recordings(count=16, split="train", seed=0):
    """Gestures in memory, as tonic would give them: class 1 has its events on the right."""
    rng, source = np.random.default_rng(seed), []
    for index in range(count):
        events = np.zeros(300, dtype=[("t", "i8"), ("x", "i8"), ("y", "i8"), ("p", "i8")])
        events["t"] = np.sort(rng.integers(0, 200_000, 300))
        events["x"] = rng.integers(0, 64, 300) + 64 * (index % 2)
        events["y"], events["p"] = rng.integers(0, 128, 300), rng.integers(0, 2, 300)
        source.append((events, index % 2))
    names, labels = tuple(f"{split}-{i}" for i in range(count)), tuple(label for _, label in source)
    return EventData("dvsgesture:/x", split, ("left", "right"), names, labels, source=source)


def trained(path, settings=BRIEF, arch="ds_resnet8", data=None, test=None, **options):
    execution = Execution(device="cpu", workers=0, **options)
    return train(arch, data or recordings(), path, settings, test=test, execution=execution)


def test_a_step_is_that_by_hand(tmp_path):
    """Frames counted here: T bins of 30 ms, 8 x 8 of 128 x 128 pixels; one batch of all, one step."""
    data = recordings()
    result = trained(tmp_path / "x.pt", replace(BRIEF, epochs=1, batch_size=16, schedule="constant"), data=data)
    frames = torch.zeros(3, 16, 2, 8, 8)
    for index, (events, _) in enumerate(data.source):
        for t, x, y, p in zip(*(events[name] for name in "txyp"), strict=True):
            if (step := int(t - events["t"].min()) // 30_000) < 3:
                frames[step, index, p, y // 16, x // 16] += 1
    torch.manual_seed(derive_seed(0, "weights"))
    model = build("ds_resnet8", 2, timesteps=3, input_shape=(2, 8, 8), width=4).train()
    loss = F.cross_entropy(model(frames), torch.tensor(data.labels))
    assert result.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    gradients = torch.autograd.grad(loss, model.parameters())
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.data -= 0.05 * (g + 5e-4 * p.data)
    for (name, p), q in zip(model.state_dict().items(), result.model.state_dict().values(), strict=True):
        torch.testing.assert_close(q, p, atol=1e-5, rtol=1e-4, msg=name)


def test_stopped_and_gone_on(tmp_path):
    class Killed(BaseException):
        pass

    def stop(entry):
        raise Killed

    test = recordings(6, "test", 1)
    trained(tmp_path / "whole.pt", test=test)
    with pytest.raises(Killed):
        trained(tmp_path / "part.pt", test=test, on_epoch=stop)
    assert trained(tmp_path / "part.pt", test=test).resumed == 1
    assert same_end(tmp_path / "part.pt", tmp_path / "whole.pt")


def test_the_checkpoint_says_what_it_wants(tmp_path):
    result = trained(tmp_path / "x.pt")
    loaded = s_resnet.load_checkpoint(tmp_path / "x.pt")
    assert (loaded.timesteps, loaded.channels, loaded.input_size, loaded.classes) == (3, 2, 8, ("left", "right"))
    assert loaded.preprocessing == Binning(3, 30_000, (8, 8))
    x = torch.rand(3, 4, 2, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), result.model(x))


def test_bins_are_the_papers_unless_said(tmp_path):
    result = trained(tmp_path / "x.pt", Training(epochs=1, batch_size=8, width=4, normalize_input=True))
    assert (result.settings.timesteps, result.settings.size, result.settings.augmentation) == (40, 32, ())
    wanted = s_resnet.training.preset("ds_resnet20", recordings())
    assert (wanted.timesteps, wanted.size) == (40, 32)
    assert content(tmp_path / "x.pt")["preprocessing"]["events"]["microseconds"] == 30_000
    assert s_resnet.load_checkpoint(tmp_path / "x.pt").timesteps == 40


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(InvalidData, match="augmentation, got crop for events; expected none"):
        trained(path, replace(BRIEF, augmentation=("crop",)))
    with pytest.raises(InvalidData, match="got that of images; expected a Binning"):
        trained(path, replace(BRIEF, preprocessing=s_resnet.data.preprocessing_for(8)))
    with pytest.raises(InvalidData, match="expected 3, of images"):
        trained(path, arch="cifar_resnet8")
    data = recordings()
    data.source[5][0]["x"][3] = 500
    with pytest.raises(InvalidData, match=r"^train: recording, got train-5 \(.*500.*Repair or remove it\.$") as caught:
        trained(path, data=data)
    assert "\n" not in str(caught.value)
    assert not path.exists()
