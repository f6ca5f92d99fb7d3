"""Reads /proc, and signals processes by identity, never by a bare pid. Knows no managers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_ROUNDS_MAX = 1_000
"""Limit on the walks of one tree: each finds what was created during the one before."""


class ProcessId(NamedTuple):
    """The identity of a process, which is never reused."""

    pid: int
    """Its pid, in the pid namespace of this process."""
    start_ns: int
    """When it was started, in ns since boot, to a clock tick where /proc alone knows it."""


class Stat(NamedTuple):
    """What /proc/PID/stat says, as far as it is used here."""

    name: str
    state: str
    parent: int
    threads: int
    start_ns: int

    @property
    def is_live(self) -> bool:
        """Returns whether some thread of it can run: one whose first thread has ended may."""
        return self.state not in "ZXx" or self.threads > 1


def stat(pid: int) -> Stat | None:
    """Reads /proc/PID/stat; None where there is no such process, or it is hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    # The name may contain anything, a parenthesis too.
    before, _, after = text.rpartition(")")
    words = after.split()
    name = before.partition("(")[2]
    return Stat(name, words[0], int(words[1]), int(words[17]), int(words[19]) * _NS_PER_TICK)


def identify(pid: int) -> ProcessId | None:
    """Returns the identity of the process that has this pid now."""
    found = stat(pid)
    return ProcessId(pid, found.start_ns) if found else None


def is_same(one: ProcessId, other: ProcessId) -> bool:
    """Returns whether two identities are of one process: one of them may be exact to a tick."""
    if one.pid != other.pid:
        return False
    return one.start_ns // _NS_PER_TICK == other.start_ns // _NS_PER_TICK


def is_live(process: ProcessId) -> bool:
    """Returns whether exactly this process can still run."""
    found = stat(process.pid)
    is_it = found is not None and is_same(process, ProcessId(process.pid, found.start_ns))
    return is_it and found is not None and found.is_live


def children(pid: int) -> list[int]:
    """Returns the pids of the children of a process, those of every thread of it."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
        except OSError:
            continue  # The thread has ended.
    return found


def command_line(pid: int) -> str:
    """Returns the words of its command line with spaces between, its name where it has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").replace(b"\0", b" ")
    except OSError:
        words = b""
    if words:
        return words.decode("utf-8", "replace")
    found = stat(pid)
    return found.name if found else ""


def open_devices(pid: int, devices: Iterable[str]) -> list[str]:
    """Returns which of these device files a process has open."""
    wanted = set(devices)
    found: set[str] = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for descriptor in descriptors:
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        except OSError:
            continue
    return sorted(found & wanted)


def open_pidfd(process: ProcessId) -> int | None:
    """Opens exactly this process; None where it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # In this order: what is read after the descriptor was opened is of whom it refers to, or shows
    # that the pid is another process's by now.
    found = identify(process.pid)
    if found is not None and is_same(found, process):
        return pidfd
    os.close(pidfd)
    return None


def send(process: ProcessId, number: int) -> bool:
    """Sends a signal to exactly this process; returns whether it was there.

    Raises PermissionError where this user may not.
    """
    pidfd = open_pidfd(process)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def below(roots: Iterable[ProcessId]) -> Iterator[tuple[ProcessId, ProcessId]]:
    """Yields every process below these as they are parents now, each with its parent."""
    seen = set(roots)
    queue = list(seen)
    while queue:
        parent = queue.pop()
        for pid in children(parent.pid):
            child = identify(pid)
            if child is not None and child not in seen:
                seen.add(child)
                queue.append(child)
                yield child, parent


def kill_trees(roots: Iterable[ProcessId]) -> tuple[list[ProcessId], list[ProcessId]]:
    """Kills these processes and all below them; returns who was killed, and who may not be.

    First all of it is stopped, so that what has a parent keeps it, and none is missed. This process
    itself is never hit. A process that has lost its parent before is found only if it is a root.
    """
    own = os.getpid()
    stopped: dict[ProcessId, bool] = {}
    wanted = [root for root in roots if root.pid != own]
    try:
        for _ in range(_ROUNDS_MAX):
            found = {*wanted, *(child for child, _ in below([*wanted, *stopped]))}
            fresh = [process for process in found if process not in stopped and process.pid != own]
            for process in fresh:
                stopped[process] = _is_sent(process, signal.SIGSTOP)
            if not fresh:
                break
    finally:
        # Whatever happens, nobody stays stopped.
        killed = [process for process in stopped if _is_sent(process, signal.SIGKILL)]
    denied = [process for process in stopped if process not in killed and is_live(process)]
    return killed, denied


def _is_sent(process: ProcessId, number: int) -> bool:
    try:
        return send(process, number)
    except PermissionError:
        return False
