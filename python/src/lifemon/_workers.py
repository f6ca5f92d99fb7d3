"""The workers of a server: which of them are dead, since when and why. One epoll descriptor holds a
pidfd for each living worker and the news of the way, so that one system call asks for all.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeGuard

from lifemon import _proc
from lifemon._proc import ProcessId
from lifemon._ways import Death, Ended, Json, Way, choose

_all: weakref.WeakSet[Workers] = weakref.WeakSet()


@dataclass(slots=True)
class _Worker:
    """One process object of the caller, and what is known of its process."""

    process: Any
    id: ProcessId | None = None
    pidfd: int | None = None
    is_dead: bool = False
    cause: str = "not known"
    exit: Json | None = None
    since: str = ""


class Workers:
    """The deaths of workers. Every method may be called from any thread."""

    def __init__(self, *, subreaper: bool) -> None:
        _hook_fork()
        self.owner = os.getpid()
        self.way: Way | None = None
        self._subreaper = subreaper
        self._known: dict[int, _Worker] = {}
        self._by_pidfd: dict[int, _Worker] = {}
        self._lock = threading.RLock()
        self._epoll: select.epoll | None = select.epoll()
        self._close = weakref.finalize(self, _close, self._epoll, self._by_pidfd, self.owner)
        self._close.atexit = False
        _all.add(self)

    @property
    def is_ours(self) -> bool:
        """Returns whether this is not the copy that a fork has made."""
        return self._epoll is not None and self.owner == os.getpid()

    def is_alive(self, process: Any) -> bool:
        """Returns whether a worker lives. `refresh` has been called before."""
        worker = self._known.get(id(process))
        if worker is None or (worker.id is None and not worker.is_dead):
            worker = self.adopt([process])[0]
        if worker.is_dead:
            return False
        return worker.pidfd is not None or _is_alive(process)

    def adopt(self, processes: Sequence[Any]) -> list[_Worker]:
        """Begins to watch workers, those of them that are started and were not watched before."""
        with self._lock:
            workers = [self._known.setdefault(id(one), _Worker(one)) for one in processes]
            fresh = [worker for worker in workers if self._begin(worker)]
            if fresh:
                self._take_into_care([worker.id for worker in fresh if worker.id is not None])
            return workers

    def _begin(self, worker: _Worker) -> bool:
        """Opens the process of a worker; returns whether it is a new one that lives."""
        pid = getattr(worker.process, "pid", None)
        if worker.id is not None or worker.is_dead or not self.is_ours or not _is_ours(pid):
            return False
        process = _proc.identify(pid)
        pidfd = _proc.open_pidfd(process) if process is not None else None
        if pidfd is None or self._epoll is None:
            return False
        worker.id, worker.pidfd = process, pidfd
        self._by_pidfd[pidfd] = worker
        self._epoll.register(pidfd, select.EPOLLIN)
        return _is_alive(worker.process)

    def _take_into_care(self, workers: list[ProcessId]) -> None:
        if self.way is not None:
            self.way.watch(workers)
            return
        self.way = choose(workers, subreaper=self._subreaper)
        news = self.way.fileno()
        if news is not None and self._epoll is not None:
            self._epoll.register(news, select.EPOLLIN)

    def refresh(self) -> None:
        """Takes note of every death that has happened by now: one system call where none has."""
        epoll = self._epoll
        if epoll is None:
            return
        events = epoll.poll(0)
        if events:
            with self._lock:
                for descriptor, _ in events:
                    self._take(descriptor)

    def _take(self, descriptor: int) -> None:
        worker = self._by_pidfd.pop(descriptor, None)
        if worker is not None:
            self._bury(worker)
        elif self.way is not None and descriptor == self.way.fileno():
            for death in self.way.read():
                self._note(death)
            if self.way.fileno() is None:
                self._replace_way()

    def _replace_way(self) -> None:
        """Goes on without the helper, which is dead: by snapshots of what is left."""
        from lifemon._ways import helper, snapshots

        self.way = snapshots.Snapshots(subreaper=self._subreaper, because=helper.DEAD)
        self.way.watch(self.living())

    def _bury(self, worker: _Worker) -> None:
        """Takes note of the end of a process, and reaps it: it is one of ours, and known."""
        if worker.pidfd is not None:
            if self._epoll is not None:
                self._epoll.unregister(worker.pidfd)
            os.close(worker.pidfd)
            worker.pidfd = None
        is_news = not worker.is_dead
        worker.is_dead = True
        code = _exit_code(worker.process)
        if is_news:
            worker.since = _now()
            worker.cause = _cause(code)
        if worker.exit is None and code is not None:
            worker.exit = _exit(code)
        if self.way is not None:
            self.way.look()

    def _note(self, death: Death) -> None:
        """Takes note of a death that the way reports, which knows more than the exit code."""
        for worker in self._known.values():
            if worker.id is not None and _proc.is_same(worker.id, death.process):
                worker.is_dead = True
                worker.id = death.process
                worker.cause = death.cause
                worker.exit = death.exit
                worker.since = death.since

    def causes(self, processes: Sequence[Any]) -> list[Json]:
        """Returns what is known of the dead among these."""
        found: list[Json] = []
        for index, process in enumerate(processes):
            if self.is_alive(process):
                continue
            worker = self._known[id(process)]
            cause: Json = {"index": index}
            if worker.id is not None:
                cause.update(worker.id._asdict())
            code = None if worker.is_dead else _exit_code(process)
            is_started = getattr(process, "pid", None) is not None
            told = worker.cause if worker.is_dead else _cause(code)
            cause["cause"] = told if is_started else "not started"
            how = worker.exit or (_exit(code) if code is not None else None)
            if how is not None:
                cause["exit"] = how
            if worker.since:
                cause["since"] = worker.since
            found.append(cause)
        return found

    def living(self) -> list[ProcessId]:
        """Returns the identities of the workers that live."""
        known = list(self._known.values())
        return [worker.id for worker in known if worker.id is not None and not worker.is_dead]

    def has_living(self) -> bool:
        """Returns whether a worker that is watched is not gone yet: it lives, or is dying."""
        return bool(self._by_pidfd)

    def is_watched(self, process: Any) -> bool:
        """Returns whether the end of a worker is an event."""
        worker = self._known.get(id(process))
        return worker is not None and worker.pidfd is not None

    def signal(self, process: Any, number: int) -> None:
        """Sends a signal to a worker: through its pidfd, so that no other process is hit."""
        (worker,) = self.adopt([process])
        try:
            if worker.pidfd is not None:
                signal.pidfd_send_signal(worker.pidfd, number)
            elif worker.id is None and number == signal.SIGKILL:
                process.kill()
            elif worker.id is None:
                process.terminate()
        except (ProcessLookupError, PermissionError, AttributeError, ValueError):
            pass

    def end(self) -> Ended:
        """Kills all that is left of the trees of the workers."""
        ended = self.way.end() if self.way is not None and self.is_ours else Ended()
        self.refresh()
        return ended

    def wait(self, timeout_s: float) -> None:
        """Waits until something happens, or the time is over. Blocks."""
        if self._epoll is not None:
            self._epoll.poll(max(timeout_s, 0))
        else:
            time.sleep(max(timeout_s, 0))

    async def change(self, timeout_s: float | None) -> None:
        """Waits in the running loop until something happens, or the time is over."""
        if self._epoll is None:
            await asyncio.sleep(timeout_s or 1)
            return
        loop = asyncio.get_running_loop()
        happened: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not happened.done():
                happened.set_result(None)

        # A copy: loops have one reader for each descriptor, and several may wait.
        descriptor = os.dup(self._epoll.fileno())
        try:
            loop.add_reader(descriptor, wake)
            await asyncio.wait([happened], timeout=timeout_s)
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Lets go of everything. Whoever is dead stays so."""
        if self.is_ours and self.way is not None:
            self.refresh()
            self.way.close()
        self._forget()

    def abandon(self) -> None:
        """Makes this, the copy that a fork has made, inert."""
        if self.way is not None:
            self.way.abandon()
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._close()
        self._epoll = None
        for worker in self._known.values():
            worker.pidfd = None


def orphans_of_all() -> list[tuple[ProcessId, Way]]:
    """Returns the orphans of all workers of this process."""
    found: list[tuple[ProcessId, Way]] = []
    for workers in list(_all):
        if workers.way is not None and workers.is_ours:
            workers.refresh()
            found.extend((orphan, workers.way) for orphan, _ in workers.way.orphans())
    return found


_is_fork_hooked = False


def _hook_fork() -> None:
    """Sees to it that copies are inert. At the first use: nothing happens at import."""
    global _is_fork_hooked
    if not _is_fork_hooked:
        _is_fork_hooked = True
        os.register_at_fork(after_in_child=_abandon_all)


def _abandon_all() -> None:
    for workers in list(_all):
        workers.abandon()


def _close(epoll: select.epoll, pidfds: dict[int, _Worker], owner: int) -> None:
    epoll.close()
    for pidfd in pidfds:
        os.close(pidfd)
    pidfds.clear()


def _is_ours(pid: object) -> TypeGuard[int]:
    """Returns whether this is the pid of a child, or of one of a fork server that is a child."""
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 1:
        return False
    found = _proc.stat(pid)
    if found is None:
        return False
    if found.parent == os.getpid():
        return True
    above = _proc.stat(found.parent)
    return above is not None and above.parent == os.getpid()


def _is_alive(process: Any) -> bool:
    """Asks the process object, which reaps its process, and no other, where that has ended."""
    try:
        return bool(process.is_alive())
    except ValueError:
        return False  # It was closed, which only a dead one can be.


def _exit_code(process: Any) -> int | None:
    try:
        code = process.exitcode
    except (AttributeError, ValueError):
        return None
    return code if isinstance(code, int) else None


def _cause(code: int | None) -> str:
    if code is None:
        return "not known"
    return f"exited with code {code}" if code >= 0 else _signal_name(-code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _exit(code: int) -> Json:
    """Returns an exit code of multiprocessing as the object that lifemon prints."""
    if code >= 0:
        return {"code": code, "signal": None, "core_dumped": False, "cause": "exited"}
    return {
        "code": None,
        "signal": -code,
        "signal_name": _signal_name(-code),
        "core_dumped": False,
        "cause": "signal",
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
