"""More than one process, for real: gloo processes on this machine, of torchrun's or forked, answer as one does."""

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import PATIENCE, context, words_to
from test_cli import SIZE, Program, figures, make_checkpoint, make_photos, tiny

import s_resnet
from s_resnet import SResNetError
from s_resnet.errors import BackendUnavailable
from s_resnet.runtime import process_group, processes, shard

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def torchrun(folder, *arguments):
    """Two processes of the program: exit code, stdout and the lines of stderr."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "sresnet_cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, **pipes) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes; killed, it would leave them behind
            raise
    # torch's sockets complain of host names that do not resolve; that is the machine's affair.
    return process.returncode, out, [line for line in err.splitlines() if "socket.cpp" not in line]


def as_rank(rank, port, folder, arguments):
    """One of two processes, told what torchrun tells: the program, or a script; its words go to files."""
    os.chdir(folder)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(TORCHELASTIC_RUN_ID="x", TORCHELASTIC_USE_AGENT_STORE="True")
    words_to(folder, rank)
    torch.set_num_threads(1)
    if arguments[0] in ("evaluate", "convert"):
        sys.argv = ["sresnet", *arguments]
        sys.modules["sresnet_cli.__main__"].main()
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def forked(folder, *arguments):
    """As torchrun, from a process that has imported torch once for all tests: a fraction of the time."""
    fork = context()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = [(rank, store.port, folder, list(map(str, arguments))) for rank in range(2)]
    processes = [fork.Process(target=as_rank, args=each) for each in told]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    for process in processes:
        process.kill()
        process.join()
    out, err = ("".join((folder / f"{name}{rank}").read_text() for rank in range(2)) for name in ("out", "err"))
    codes = [process.exitcode for process in processes]
    return max(codes, key=abs), out, [line for line in err.splitlines() if "socket.cpp" not in line]


def untimed(path):
    """The figures of a report without what is measured."""
    report = figures(path)
    if "exit" in report:
        del report["exit"]["images_per_second"]
    return report


def unmeasured(table):
    """The table without its last line, and what stands beside the figures of a row."""
    return [re.sub(r"[\d.]+ images/s", "", line) for line in table.splitlines()[:-1]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with tiny.snn for 8 pixels and 10 classes."""
    monkeypatch.chdir(tmp_path)
    loaded = s_resnet.load_checkpoint(make_checkpoint(tmp_path / "tiny.pth", tiny(10)))
    snn = s_resnet.convert(loaded.model, (3, SIZE, SIZE), "s-resnet", timesteps=8)
    settings = s_resnet.data.preprocessing_for(SIZE)
    s_resnet.save(snn.with_provenance(preprocessing=settings), tmp_path / "tiny.snn")
    return tmp_path


@pytest.fixture
def alone(folder, monkeypatch, capfd):
    """The program in this process alone: exit code, stdout and the lines of stderr."""
    program = Program(monkeypatch, capfd)

    def run(*arguments):
        code, out, err = program(*arguments)
        return code, out, err.splitlines()

    return run


# ---- who takes which image


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 8, 100])
def test_the_shards_hold_every_index_once(count, world):
    indices = [3 * i + 1 for i in range(count)]
    parts = [shard(indices, rank, world) for rank in range(world)]
    assert sorted(index for part in parts for index in part) == indices
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and min(map(len, parts)) == count // world
    assert all(part == sorted(part) for part in parts)  # in order, as one process takes them


# ---- the program


LEFT = """
import os, sys
for name in [name for name in sys.modules if name.startswith("torch.distributed.nn")]:
    del sys.modules[name]  # not imported yet, as in a process that has just begun
from s_resnet.runtime import process_group
before = os.listdir("/proc/self/task")
with process_group("cpu"):
    import torch.distributed.nn.functional  # as some transforms of torchvision do; it takes the group as a default
    during = os.listdir("/proc/self/task")
sys.stdout.write(f"{len(during) > len(before)} {os.listdir('/proc/self/task') == before}\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_no_thread_of_a_process_group_is_left(tmp_path):
    """One that is left can abort the process when Python ends."""
    (tmp_path / "left.py").write_text(LEFT)
    assert forked(tmp_path, "left.py") == (0, "True True\n" * 2, [])


def test_two_processes_say_what_one_says(folder, alone):
    """33 images in batches of 8: the last batch of one process holds one image, the other's are even."""
    pytest.importorskip("sklearn")
    asked = ("evaluate", "tiny.snn", "--timesteps", 8, "--at", "3,8", "--exit-confidence", 0.12,
             "--data", "digits", "--limit", 33, "--batch-size", 8, "--device", "cpu")  # fmt: skip
    one = alone(*asked, "--json", "one.json")
    two = torchrun(folder, *asked, "--json", "two.json")
    assert (one[0], one[2]) == (two[0], two[2]) == (0, [])
    assert unmeasured(one[1]) == unmeasured(two[1])  # one table, from one process
    report = untimed(folder / "one.json")
    assert report["images"] == 33 and 1 < report["exit"]["mean_timesteps"] < 8
    assert untimed(folder / "two.json") == report
    measured = json.loads((folder / "two.json").read_text())
    speed, cost = measured["images_per_second"], measured["seconds_per_step_per_image"]
    assert speed * cost * 8 == pytest.approx(1) and measured["peak_memory_bytes"] > 2**20


def test_more_processes_than_images(folder, alone):
    pytest.importorskip("sklearn")
    asked = ("evaluate", "tiny.snn", "--timesteps", 4, "--data", "digits", "--limit", 1, "--device", "cpu")
    one = alone(*asked, "--json", "one.json")
    two = forked(folder, *asked, "--json", "two.json")
    assert (one[0], one[2]) == (two[0], two[2]) == (0, [])
    assert unmeasured(one[1]) == unmeasured(two[1]) and "1 images" in two[1]
    assert untimed(folder / "two.json") == untimed(folder / "one.json")


def test_an_error_in_one_process_ends_all_with_one_line(folder, alone):
    """The only wrong label is in the second process's part; the first says it, as one process would."""
    path, count = folder / "data.npz", 12
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(path, x=pixels, y=np.arange(count) % 10)
    second = shard(s_resnet.data.choose(s_resnet.data.open_data(str(path), "evaluation"), None), 1, 2)
    labels = np.arange(count) % 10
    labels[second[-1]] = 11
    np.savez(path, x=pixels, y=labels)
    asked = ("evaluate", "tiny.snn", "--timesteps", 2, "--data", "data.npz", "--batch-size", 2,
             "--device", "cpu", "--json", "out.json")  # fmt: skip
    one = alone(*asked)
    assert one[0] == 1 and len(one[2]) == 1 and one[2][0].startswith("Error: evaluate: got label 11 ")
    code, out, said = forked(folder, *asked)
    assert code == 1 and out == "" and not (folder / "out.json").exists()
    assert said == one[2]


def test_a_process_without_a_readable_image_is_no_error(folder, alone):
    photos = make_photos(folder / "photos", count=1, classes="abcdefghij")
    data = s_resnet.data.open_data(str(photos), "evaluation")
    chosen = s_resnet.data.choose(data, 3)
    broken = Path(data.root, data.names[chosen[1]])  # all that the second process has
    broken.write_bytes(b"no image")
    asked = ("evaluate", "tiny.snn", "--timesteps", 2, "--data", "photos", "--limit", 3, "--device", "cpu")
    one = alone(*asked, "--json", "one.json")
    two = forked(folder, *asked, "--json", "two.json")
    assert one[0] == two[0] == 0 and one[2] == two[2]
    assert len(one[2]) == 1 and one[2][0].startswith("Left out 1 unreadable image(s): ") and broken.name in one[2][0]
    report = untimed(folder / "two.json")
    assert report["images"] == 2 and report == untimed(folder / "one.json")


def test_two_processes_convert_as_one_does(folder, alone):
    """One says what was done and writes; what is summed exactly is the same to the last bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (33, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", x=pixels, y=np.arange(33) % 10)
    asked = ("convert", "tiny.pth", "--calibration", "data.npz", "--recipe", "phased", "--timesteps", 4,
             "--input-size", SIZE, "--device", "cpu", "--memory", "3GB")  # fmt: skip
    one = alone(*asked, "-o", "one.snn")
    two = forked(folder, *asked, "-o", "two.snn")
    assert (one[0], two[0]) == (0, 0), two[2]
    assert two[1] == one[1].replace("one.snn", "two.snn") and two[2] == one[2]
    mine, theirs = (s_resnet.load(folder / f"{name}.snn") for name in ("one", "two"))
    assert theirs.provenance.data == mine.provenance.data
    assert theirs.provenance.calibration == mine.provenance.calibration
    for name, value in mine.tensors().items():
        torch.testing.assert_close(theirs.tensors()[name], value, rtol=1e-3, atol=1e-3)
    again = alone(*asked, "-o", "two.snn")  # which is there
    code, out, said = forked(folder, *asked, "-o", "two.snn")
    assert (code, out, said) == again and code == 2 and "--force" in said[-1]


# ---- from Python, in a group that the caller made

SCRIPT = """
import json, os, sys, time
import torch
import torch.distributed as dist
import s_resnet

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
with s_resnet.runtime.process_group("cpu") as place:  # joins nothing, and leaves what is not its own
    assert place == (rank, world)
snn = s_resnet.load("tiny.snn")
images, labels = torch.load("data.pt", weights_only=True)
mine = s_resnet.runtime.shard(range(len(images)), rank, world)
loader = list(zip(images[mine].split(4), labels[mine].split(4)))
how = s_resnet.analysis.EvaluationSettings(early_exit=0.12)
said = {"report": s_resnet.evaluate(snn, loader, 4, how, at=[2, 4], device="cpu").to_dict()}

def failing():
    yield loader[0]
    if rank == 1:
        raise ValueError("no such\\nluck")
    yield from loader * 1000

for name, batches in (("failing", failing()), ("empty", [])):
    try:
        s_resnet.evaluate(snn, batches, 4, device="cpu")
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]

with s_resnet.runtime.first_process_first():
    if rank == 0:
        time.sleep(1)
    said["time"] = time.time()
whole = [(images[:6], labels[:6]), (images[6:], labels[6:])]  # in both processes
said["twice"] = s_resnet.evaluate(snn, whole, 2, device="cpu").to_dict()
said["ranks"] = s_resnet.runtime.all_gather(rank)  # errors have not put the processes out of step
if rank == 1:
    dist.monitored_barrier()
    os.write(1, (json.dumps(said) + "\\n").encode())
    os._exit(0)
dist.monitored_barrier()
try:
    s_resnet.runtime.all_gather(None)
except s_resnet.SResNetError as error:
    said["gone"] = str(error)
os.write(1, (json.dumps(said) + "\\n").encode())
os._exit(0)
"""


def test_evaluate_in_a_group_of_the_callers_own(folder):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(11, 3, SIZE, SIZE, generator=generator), torch.arange(11) % 10
    torch.save((images, labels), folder / "data.pt")
    (folder / "script.py").write_text(SCRIPT)
    code, out, said = forked(folder, "script.py")
    assert (code, said) == (0, [])
    first, second = sorted(map(json.loads, out.splitlines()), key=lambda said: "gone" not in said)
    snn = s_resnet.load(folder / "tiny.snn")
    alone = s_resnet.evaluate(
        snn, [(images, labels)], 4, s_resnet.analysis.EvaluationSettings(early_exit=0.12), at=[2, 4], device="cpu"
    )

    def same(report):
        exit = {name: value for name, value in report["exit"].items() if name != "images_per_second"}
        return report["images"], report["ann"], report["snn"], exit

    assert first["report"] == second["report"]  # measured once for all
    assert same(first["report"]) == same(json.loads(json.dumps(alone.to_dict()))) and alone.images == 11
    assert second["failing"] == ["ValueError", "no such\nluck"]
    kind, text = first["failing"]
    assert kind == "SResNetError" and text.startswith("process 1: failed, got ValueError (no such); expected")
    assert first["empty"] == second["empty"] and first["empty"][0] == "InvalidData" and "no images" in first["empty"][1]
    assert first["twice"]["images"] == 22 and first["twice"]["repeated"] == second["twice"]["repeated"] == 11
    assert (
        any("s_resnet.runtime.shard" in note for note in first["twice"]["notes"]) and "repeated" not in first["report"]
    )
    assert first["time"] < second["time"] and first["ranks"] == second["ranks"] == [0, 1]
    assert first["gone"].startswith("process 0: another process is gone, got ") and "\n" not in first["gone"]


# ---- one process


def test_alone_there_is_nothing_to_join(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # some machines set it for other reasons: torchrun was not there
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with process_group() as place:
        assert place == (0, 1) == processes.rank_and_world_size()
        with processes.first_process_first():
            assert s_resnet.runtime.all_gather("a") == ["a"]
    assert list(processes.in_lockstep_batches([1, None, 3])) == [1, None, 3]
    with pytest.raises(KeyError, match="x"), process_group():
        raise KeyError("x")


@pytest.mark.parametrize("error", [None, ValueError("x")])
def test_the_group_is_gone_at_the_end(monkeypatch, error):
    """Whatever happened in the block: torch complains at exit otherwise."""
    dist = torch.distributed
    join, store = dist.init_process_group, dist.HashStore()
    monkeypatch.setattr(dist, "init_process_group", lambda kind, **_: join(kind, store=store, rank=0, world_size=1))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with contextlib.suppress(ValueError), process_group("cpu") as place:
        assert dist.is_initialized() and place == (0, 1)
        if error:
            raise error
    assert not dist.is_initialized()


@pytest.mark.parametrize(("there", "local"), [(0, 0), (1, 1), (2, 5)])
def test_a_process_without_a_gpu_of_its_own_is_an_error(monkeypatch, there, local):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(BackendUnavailable, match='Lower --nproc-per-node, or use device="cpu"') as caught:
        processes._take_gpu(local)
    assert "\n" not in str(caught.value)


def test_processes_do_not_share_a_gpu_by_its_number(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(BackendUnavailable, match=r"'cuda:1' for every process.*Use device="),
        process_group("cuda:1"),
    ):
        pass


def test_processes_that_cannot_meet_are_an_error_in_one_line(monkeypatch):
    names = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(BackendUnavailable, match="process group: cannot be joined") as caught, process_group("cpu"):
        pass
    assert "\n" not in str(caught.value) and isinstance(caught.value, SResNetError)


@pytest.mark.parametrize(("environment", "silent"), [
    ({}, False), ({"RANK": "1"}, False), ({"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, False),
    ({"RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, True),
])  # fmt: skip
def test_a_usage_error_is_said_once(monkeypatch, capsys, environment, silent):
    """By the first of torchrun's processes; a RANK that another program left in the environment silences nobody."""
    program = sys.modules["sresnet_cli.__main__"]
    for name in ("RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["sresnet", "evaluate", "--timesteps", "0"])
    monkeypatch.setattr(program.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as exit:
        program.main()
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and err.count("\n") == (not silent)
