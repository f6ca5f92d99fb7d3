"""The contract of the module that is replaced. `LIFEMON_ORIGINAL=FILE` tries it on the original:
tests with the fixture `ours` are of what lifemon adds, and are skipped there.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from conftest import ORIGINAL, ended, wait_until

sys.path.insert(0, str(Path(__file__).parent / "programs"))

from parts import start_workers

METHODS = ["fork", "spawn", "forkserver"]
MESSAGE = "vLLM worker(s) [0] died. Restart the server to recover."


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PIDS", str(tmp_path))
    yield tmp_path
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


@pytest.fixture
def two(pids: Path) -> tuple[list[Any], list[Any]]:
    """Two workers, forked."""
    return start_workers("fork", 2)


def told(pids: Path, role: str, count: int) -> list[int]:
    files = wait_until(role, lambda: (f := list(pids.glob(f"{role}.*"))) and len(f) >= count and f)
    return [int(file.name.rpartition(".")[2]) for file in files]


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    wait_until("its end", lambda: ended(process.pid))


class Exited(BaseException):
    """Stands for the end of the server."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Takes note of `os._exit` instead."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Exited

    monkeypatch.setattr(os, "_exit", leave)
    return codes


# The constructor


def test_the_six_arguments_are_public_attributes(module: ModuleType) -> None:
    manager = module.ProcessManager([], [], ["a"], 1.0, 2.0, 3.0)
    assert manager.processes == [] and manager.connections == []
    assert manager.orphan_patterns == ["a"]
    assert (manager.monitor_interval, manager.shutdown_timeout, manager.kill_timeout) == (1, 2, 3)


def test_the_defaults(module: ModuleType) -> None:
    manager = module.ProcessManager(processes=[], connections=[])
    assert manager.orphan_patterns == ["VLLM::EngineCore"]
    assert (manager.monitor_interval, manager.shutdown_timeout) == (5.0, 30.0)
    assert manager.kill_timeout == 15.0


def test_no_patterns_become_the_default(module: ModuleType) -> None:
    assert module.ProcessManager([], [], []).orphan_patterns == ["VLLM::EngineCore"]


def test_connections_are_the_callers(module: ModuleType, two: tuple[list[Any], list[Any]]) -> None:
    processes, connections = two
    manager = module.ProcessManager(processes, connections)
    assert manager.processes is processes and manager.connections is connections
    for number, connection in enumerate(connections):
        connection.send({"number": number})
        assert connection.poll(10)
        manager.check_workers_alive()
        manager.get_health_status()
        assert connection.recv() == {"echo": {"number": number}}


# Deaths


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_worker_is_an_error_and_unhealthy(
    module: ModuleType, pids: Path, method: str
) -> None:
    processes, connections = start_workers(method, 2)
    manager = module.ProcessManager(processes, connections)
    manager.check_workers_alive()
    assert manager.get_health_status()["status"] == "ok"
    told(pids, "worker", 2)
    kill(processes[0])
    wait_until("the death", lambda: not processes[0].is_alive())
    with pytest.raises(RuntimeError) as raised:
        manager.check_workers_alive()
    assert str(raised.value) == MESSAGE
    health = manager.get_health_status()
    health.pop("lifemon", None)
    assert health == {
        "status": "unhealthy",
        "dead_workers": [0],
        "message": "Worker(s) died. Restart the server.",
    }
    for process in processes:
        process.kill()
        process.join()


def test_all_dead_workers_are_listed(module: ModuleType, two: tuple[list[Any], list[Any]]) -> None:
    manager = module.ProcessManager(*two)
    for process in two[0]:
        kill(process)
    with pytest.raises(RuntimeError, match=r"\[0, 1\] died"):
        manager.check_workers_alive()


def test_a_worker_that_exits_with_0_is_dead_too(
    module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    manager = module.ProcessManager(*two)
    two[1][1].send({"type": "shutdown"})
    two[0][1].join()
    assert manager.get_health_status()["dead_workers"] == [1]


def test_a_process_that_was_not_started_is_dead_and_is_found_once_it_is(
    module: ModuleType, pids: Path
) -> None:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    manager = module.ProcessManager([process], [])
    assert manager.get_health_status()["dead_workers"] == [0]
    process.start()
    manager.check_workers_alive()
    kill(process)
    with pytest.raises(RuntimeError):
        manager.check_workers_alive()


def test_a_worker_that_is_replaced_in_the_list_is_watched(
    module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    processes, connections = two
    manager = module.ProcessManager(processes, connections)
    kill(processes[0])
    with pytest.raises(RuntimeError):
        manager.check_workers_alive()
    fresh, fresh_connections = start_workers("fork", 1)
    processes[0], connections[0] = fresh[0], fresh_connections[0]
    manager.check_workers_alive()
    kill(processes[0])
    with pytest.raises(RuntimeError):
        manager.check_workers_alive()


def test_doubles_of_processes_are_believed(module: ModuleType) -> None:
    class Double:
        pid = 2**22 + 1
        alive = True

        def is_alive(self) -> bool:
            return self.alive

    double = Double()
    manager = module.ProcessManager([double], [])
    assert manager.get_health_status() == {"status": "ok"}
    double.alive = False
    assert manager.get_health_status()["status"] == "unhealthy"


def test_doubles_are_shut_down_as_processes_are(module: ModuleType) -> None:
    process, connection = mock.MagicMock(), mock.MagicMock()
    process.is_alive.return_value = True
    begun = time.monotonic()
    module.ProcessManager([process], [connection])._shutdown_workers()
    connection.send.assert_called_once_with({"type": "shutdown"})
    process.terminate.assert_called_once_with()
    process.kill.assert_called_once_with()
    assert time.monotonic() - begun < 5, "their join does not wait"


def test_a_worker_that_somebody_else_has_reaped_is_dead(
    ours: None, module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    manager = module.ProcessManager(*two)
    os.kill(two[0][0].pid, signal.SIGKILL)
    os.waitpid(two[0][0].pid, 0)
    assert two[0][0].is_alive(), "what the original asks does not know"
    with pytest.raises(RuntimeError):
        manager.check_workers_alive()


def test_a_worker_is_dead_also_where_sigchld_is_ignored(
    ours: None, module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        manager = module.ProcessManager(*two)
        kill(two[0][1])
        wait_until("the death", lambda: manager.get_health_status().get("dead_workers") == [1])
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_the_manager_leaves_sigchld_and_other_children_alone(
    module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)]
    child = subprocess.Popen(["false"])
    manager = module.ProcessManager(*two)
    manager.check_workers_alive()
    wait_until("its end", lambda: ended(child.pid))
    manager.get_health_status()
    assert child.wait() == 1, "nobody else has reaped it"
    after = [signal.getsignal(one) for one in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)]
    assert before == after


def test_threads_may_ask_at_the_same_time(
    module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    manager = module.ProcessManager(*two)
    failures: list[BaseException] = []
    results: list[dict[str, Any]] = []

    def ask() -> None:
        try:
            for _ in range(200):
                results.append(manager.get_health_status())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    two[0][0].kill()
    for thread in threads:
        thread.join()
    assert not failures
    wait_until("the death", lambda: manager.get_health_status()["status"] == "unhealthy")


def test_the_causes_are_under_one_key(
    ours: None, module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    manager = module.ProcessManager(*two)
    details = manager.get_health_status()["lifemon"]
    assert details["way"] == manager.way
    assert details["orphans"] == [] and isinstance(details["complete"], bool)
    kill(two[0][1])
    details = manager.get_health_status()["lifemon"]
    (cause,) = details["causes"]
    assert cause["index"] == 1 and cause["pid"] == two[0][1].pid
    assert "SIGKILL" in cause["cause"] and cause["exit"]["signal"] == 9
    assert set(manager.get_health_status()) == {"status", "dead_workers", "message", "lifemon"}


# Monitoring


def monitor(manager: Any, limit_s: float = 20.0) -> None:
    asyncio.run(asyncio.wait_for(manager.monitor_workers(), limit_s))


def test_when_all_are_dead_the_server_ends_with_1(
    module: ModuleType,
    two: tuple[list[Any], list[Any]],
    exits: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = module.ProcessManager(*two, monitor_interval=0.05)
    for process in two[0]:
        kill(process)
    with caplog.at_level(logging.INFO), pytest.raises(Exited):
        monitor(manager)
    assert exits == [1]
    assert (
        "All vLLM workers died. Shutting down server. "
        "Check logs for EngineCore errors and restart." in caplog.messages
    )


def test_while_one_lives_the_server_goes_on(
    module: ModuleType, two: tuple[list[Any], list[Any]], exits: list[int]
) -> None:
    manager = module.ProcessManager(*two, monitor_interval=0.05)
    kill(two[0][0])
    with pytest.raises(asyncio.TimeoutError):
        monitor(manager, 0.3)
    assert exits == []


def test_any_dead_worker_is_enough_if_asked_for(
    ours: None, module: ModuleType, two: tuple[list[Any], list[Any]], exits: list[int]
) -> None:
    manager = module.ProcessManager(*two, policy="any")
    kill(two[0][0])
    with pytest.raises(Exited):
        monitor(manager)
    assert exits == [1]


def test_a_policy_that_is_none_is_refused(ours: None, module: ModuleType) -> None:
    with pytest.raises(ValueError, match="some"):
        module.ProcessManager([], [], policy="some")


def test_no_workers_are_not_all_dead(ours: None, module: ModuleType, exits: list[int]) -> None:
    """The original ends the server here."""
    with pytest.raises(asyncio.TimeoutError):
        monitor(module.ProcessManager([], [], monitor_interval=0.05), 0.3)
    assert exits == []


def test_deaths_do_not_wait_for_the_interval(
    ours: None, module: ModuleType, two: tuple[list[Any], list[Any]], exits: list[int]
) -> None:
    manager = module.ProcessManager(*two, monitor_interval=600.0)

    async def main() -> None:
        task = asyncio.create_task(manager.monitor_workers())
        await asyncio.sleep(0.1)
        for process in two[0]:
            os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(task, 10)

    with pytest.raises(Exited):
        asyncio.run(main())
    assert exits == [1]


def test_monitoring_can_be_cancelled_and_begun_again(
    module: ModuleType, two: tuple[list[Any], list[Any]], exits: list[int]
) -> None:
    manager = module.ProcessManager(*two, monitor_interval=0.05)

    async def main() -> None:
        open_before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            task = asyncio.create_task(manager.monitor_workers())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(os.listdir("/proc/self/fd")) == open_before
        manager.check_workers_alive()
        for process in two[0]:
            kill(process)
        await asyncio.wait_for(manager.monitor_workers(), 10)

    with pytest.raises(Exited):
        asyncio.run(main())


def test_no_thread_is_started_and_a_loop_is_not_blocked(
    module: ModuleType, two: tuple[list[Any], list[Any]], exits: list[int]
) -> None:
    manager = module.ProcessManager(*two, monitor_interval=0.05)

    async def main() -> None:
        task = asyncio.create_task(manager.monitor_workers())
        await asyncio.sleep(0.2)
        assert threading.active_count() == 1
        task.cancel()

    asyncio.run(main())


# The end


def test_workers_that_are_asked_to_exit(
    module: ModuleType, two: tuple[list[Any], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    manager = module.ProcessManager(*two)
    with caplog.at_level(logging.INFO):
        manager._shutdown_workers()
    assert [process.exitcode for process in two[0]] == [0, 0]
    assert caplog.messages[-1] == "Worker shutdown complete"
    manager._shutdown_workers()
    assert manager.get_health_status()["dead_workers"] == [0, 1]


def test_the_shutdown_is_called_synchronously_inside_a_running_loop(
    module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    manager = module.ProcessManager(*two)

    async def lifespan() -> None:
        task = asyncio.create_task(manager.monitor_workers())
        await asyncio.sleep(0)
        task.cancel()
        manager._shutdown_workers()

    asyncio.run(lifespan())
    assert [process.exitcode for process in two[0]] == [0, 0]


def test_workers_that_ignore_everything_are_killed(
    module: ModuleType, pids: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processes, connections = start_workers("fork", 2, "deaf")
    told(pids, "worker", 2)
    manager = module.ProcessManager(processes, connections, shutdown_timeout=0.3, kill_timeout=0.3)
    with caplog.at_level(logging.INFO):
        begun = time.monotonic()
        manager._shutdown_workers()
        took = time.monotonic() - begun
    assert [process.exitcode for process in processes] == [-9, -9]
    assert "Worker 0 didn't exit in 0s, sending SIGTERM" in caplog.messages
    assert "Worker 1 didn't respond to SIGTERM, force killing" in caplog.messages
    if not ORIGINAL:
        assert took < 1.1, "all at the same time, under one deadline"


def test_the_shutdown_can_be_awaited(ours: None, module: ModuleType, pids: Path) -> None:
    processes, connections = start_workers("fork", 2, "deaf")
    told(pids, "worker", 2)
    manager = module.ProcessManager(processes, connections, shutdown_timeout=0.2, kill_timeout=0.2)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    async def main() -> None:
        task = asyncio.create_task(tick())
        await manager.shutdown()
        task.cancel()

    asyncio.run(main())
    assert [process.exitcode for process in processes] == [-9, -9]
    assert ticks > 5, "the loop went on"


def test_a_worker_that_does_not_read_does_not_hang_the_shutdown(
    ours: None, module: ModuleType, pids: Path
) -> None:
    processes, connections = start_workers("fork", 1, "deaf")
    told(pids, "worker", 1)
    os.set_blocking(connections[0].fileno(), False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(connections[0].fileno(), b"x" * 4096)
    os.set_blocking(connections[0].fileno(), True)
    manager = module.ProcessManager(processes, connections, shutdown_timeout=0.1, kill_timeout=0.1)
    manager._shutdown_workers()
    assert processes[0].exitcode == -9


def test_what_workers_leave_ends_with_the_shutdown_and_nobody_else(
    ours: None, module: ModuleType, pids: Path
) -> None:
    """The original kills every process of this name."""
    processes, connections = start_workers("fork", 1, "engine")
    (engine,) = told(pids, "engine", 1)
    stranger = subprocess.Popen(["sleep", "600"], executable="/bin/sleep")
    namesake = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "VLLM::EngineCore"]
    )
    try:
        manager = module.ProcessManager(processes, connections)
        manager._shutdown_workers()
        wait_until("the end of the engine", lambda: ended(engine))
        assert stranger.poll() is None and namesake.poll() is None
    finally:
        for child in (stranger, namesake):
            child.kill()
            child.wait()


def test_the_clean_up_is_registered_for_the_exit(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    before = signal.getsignal(signal.SIGTERM)
    manager = module.ProcessManager([], [])
    manager.register_cleanup()
    assert registered == [manager._cleanup_orphans]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_dead_workers_orphan_is_cleaned_up_by_its_pattern(
    ours: None, module: ModuleType, pids: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processes, connections = start_workers("fork", 1, "engine")
    (engine,) = told(pids, "engine", 1)
    manager = module.ProcessManager(processes, connections)
    with caplog.at_level(logging.INFO):
        manager._cleanup_orphans()
        assert not ended(engine), "its creator lives"
        manager.get_health_status()
        kill(processes[0])
        manager.get_health_status()
        found = wait_until("an orphan", lambda: manager.get_health_status()["lifemon"]["orphans"])
        assert [orphan["pid"] for orphan in found] == [engine]
        module.cleanup_orphan_processes("no such name")
        assert not ended(engine)
        manager._cleanup_orphans()
    wait_until("the end of the engine", lambda: ended(engine))
    assert f"Killed orphan process {engine} (VLLM::EngineCore)" in caplog.messages


def test_a_namesake_is_not_cleaned_up(ours: None, module: ModuleType) -> None:
    """The original kills it."""
    namesake = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "VLLM::EngineCore"]
    )
    try:
        module.cleanup_orphan_processes("VLLM::EngineCore", "")
        assert namesake.poll() is None
    finally:
        namesake.kill()
        namesake.wait()


# The functions


@pytest.mark.parametrize(
    ("error", "is_fatal"),
    [
        (RuntimeError("EngineCore encountered an issue"), True),
        (RuntimeError("the ENGINE has Died"), True),
        (type("EngineDeadError", (Exception,), {})("gone"), True),
        (type("MyEngineDeadErrorToo", (Exception,), {})(""), True),
        (RuntimeError("enginecore"), False),
        (RuntimeError("somebody died"), False),
        (RuntimeError("the engine is well"), False),
        (ValueError("bad prompt"), False),
    ],
)
def test_errors_that_are_fatal(module: ModuleType, error: Exception, is_fatal: bool) -> None:
    assert module.is_fatal_worker_error(error) is is_fatal


def test_a_cause_is_fatal_as_well(ours: None, module: ModuleType) -> None:
    cause, context = RuntimeError("outer"), RuntimeError("outer")
    cause.__cause__ = RuntimeError("EngineCore")
    context.__context__ = cause
    assert module.is_fatal_worker_error(cause) and module.is_fatal_worker_error(context)
    circle = RuntimeError("a")
    circle.__cause__ = RuntimeError("b")
    circle.__cause__.__context__ = circle
    assert not module.is_fatal_worker_error(circle)


def test_receiving_from_a_worker(module: ModuleType) -> None:
    ours, its = multiprocessing.Pipe()
    its.send({"a": 1})
    assert module.safe_recv(ours) == {"a": 1}
    its.close()
    assert module.safe_recv(ours) == {
        "error": "Worker process died (pipe closed)",
        "kind": "worker_dead",
    }
    ours.close()
    with pytest.raises(OSError):
        module.safe_recv(ours)


def test_receiving_in_an_executor(module: ModuleType, two: tuple[list[Any], list[Any]]) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        for connection in two[1]:
            connection.send({"a": 1})
        futures = [loop.run_in_executor(None, module.safe_recv, one) for one in two[1]]
        return await asyncio.gather(*futures)

    assert asyncio.run(main()) == [{"echo": {"a": 1}}] * 2


def test_a_tree_is_killed(module: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    script = f"sleep 600 & echo $! >> {file}; (sleep 600 & echo $! >> {file}; wait) & wait"
    parent = subprocess.Popen(["sh", "-c", script])
    wait_until("two", lambda: file.exists() and len(file.read_text().split()) == 2)
    module.kill_process_tree(parent.pid)
    parent.wait(10)
    for pid in file.read_text().split():
        wait_until("its end", lambda pid=pid: ended(int(pid)))


def test_a_process_that_does_not_exist_is_no_error(module: ModuleType) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert module.kill_process_tree(child.pid) is None


def test_a_pid_is_an_int(module: ModuleType) -> None:
    with pytest.raises(TypeError):
        # No pid of anybody: the original looks for children of it before it refuses.
        module.kill_process_tree(str(2**22 + 1))


def test_a_pid_is_no_group_and_nobody_above(ours: None, module: ModuleType) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError):
            module.kill_process_tree(wrong)
    for above in (1, os.getppid()):
        assert module.kill_process_tree(above) is None and not ended(above)


# What the documentation of the original promises, and it never had


def test_the_fatal_error_is_a_method_too(ours: None, module: ModuleType) -> None:
    assert module.ProcessManager([], []).is_fatal_error(RuntimeError("EngineCore"))


def test_the_lifespan_shuts_down_on_leaving(
    ours: None, module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    manager = module.ProcessManager(*two)

    async def main() -> None:
        async with manager.lifespan_context():
            manager.check_workers_alive()

    asyncio.run(main())
    assert [process.exitcode for process in two[0]] == [0, 0]


def test_signals_are_refused_outside_the_main_thread(ours: None, module: ModuleType) -> None:
    manager = module.ProcessManager([], [])
    errors: list[BaseException] = []

    def register() -> None:
        try:
            manager.register_signal_handlers()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=register)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_the_copy_in_a_forked_child_is_inert(
    ours: None, module: ModuleType, two: tuple[list[Any], list[Any]]
) -> None:
    manager = module.ProcessManager(*two)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            manager._cleanup_orphans()
            manager._shutdown_workers()
            code = 0
        finally:
            os.kill(os.getpid(), signal.SIGKILL if code else signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    manager.check_workers_alive()
    two[1][0].send({"a": 1})
    assert two[1][0].recv() == {"echo": {"a": 1}}
