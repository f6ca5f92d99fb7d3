"""`Guard`: whatever happens, this tree ends with me."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from lifemon import _proc
from lifemon._commands import Target
from lifemon._errors import CannotRunHereError, NoSuchProcessError, SurvivorsError
from lifemon._ways import Ended, Way, choose


class Guard:
    """Ends the trees of some processes on leaving, and when this process dies before that.

        with lifemon.Guard(process.pid):
            ...

    They must be alive, and need not be children. Nothing of them is left afterwards, or
    SurvivorsError says who; with `keep` set to true inside, they are let go instead. Raises
    NoSuchProcessError, and CannotRunHereError where nothing would survive this process.
    """

    def __init__(self, *targets: Target | Any) -> None:
        if not targets:
            raise TypeError("a guard needs a process")
        self._ids = [_identify(target) for target in targets]
        self._way: Way | None = None
        self.keep = False
        """Set to true, the trees are let go on leaving."""

    @property
    def way(self) -> str | None:
        """Returns how the trees are known, as `ProcessManager.way` does; None outside."""
        return self._way.name if self._way is not None else None

    @property
    def complete(self) -> bool:
        """Returns whether nothing of the trees can be missed."""
        return self._way is not None and not self._way.incomplete

    def __enter__(self) -> Guard:
        way = choose(self._ids, subreaper=False)
        if not way.survives:
            way.close()
            raise CannotRunHereError(
                "there is no helper that would survive this process",
                "pip install lifemon, on Linux with glibc, or start this with `lifemon run -- ...`",
            )
        self._way = way
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        way, self._way = self._way, None
        if way is None:
            return
        ended = Ended() if self.keep else way.end()
        way.close()
        if ended.survivors and error is None:
            left = ", ".join(f"{one['pid']} ({one.get('reason')})" for one in ended.survivors)
            raise SurvivorsError(f"the guard has not ended {left}", None, ended)

    async def __aenter__(self) -> Guard:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


def _identify(target: Any) -> _proc.ProcessId:
    """Returns the identity of a process: a pid, `PID@START_NS`, or an object with a `pid`."""
    pid: Any = getattr(target, "pid", target)
    start_ns: int = getattr(target, "start_ns", 0)
    if isinstance(pid, str):
        word, _, start = pid.partition("@")
        pid, start_ns = int(word), int(start or 0)
    if not isinstance(pid, int) or pid <= 0:
        raise TypeError(f"a process is a pid, PID@START_NS or has a pid, not {target!r}")
    found = _proc.identify(pid)
    if found is None or (start_ns and not _proc.is_same(found, _proc.ProcessId(pid, start_ns))):
        raise NoSuchProcessError(f"there is no process {target}")
    if pid == os.getpid():
        raise ValueError("a guard ends with this process: it cannot guard itself")
    return found
