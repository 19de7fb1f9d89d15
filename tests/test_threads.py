"""How many threads there are by default: what the surroundings of the process allow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gradcore import _threads

VERSION_2, VERSION_1 = "0::{}\n", "3:memory:/elsewhere\n2:cpu,cpuacct:{}\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("own", "path", "files", "quota"),
    [
        (VERSION_2, "/", {"cpu.max": "150000 100000\n"}, 1.5),
        (VERSION_2, "/", {"cpu.max": "max 100000\n"}, math.inf),
        (VERSION_2, "/a.slice/b.service", {"a.slice/b.service/cpu.max": "200000 100000"}, 2),
        (VERSION_2, "/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        (VERSION_2, "/a", {"a/cpu.max": "nonsense", "cpu.max": "0 0"}, math.inf),
        (VERSION_2, "/../b", {"cpu.max": "300000 100000"}, 3),
        (VERSION_2, "/not/mounted/here", {"cpu.max": "300000 100000"}, 3),
        (VERSION_1, "/docker/7", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        (VERSION_1, "/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "25000"}, 2),
        (VERSION_1, "/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("", "", {"cpu.max": "400000 100000"}, 4),
        ("no colons\n", "", {}, math.inf),
        (None, "", {"cpu.max": "400000 100000"}, 4),
    ],
)
def test_the_quota_is_that_of_the_tightest_group_around_the_process(
    own: str | None, path: str, files: dict[str, str], quota: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, member = tmp_path / "cgroup", tmp_path / "self"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    if own is not None:
        member.write_text(own.format(path))
    monkeypatch.setattr(_threads, "CGROUPS", groups)
    monkeypatch.setattr(_threads, "OWN_CGROUPS", member)
    assert _threads._cgroup_quota() == quota
