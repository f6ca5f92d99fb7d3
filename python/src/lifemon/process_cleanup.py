"""The drop-in for `axolotl.scripts.process_cleanup`: one changed import line is enough.

    from lifemon.process_cleanup import ProcessManager, is_fatal_worker_error, safe_recv

The caller starts its workers with `multiprocessing` and talks to them by itself, as before. Deaths
are known at once, from the kernel. What is ended are the trees of the workers, by lineage, and not
whoever has the same name. No thread is started, and nothing happens at import.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import re
import select
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from lifemon import _proc
from lifemon._errors import CannotRunHereError, LifemonError, WorkersDiedError
from lifemon._workers import Workers, orphans_of_all

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = [
    "ProcessManager",
    "WorkersDiedError",
    "cleanup_orphan_processes",
    "is_fatal_worker_error",
    "kill_process_tree",
    "safe_recv",
]

logger = logging.getLogger("lifemon")

Policy = Literal["all", "any"]
"""When monitoring ends: when all workers are dead, or when any is."""

_CHAIN_MAX = 64
"""Causes of an exception that are followed: a chain that is longer is a circle."""

_SEND_TIMEOUT_S = 1.0
"""How long all workers together may take to make room for the shutdown message."""

_GONE_TIMEOUT_S = 5.0
"""How long to wait for the end of what was killed."""


def kill_process_tree(pid: int) -> None:
    """Kills a process and all its descendants.

    A process that does not exist, or that this user may not signal, is no error, nor is one that
    this process stands below, which is left alone. Raises TypeError for anything but an int, and
    ValueError for a number that is no pid: the kernel takes 0 and negative ones for whole groups.
    """
    if not isinstance(pid, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a pid is an int, not {type(pid).__name__}")
    if pid <= 0:
        raise ValueError(f"{pid} is not the pid of a process")
    if pid != os.getpid() and pid in _own_lineage():
        logger.warning("Process %d is not killed from here: this one stands below it", pid)
        return
    root = _proc.identify(pid)
    if root is None:
        return
    if _is_killed_by_binary(root):
        return
    killed, _ = _proc.kill_trees([root])
    _await_end(killed)
    if pid == os.getpid():
        os.kill(pid, signal.SIGKILL)


def cleanup_orphan_processes(*patterns: str) -> None:
    """Kills the orphans that match any of these patterns, each with all below it.

    A pattern is a regular expression, looked for in the command line and the name. Whoever has a
    living creator is never hit, nor is whoever has merely the same name: an orphan is one by its
    lineage, as the managers of this process know it, and the tracker of the host where it is on.
    """
    wanted = [(pattern, _expression(pattern)) for pattern in patterns if pattern]
    if not wanted:
        return
    for orphan, way in orphans_of_all():
        line = _proc.command_line(orphan.pid)
        pattern = _first_match(wanted, orphan.pid, line)
        if pattern is not None and orphan in way.end_tree(orphan).killed:
            logger.info("Killed orphan process %s (%s)", orphan.pid, pattern)
    _cleanup_by_tracker(wanted)


def is_fatal_worker_error(exc: BaseException) -> bool:
    """Returns whether an exception, or a cause of it, means that the worker should exit."""
    seen: list[BaseException] = []
    waiting = [exc]
    while waiting and len(seen) < _CHAIN_MAX:
        error = waiting.pop()
        if any(error is other for other in seen):
            continue
        seen.append(error)
        if _is_fatal(error):
            return True
        waiting.extend(cause for cause in (error.__cause__, error.__context__) if cause is not None)
    return False


def _is_fatal(error: BaseException) -> bool:
    text = str(error)
    lower = text.lower()
    return (
        "EngineCore" in text
        or "EngineDeadError" in type(error).__name__
        or ("engine" in lower and "died" in lower)
    )


def safe_recv(conn: Connection) -> Any:
    """Receives from a worker; an error dict where it has closed its end. For executor threads."""
    try:
        return conn.recv()
    except EOFError:
        return {"error": "Worker process died (pipe closed)", "kind": "worker_dead"}


class ProcessManager:
    """Watches the workers of a server, and leaves nothing of them behind.

    `processes` are those that the caller has started, `connections` its ends of their pipes, which
    are never read here. `policy` says when `monitor_workers` acts: when all are dead, or any is.
    `subreaper` makes the server adopt what its descendants leave, where nothing exact is at hand.
    """

    def __init__(
        self,
        processes: Sequence[BaseProcess],
        connections: Sequence[Connection],
        orphan_patterns: list[str] | None = None,
        monitor_interval: float = 5.0,
        shutdown_timeout: float = 30.0,
        kill_timeout: float = 15.0,
        *,
        policy: Policy = "all",
        subreaper: bool = False,
    ) -> None:
        if policy not in ("all", "any"):
            raise ValueError(f'policy is "all" or "any", not {policy!r}')
        self.processes = processes
        self.connections = connections
        self.orphan_patterns = orphan_patterns or ["VLLM::EngineCore"]
        self.monitor_interval = monitor_interval
        self.shutdown_timeout = shutdown_timeout
        self.kill_timeout = kill_timeout
        self.policy: Policy = policy
        self._signals = 0
        self._is_stopping = False
        self._shutdown_task: asyncio.Task[None] | None = None
        self._workers = Workers(subreaper=subreaper)
        self._workers.adopt(processes)

    @property
    def way(self) -> str | None:
        """Returns how the trees of the workers are known; None while there is no worker.

        `agent`, `run`, `helper` (exact), `helper-snapshots`, `snapshots` (not exact).
        """
        return self._workers.way.name if self._workers.way is not None else None

    def register_cleanup(self) -> None:
        """Registers the clean-up of orphans for the exit of the server. Touches no signal."""
        atexit.register(self._cleanup_orphans)

    def register_signal_handlers(self) -> None:
        """Lets SIGTERM and SIGINT begin the shutdown, and a second one end everything at once.

        The handlers that were there are called as well. Raises RuntimeError outside the main
        thread, where Python does not allow handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "signal handlers can only be registered in the main thread: call this there"
            )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handler(signal.getsignal(number)))

    def check_workers_alive(self) -> None:
        """Raises WorkersDiedError, a RuntimeError, if any worker has died."""
        dead = self._dead()
        if dead:
            raise WorkersDiedError(dead, self._workers.causes(self.processes))

    def get_health_status(self) -> dict[str, Any]:
        """Returns the response for a health endpoint.

        What lifemon adds is under the one key `lifemon`, once there is a worker to know of.
        """
        dead = self._dead()
        status: dict[str, Any] = {"status": "ok"}
        if dead:
            status = {
                "status": "unhealthy",
                "dead_workers": dead,
                "message": "Worker(s) died. Restart the server.",
            }
        way = self._workers.way
        if way is not None:
            status["lifemon"] = self._details(bool(dead))
        return status

    async def monitor_workers(self) -> None:
        """Waits until the workers have died, by the policy; ends their trees, and the server.

        No workers at all do not count as dead. When it is cancelled, nothing of it stays behind,
        and it can be started again.
        """
        if self._has_unstarted():
            # They may be about to be started.
            await self._workers.change(self.monitor_interval)
        while not self._has_ended():
            await self._workers.change(self._pause_s())
        # From here to the end without a point where it could be cancelled.
        logger.error(
            "All vLLM workers died. Shutting down server. "
            "Check logs for EngineCore errors and restart."
            if self.policy == "all"
            else "A vLLM worker died. Shutting down server. "
            "Check logs for EngineCore errors and restart."
        )
        self._end_trees()
        self._cleanup_orphans()
        os._exit(1)

    async def shutdown(self) -> None:
        """Ends the workers: the message, SIGTERM after `shutdown_timeout`, SIGKILL after
        `kill_timeout`, and then all that is left of their trees. All of them at the same time.
        """
        for limit_s in self._shutdown_steps():
            deadline = time.monotonic() + limit_s
            while self._is_waiting() and time.monotonic() < deadline:
                left_s = min(deadline - time.monotonic(), self._step_s())
                await self._workers.change(max(left_s, 0))

    @contextlib.asynccontextmanager
    async def lifespan_context(self) -> AsyncGenerator[None, None]:
        """Monitors the workers inside, and shuts them down on leaving. For FastAPI's lifespan."""
        task = asyncio.create_task(self.monitor_workers())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                logger.error("Monitoring failed", exc_info=task.exception())
            await self.shutdown()

    is_fatal_error = staticmethod(is_fatal_worker_error)

    def _shutdown_workers(self) -> None:
        """Does what `shutdown` does, and blocks. For callers of the module that this replaces."""
        for limit_s in self._shutdown_steps():
            deadline = time.monotonic() + limit_s
            while self._workers.has_living() and time.monotonic() < deadline:
                self._workers.wait(deadline - time.monotonic())
                self._workers.refresh()
            # Those whose process is not to be seen here are asked as the original asks all.
            for _, process in self._living():
                if not self._workers.is_watched(process):
                    process.join(timeout=max(deadline - time.monotonic(), 0))

    def _shutdown_steps(self) -> Iterator[float]:
        """Takes the steps of a shutdown, and yields how long each may take."""
        if not self._workers.is_ours:
            return
        self._is_stopping = True
        deadline = time.monotonic() + _SEND_TIMEOUT_S
        for connection in self.connections:
            _send_shutdown(connection, max(deadline - time.monotonic(), 0))
        yield self.shutdown_timeout
        for index, process in self._living():
            logger.warning(
                "Worker %d didn't exit in %.0fs, sending SIGTERM", index, self.shutdown_timeout
            )
            self._workers.signal(process, signal.SIGTERM)
        yield self.kill_timeout
        for index, process in self._living():
            logger.warning("Worker %d didn't respond to SIGTERM, force killing", index)
            self._workers.signal(process, signal.SIGKILL)
        yield _GONE_TIMEOUT_S
        is_done = self._end_trees()
        self._cleanup_orphans()
        # What is left now may end with the server.
        if is_done:
            self._workers.close()
        logger.info("Worker shutdown complete")

    def _cleanup_orphans(self) -> None:
        """Kills the orphans that match the patterns. In the copy of a fork it does nothing."""
        if os.getpid() == self._workers.owner:
            cleanup_orphan_processes(*self.orphan_patterns)

    def _end_trees(self) -> bool:
        """Kills all that is left of the trees; returns whether nothing is."""
        ended = self._workers.end()
        for left in ended.survivors:
            logger.warning("Process %s is left: %s", left.get("pid"), left.get("reason"))
        return not ended.survivors

    def _dead(self) -> list[int]:
        self._workers.refresh()
        is_alive = self._workers.is_alive
        return [index for index, process in enumerate(self.processes) if not is_alive(process)]

    def _living(self) -> list[tuple[int, Any]]:
        self._workers.refresh()
        is_alive = self._workers.is_alive
        return [(index, one) for index, one in enumerate(self.processes) if is_alive(one)]

    def _is_waiting(self) -> bool:
        """Returns whether a worker lives, or is dying and cannot be reaped yet."""
        return bool(self._living()) or self._workers.has_living()

    def _has_ended(self) -> bool:
        dead, workers = len(self._dead()), len(self.processes)
        # Workers of a server that was asked to stop are meant to end.
        if self._is_stopping or not self._workers.is_ours or not workers:
            return False
        return dead == workers if self.policy == "all" else dead > 0

    def _has_unstarted(self) -> bool:
        return any(getattr(process, "pid", 0) is None for process in self.processes)

    def _is_watched(self) -> bool:
        return len(self._workers.living()) == len(self._living())

    def _pause_s(self) -> float | None:
        """Returns when to look without an event: never, where events tell everything."""
        way = self._workers.way
        if way is not None and way.fileno() is not None and self._is_watched() and self.processes:
            return None
        if way is not None:
            way.look()
        return self.monitor_interval

    def _step_s(self) -> float:
        """Returns how long to wait at most at once in a shutdown."""
        return 60.0 if self._is_watched() else 0.05

    def _details(self, is_unhealthy: bool) -> dict[str, Any]:
        way = self._workers.way
        assert way is not None
        orphans = [{**orphan._asdict(), "name": name} for orphan, name in way.orphans()]
        details: dict[str, Any] = {"way": way.name}
        incomplete = way.incomplete
        details["complete"] = not incomplete
        if incomplete:
            details["incomplete"] = incomplete
        if is_unhealthy:
            details["causes"] = self._workers.causes(self.processes)
        details["orphans"] = orphans
        held = [*self._workers.living(), *(orphan for orphan, _ in way.orphans())]
        details["gpu"] = _gpu_holders(held)
        return details

    def _handler(self, before: Any) -> Callable[[int, FrameType | None], None]:
        """Returns a handler that begins the shutdown, and calls the one that was there."""

        def handle(number: int, frame: FrameType | None) -> None:
            if not self._workers.is_ours:
                _go_on(before, number, frame)
                return
            self._signals += 1
            if self._signals > 1:
                self._end_trees()
                os._exit(1)
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._shutdown_workers()
                _go_on(before, number, frame)
                return

            def begin() -> None:
                task = self._shutdown_task = loop.create_task(self.shutdown())
                if not callable(before):
                    task.add_done_callback(lambda _: _go_on(before, number, None))

            # A loop that sleeps is interrupted by a signal, and woken by this alone.
            loop.call_soon_threadsafe(begin)
            if callable(before):
                before(number, frame)

        return handle


def _go_on(before: Any, number: int, frame: FrameType | None) -> None:
    """Does with a signal what was done with it before."""
    if callable(before):
        before(number, frame)
    elif before != signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _send_shutdown(connection: Any, limit_s: float) -> None:
    """Asks a worker to exit. One that has not read for long does not block the others."""
    try:
        descriptor = connection.fileno()
        if isinstance(descriptor, int):
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            if not room.poll(limit_s * 1_000):
                return
        connection.send({"type": "shutdown"})
    except Exception as error:
        # As any other end of a connection: whoever is behind it gets a signal in time.
        logger.debug("A worker was not asked to shut down: %s", error)


def _gpu_holders(processes: list[_proc.ProcessId]) -> list[dict[str, Any]]:
    import glob

    patterns = ("/dev/nvidia[0-9]*", "/dev/dri/render*", "/dev/kfd")
    devices = [device for pattern in patterns for device in glob.glob(pattern)]
    if not devices:
        return []
    opened = ((process, _proc.open_devices(process.pid, devices)) for process in processes)
    return [{**process._asdict(), "devices": files} for process, files in opened if files]


def _expression(pattern: str) -> re.Pattern[str]:
    """Compiles a pattern; one that is no regular expression is looked for as it is."""
    try:
        return re.compile(pattern)
    except re.error:
        return re.compile(re.escape(pattern))


def _first_match(wanted: list[tuple[str, re.Pattern[str]]], pid: int, line: str) -> str | None:
    found = _proc.stat(pid)
    name = found.name if found else ""
    for pattern, expression in wanted:
        if expression.search(line) or expression.search(name):
            return pattern
    return None


def _cleanup_by_tracker(wanted: list[tuple[str, re.Pattern[str]]]) -> None:
    """Kills orphans that the tracker of the host knows of: nobody else knows whose they were."""
    if not os.path.isdir("/sys/fs/bpf/lifemon"):
        return
    from lifemon import _commands

    try:
        found = _commands.orphans(verdicts=("leaked", "left")).orphans
        for orphan in found:
            line = " ".join(orphan.command)
            pattern = _first_match(wanted, orphan.pid, line)
            if pattern is not None and orphan.pid not in _own_lineage():
                root = f"{orphan.pid}@{orphan.start_ns}"
                if _commands.kill_tree(root, check=False).killed:
                    logger.info("Killed orphan process %s (%s)", orphan.pid, pattern)
    except CannotRunHereError as error:
        logger.debug("The tracker is not for this user: %s", error)
    except LifemonError as error:
        logger.warning("Orphans that the tracker knows of were not cleaned up: %s", error)


def _own_lineage() -> set[int]:
    """Returns the pids of this process and of its parents."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        above = _proc.stat(pid)
        pid = above.parent if above else 0
    return found


def _is_killed_by_binary(root: _proc.ProcessId) -> bool:
    """Kills a tree by the binary, exactly; returns whether that was possible."""
    if os.geteuid() != 0 or root.pid in _own_lineage():
        return False
    from lifemon import _commands

    try:
        report = _commands.kill_tree(f"{root.pid}@{root.start_ns}", check=False)
    except LifemonError:
        return False
    return not report.survivors


def _await_end(processes: list[_proc.ProcessId]) -> None:
    """Waits until killed processes can no longer run."""
    deadline = time.monotonic() + _GONE_TIMEOUT_S
    while any(map(_proc.is_live, processes)) and time.monotonic() < deadline:
        time.sleep(0.001)
