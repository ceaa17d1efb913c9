"""Memory: what the system says is free, the limit that is asked for, and how many images fit."""

import ctypes

import pytest
import torch

from s_resnet.errors import InvalidData
from s_resnet.runtime import memory, memory_limit

GB = 10**9


def system(root, available=8_000_000, groups="", **files):
    """A machine with ``available`` KiB, whose control groups have these files."""
    written = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {available} kB\n", "proc/self/cgroup": groups, **files}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder, version, limit, used, cached=0):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    cache = "inactive_file" if version == 2 else "total_inactive_file"
    return {
        f"sys/fs/cgroup/{folder}/{names[0]}": f"{limit}\n",
        f"sys/fs/cgroup/{folder}/{names[1]}": f"{used}\n",
        f"sys/fs/cgroup/{folder}/memory.stat": f"anon 5\n{cache} {cached}\n",
    }


def test_what_is_available_is_free(tmp_path):
    assert memory.free(root=system(tmp_path, available=123)) == 123 * 1024


def test_a_system_that_says_nothing(tmp_path):
    assert memory.free(root=tmp_path) is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_control_group_with_the_least_left_decides_and_caches_count_as_free(tmp_path, version):
    name, top = ("0::/box/own\n", "") if version == 2 else ("7:cpu:/x\n3:blkio,memory:/box/own\n", "memory/")
    files = {
        **group(f"{top}box/own", version, 6 * GB, GB),
        **group(f"{top}box", version, 4 * GB, 3 * GB, cached=GB // 2),
        **group(top, version, "max" if version == 2 else 2**63 - 4096, 9 * GB),
    }
    assert memory.free(root=system(tmp_path, groups=name, **files)) == 3 * GB // 2


@pytest.mark.parametrize(("version", "name"), [(1, "4:memory:/docker/abc\n"), (2, "0::/../abc\n")])
def test_in_a_container_the_files_of_the_group_lie_at_the_top(tmp_path, version, name):
    files = group("memory" if version == 1 else ".", version, 2 * GB, 0)
    assert memory.free(root=system(tmp_path, groups=name, **files)) == 2 * GB


def test_a_full_group_has_nothing_left(tmp_path):
    files = group(".", 2, GB, 2 * GB)
    assert memory.free(root=system(tmp_path, groups="0::/\n", **files)) == 0


def test_what_the_process_holds_grows_with_what_it_allocates(tmp_path):
    before = memory.held()
    kept = torch.ones(2**26)  # next to which it matters little what else comes and goes
    assert memory.held() - before > 0.9 * kept.numel() * 4
    assert memory.held(root=system(tmp_path, **{"proc/self/status": "Name: x\nVmRSS:\t  12 kB\n"})) == 12 * 1024


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ("4GB", 4 * GB),
        ("1.5 gb", 3 * GB // 2),
        ("500MB", 5 * 10**8),
        ("2GiB", 2**31),
        ("3g", 3 * GB),
        ("77", 77),
        (9, 9),
    ],
)
def test_a_size_in_words_or_bytes(asked, size):
    assert memory.budget(asked) == size


@pytest.mark.parametrize("asked", ["", "much", "4 XB", "-1GB", "0", "0%", "101%", 0, -5, True, 1.5, "1e3", "0.1"])
def test_anything_else_is_refused_in_one_line(asked):
    with pytest.raises(InvalidData, match=r"^memory: got .*; expected a size such as 4GB or 500MB") as refused:
        memory.budget(asked)
    assert "\n" not in str(refused.value)


@pytest.fixture
def known(monkeypatch):
    """A process that holds 1 GB where 6 GB are free."""
    monkeypatch.setattr(memory, "free", lambda *_: 6 * GB)
    monkeypatch.setattr(memory, "held", lambda *_: GB)


def test_by_default_half_of_what_is_free_may_be_used(known):
    assert memory.budget() == 4 * GB
    assert memory.room() == 3 * GB


def test_a_share_is_of_what_the_process_has_and_could_have(known):
    assert memory.budget("50%") == 7 * GB // 2


def test_processes_on_one_machine_share_what_is_free(known, monkeypatch):
    monkeypatch.setattr(memory, "processes_here", lambda: 3)
    assert memory.budget() == 2 * GB
    assert memory.budget("100%") == 3 * GB
    assert memory.budget("5GB") == 5 * GB


def test_where_nothing_is_known_a_share_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda *_: None)
    monkeypatch.setattr(memory, "held", lambda *_: GB)
    with pytest.raises(InvalidData, match="does not say what is free"):
        memory.budget("50%")
    assert memory.room() == memory.ASSUMED // 2


def test_a_limit_holds_within_its_block_and_none_keeps_the_one_outside(known):
    with memory_limit("2GB") as outer, memory_limit(None) as same:
        assert outer == same == memory.budget() == 2 * GB
        assert memory.room() == GB
        with memory_limit("500MB"):
            assert memory.room() == 0  # the process holds more already
    assert memory.budget() == 4 * GB


def test_a_wrong_limit_is_refused_before_the_block():
    with pytest.raises(InvalidData), memory_limit("lots"):
        pytest.fail("the block was run")


def test_images_that_fit(known):
    assert memory.images_in(memory.room(), GB // 2, "convert") == 6
    assert memory.images_in(0, GB, "convert") == 1  # nobody asked for a limit
    assert memory.images_in(GB, 0, "convert") == GB
    with memory_limit("1100MB"), pytest.raises(InvalidData) as refused:
        memory.images_in(memory.room(), 150_000_000, "convert")
    assert 'expected 1.2GB at least. Pass memory_limit("1.2GB"), or smaller images' in str(refused.value)
    with memory_limit("500MB"), pytest.raises(InvalidData, match=r"expected 1\.5GB at least"):  # it holds 1 GB already
        memory.images_in(0, GB // 2, "convert")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library keeps no freed memory back")
def test_freed_memory_goes_back_to_the_system():
    blocks = [bytearray(100_000) for _ in range(800)]  # too small for the C library to give each one back by itself
    last, full = blocks.pop(), memory.held()
    blocks.clear()
    memory.release()
    assert memory.held() < full - 40_000_000
    assert len(last) == 100_000
