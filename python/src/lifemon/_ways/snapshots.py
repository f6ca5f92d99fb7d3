"""The way without any help: snapshots of the children of processes. What is created and loses its
parent between two of them is never seen, and nothing ends what is left when the server is killed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from lifemon import _proc
from lifemon._proc import ProcessId
from lifemon._ways import Death, Ended, Json

_PR_SET_CHILD_SUBREAPER = 36

_MEMBERS_MAX = 65_536
"""Processes that are remembered. More are not, and the answer says so."""


_BECAUSE: Json = {
    "reason": "snapshots",
    "advice": "workers are watched by snapshots of /proc: what lost its parent between two of them "
    "was not seen. Install the wheel with the lifemon binary, or start the server with "
    "`lifemon run -- ...`",
}


class Snapshots:
    """The processes of the trees, as far as snapshots have seen them."""

    def __init__(self, *, subreaper: bool, because: Json | None = None) -> None:
        self._because = because or _BECAUSE
        self._workers: set[ProcessId] = set()
        self._creators: dict[ProcessId, ProcessId] = {}
        self._is_full = False
        self._is_subreaper = subreaper and _become_subreaper()

    @property
    def name(self) -> str:
        return "snapshots"

    @property
    def survives(self) -> bool:
        return False

    @property
    def incomplete(self) -> list[Json]:
        reasons = [self._because]
        if self._is_full:
            reasons.append({"reason": "members_full", "advice": f"more than {_MEMBERS_MAX}"})
        return reasons

    def fileno(self) -> int | None:
        return None

    def watch(self, workers: list[ProcessId]) -> None:
        self._workers.update(workers)
        self.look()

    def read(self) -> list[Death]:
        return []

    def look(self) -> None:
        for child, parent in _proc.below([*self._workers, *self._creators]):
            if len(self._creators) >= _MEMBERS_MAX:
                self._is_full = True
                break
            if child not in self._workers:
                self._creators.setdefault(child, parent)
        for member in [member for member in self._creators if not _proc.is_live(member)]:
            self._reap(member)
            if member not in self._creators.values():
                del self._creators[member]

    def _reap(self, member: ProcessId) -> None:
        """Reaps a member that this process has inherited as a subreaper, and nobody else."""
        found = _proc.stat(member.pid)
        is_inherited = found is not None and found.parent == os.getpid()
        if self._is_subreaper and is_inherited and _proc.identify(member.pid) == member:
            try:
                os.waitpid(member.pid, os.WNOHANG)
            except ChildProcessError:
                pass  # SIGCHLD is ignored, and the kernel reaps.

    def orphans(self) -> list[tuple[ProcessId, str]]:
        self.look()
        found: list[tuple[ProcessId, str]] = []
        for member, creator in self._creators.items():
            if _proc.is_live(member) and not _proc.is_live(creator):
                seen = _proc.stat(member.pid)
                found.append((member, seen.name if seen else ""))
        return found

    def end(self) -> Ended:
        self.look()
        return self._kill([*self._workers, *self._creators])

    def end_tree(self, process: ProcessId) -> Ended:
        self.look()
        below = [process]
        # The known lineage, too: a part of the tree may have lost its parent.
        for member, creator in self._creators.items():
            if creator in below:
                below.append(member)
        return self._kill(below)

    def _kill(self, processes: Iterable[ProcessId]) -> Ended:
        killed, denied = _proc.kill_trees(filter(_proc.is_live, processes))
        reason = "this user may not signal it"
        return Ended(killed, [{**left._asdict(), "reason": reason} for left in denied])

    def close(self) -> None:
        self._workers.clear()
        self._creators.clear()

    def abandon(self) -> None:
        self.close()


def _become_subreaper() -> bool:
    """Makes this process adopt what its descendants leave; returns whether it does."""
    return ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
