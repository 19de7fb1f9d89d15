"""The number of threads, and the instruction set of the kernels.

Python threads may share layers and models in `forward` and `backward`, each with its own tapes, and everything that is
only read. An optimizer's step and clipping, which change arrays in place, are for one thread at a time. This also holds
for free-threaded Pythons: the compiled module declares that it does not need the GIL. Only one interpreter of a process
can use gradcore: NumPy, or else the module, refuses to load in a second one.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from gradcore import _kernels
from gradcore._base.check import check_int

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def _cgroup_quota() -> float:
    """Return how many processors the container or service may use, `inf` without a limit.

    The process is in nested groups, and each may have a limit. A container usually sees its own as the outermost one.
    """
    try:
        lines = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines() if line.count(":") > 1]
    except OSError:
        lines = []
    quota = math.inf
    for _, controllers, path in [*lines, ["", "", "/"], ["", "cpu", "/"]]:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = CGROUPS / "cpu" if controllers else CGROUPS  # version 1, version 2
        own = top / path.strip("/")
        quota = min(quota, *(_quota_of(folder) for folder in (own, *own.parents) if folder.is_relative_to(top)))
    return quota


def _quota_of(folder: Path) -> float:
    """Return the limit of one group, in processors."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # also for the quota "max"
        return math.inf


def _default_num_threads() -> int:
    for variable in ("GRADCORE_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").split(",")[0].strip()
        if text.isdecimal() and int(text) > 0:
            return min(int(text), 1024)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cgroup_quota())))


def set_num_threads(n: int) -> None:
    """Set the largest number of threads that the kernels use, for the whole process.

    The results have the same bits for any number. Fewer threads run if the system refuses to create more, and in a
    Python thread whose OpenMP limit is below the default, as set by threadpoolctl or `omp_set_num_threads`.

    Parameters
    ----------
    n : int
        The number of threads, at least 1.

    Raises
    ------
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import gradcore
    >>> before = gradcore.get_num_threads()
    >>> gradcore.set_num_threads(1)
    >>> gradcore.get_num_threads()
    1
    >>> gradcore.set_num_threads(before)
    """
    _kernels.set_num_threads(min(check_int("n", n, least=1), 1024))


def get_num_threads() -> int:
    """Return the largest number of threads that the kernels use.

    The default is the number of processors that CPU affinity and the container's quota leave, unless
    ``GRADCORE_NUM_THREADS`` or ``OMP_NUM_THREADS`` is set.

    A child forked after gradcore was imported works on one thread, whatever this returns, because OpenMP's threads do
    not survive a fork. This does not include the other limits that `set_num_threads` names.

    Returns
    -------
    int
        The number of threads.

    Examples
    --------
    >>> import gradcore
    >>> gradcore.get_num_threads() >= 1
    True
    """
    return _kernels.get_num_threads()


def info() -> dict[str, Any]:
    """Return the version of gradcore and what it runs on.

    Returns
    -------
    dict
        ``version``; ``isa``: "v4", "v3" or "baseline"; ``num_threads``; and ``openmp``: whether it was built with
        OpenMP.

    Examples
    --------
    >>> import gradcore
    >>> sorted(gradcore.info())
    ['isa', 'num_threads', 'openmp', 'version']
    """
    from gradcore import __version__

    return {
        "version": __version__,
        "isa": _kernels.isa(),
        "num_threads": get_num_threads(),
        "openmp": _kernels.has_openmp(),
    }


set_num_threads(_default_num_threads())
