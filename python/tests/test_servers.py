"""Whole servers, as users have them: killed, stopped, under other users and in namespaces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ORIGINAL, SOURCE, Server, ended, wait_until

from lifemon import BinaryNotFoundError, _proc, find_binary

pytestmark = pytest.mark.skipif(bool(ORIGINAL), reason="these servers are lifemon's")

IS_ROOT = os.geteuid() == 0

Serve = Callable[..., Server]


def has_binary() -> bool:
    try:
        find_binary()
    except BinaryNotFoundError:
        return False
    return True


needs_helper = pytest.mark.skipif(not has_binary(), reason="there is no binary: set LIFEMON_BIN")
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")

WAYS = [
    pytest.param("helper", marks=[needs_helper, needs_root]),
    pytest.param("helper-snapshots", marks=needs_helper),
]


def all_end(server: Server, roles: dict[str, int]) -> None:
    for role, count in roles.items():
        for pid in server.pids(role, count):
            what = f"the end of {role} {pid}: {server.text()}"
            wait_until(what, lambda pid=pid: ended(pid))


def kill_both_workers(server: Server, engines: list[int]) -> None:
    """Kills one worker and then the other, which ends the server and all of it."""
    workers = server.pids("worker", 2)
    os.kill(workers[0], signal.SIGKILL)
    wait_until("its end", lambda: ended(workers[0]))
    assert server.process.poll() is None and not any(map(ended, engines))
    os.kill(workers[1], signal.SIGKILL)
    assert server.process.wait(20) == 1, server.text()
    all_end(server, {"worker": 2, "engine": 2})
    assert "All vLLM workers died. Shutting down server." in server.text()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_server_that_is_killed_leaves_nothing(serve: Serve, method: str, way: str) -> None:
    server = serve("server.py", method, "2", "engine", "plain", LIFEMON_WAY=way)
    server.pids("server")
    everybody = {"worker": 2, "engine": 2}
    for role, count in everybody.items():
        server.pids(role, count)
    assert f"way {way}" in server.text()
    # A snapshot may need its interval.
    time.sleep(0 if way == "helper" else 0.6)
    server.process.kill()
    all_end(server, everybody)


@pytest.mark.parametrize("way", WAYS)
def test_all_workers_killed_end_the_server_and_their_orphans(serve: Serve, way: str) -> None:
    server = serve("server.py", "fork", "2", "engine", "plain", LIFEMON_WAY=way)
    server.pids("server")
    engines = server.pids("engine", 2)
    time.sleep(0 if way == "helper" else 0.6)
    kill_both_workers(server, engines)


@needs_helper
def test_one_worker_killed_ends_the_server_if_asked_for(serve: Serve) -> None:
    server = serve("server.py", "fork", "2", "engine", "any")
    server.pids("server")
    server.pids("engine", 2)
    os.kill(server.pids("worker", 2)[0], signal.SIGKILL)
    assert server.process.wait(20) == 1, server.text()
    all_end(server, {"worker": 2, "engine": 2})


@needs_helper
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_begins_the_shutdown(serve: Serve, number: int) -> None:
    server = serve("server.py", "fork", "2", "engine", "signals")
    server.pids("server")
    server.pids("engine", 2)
    os.kill(server.process.pid, number)
    code = server.process.wait(20)
    # Python turns SIGINT into KeyboardInterrupt, as it did before.
    assert code in ([-15] if number == signal.SIGTERM else [-2, 1, 130]), server.text()
    assert "Worker shutdown complete" in server.text()
    all_end(server, {"worker": 2, "engine": 2})


@needs_helper
def test_a_second_signal_ends_at_once_what_ignores_everything(serve: Serve) -> None:
    server = serve("server.py", "fork", "2", "deaf,engine", "signals,slow")
    server.pids("server")
    server.pids("engine", 2)
    server.pids("worker", 2)
    begun = time.monotonic()
    os.kill(server.process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(20) == 1, server.text()
    assert time.monotonic() - begun < 5
    all_end(server, {"worker": 2, "engine": 2})


@needs_helper
@needs_root
def test_a_server_of_an_ordinary_user(serve: Serve, tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.stat().st_uid == os.getuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    code = "import os, sys, lifemon; sys.exit(not os.access(sys.executable, os.X_OK))"

    def is_usable(python: str) -> bool:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        words = [*nobody, python, "-c", code]
        return subprocess.run(words, env=environment, capture_output=True).returncode == 0

    pythons = [one for one in (sys.executable, "/usr/bin/python3") if is_usable(one)]
    binary = subprocess.run([*nobody, "test", "-x", str(find_binary())])
    if not pythons or binary.returncode:
        pytest.skip("another user cannot read this checkout")
    server = serve("server.py", "fork", "2", "engine", "plain", prefix=nobody, python=pythons[0])
    server.pids("server")
    server.pids("engine", 2)
    assert "way helper-snapshots" in server.text(), server.text()
    time.sleep(0.6)
    server.process.kill()
    all_end(server, {"worker": 2, "engine": 2})


@needs_helper
@needs_root
def test_a_server_in_a_pid_namespace(serve: Serve) -> None:
    """Pids in the files are those inside, so what is left is looked for by name."""
    prefix = ["unshare", "-pf", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; true', "sh"]
    server = serve("server.py", "fork", "1", "engine", "plain", prefix=prefix)
    wait_until("the server", lambda: "way " in server.text())
    assert "way helper-snapshots" in server.text(), server.text()
    wait_until("all", lambda: len(list(server.directory.glob("[a-z]*.*"))) == 3)
    mine = [pid for pid, _ in _proc.below([_proc.identify(server.process.pid)])]  # pyright: ignore
    real = next(one for one in mine if "server.py" in _proc.command_line(one.pid))
    below = [one for one, _ in _proc.below([real])]
    assert len(below) >= 3
    time.sleep(0.6)
    os.kill(real.pid, signal.SIGKILL)
    # The shell that is process 1 of the namespace has nothing more to do then.
    server.process.wait(20)
    for one in below:
        wait_until("its end", lambda one=one: not _proc.is_live(one))


@needs_helper
@needs_root
def test_the_cause_in_the_health_status_names_the_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import json, os, signal, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from parts import start_workers
from lifemon.process_cleanup import ProcessManager
processes, connections = start_workers("fork", 1)
manager = ProcessManager(processes, connections)
killer = subprocess.run(["sh", "-c", f"kill -9 {processes[0].pid}; :"])
while manager.get_health_status()["status"] == "ok":
    time.sleep(0.001)
time.sleep(0.05)
print(json.dumps(manager.get_health_status()))
"""
    monkeypatch.setenv("PIDS", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent / "programs")],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "LIFEMON_WAY": "helper"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    health: dict[str, Any] = json.loads(done.stdout)
    details = health["lifemon"]
    assert details["way"] == "helper" and details["complete"] is True, details
    (cause,) = details["causes"]
    assert re.fullmatch(r"SIGKILL from \d+ sh", cause["cause"]), cause
    assert cause["exit"]["sender"]["name"] == "sh"


def memory_cgroup() -> Path | None:
    """Makes a control group with a limit of memory; None where that cannot be."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")):
        group = root / f"lifemon-python-{os.getpid()}"
        limit = "memory.max" if (root / "cgroup.controllers").exists() else "memory.limit_in_bytes"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(64 << 20))
            return group
        group.rmdir()
    return None


@needs_helper
@needs_root
def test_the_cause_of_a_worker_without_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = memory_cgroup()
    if group is None:
        pytest.skip("there is no memory controller here")
    script = """
import json, multiprocessing, sys, time
from lifemon.process_cleanup import ProcessManager
def eat(group, go):
    open(group + "/cgroup.procs", "w").write("0")
    go.wait()
    kept = []
    while True:
        kept.append(bytearray(1 << 20))
context = multiprocessing.get_context("fork")
go = context.Event()
worker = context.Process(target=eat, args=(sys.argv[1], go))
worker.start()
manager = ProcessManager([worker], [])
go.set()
end = time.monotonic() + 30
while manager.get_health_status()["status"] == "ok" and time.monotonic() < end:
    time.sleep(0.001)
time.sleep(0.1)
print(json.dumps(manager.get_health_status()))
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(group)],
            env={**os.environ, "PYTHONPATH": str(SOURCE), "LIFEMON_WAY": "helper"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        (cause,) = json.loads(done.stdout)["lifemon"]["causes"]
        assert cause["exit"]["cause"] == "oom", cause
        assert "out of memory" in cause["cause"]
    finally:
        wait_until("an empty control group", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@needs_helper
def test_the_helper_that_is_killed_is_named_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIDS", str(tmp_path))
    sys.path.insert(0, str(Path(__file__).parent / "programs"))
    from parts import start_workers

    from lifemon.process_cleanup import ProcessManager

    processes, connections = start_workers("fork", 2)
    manager = ProcessManager(processes, connections)
    helper: Any = manager._workers.way
    helper._process.kill()

    def is_lost() -> bool:
        manager.check_workers_alive()
        return manager.way == "snapshots"

    wait_until("the loss", is_lost)
    details = manager.get_health_status()["lifemon"]
    assert details["complete"] is False
    assert details["incomplete"][0]["reason"] == "helper_dead"
    processes[0].kill()
    wait_until("the death", lambda: manager.get_health_status().get("dead_workers") == [0])
    manager._shutdown_workers()
    assert processes[1].exitcode == 0


def test_a_server_that_is_a_subreaper_adopts_and_reaps_what_it_knows(tmp_path: Path) -> None:
    script = """
import os, signal, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from parts import start_workers
from lifemon import _proc
from lifemon.process_cleanup import ProcessManager
processes, connections = start_workers("fork", 1, "engine")
manager = ProcessManager(processes, connections, subreaper=True, monitor_interval=0.05)
end = time.monotonic() + 20
while not (engines := [f for f in os.listdir(os.environ["PIDS"]) if f.startswith("engine")]):
    assert time.monotonic() < end
    time.sleep(0.01)
engine = int(engines[0].partition(".")[2])
own = subprocess.Popen(["sh", "-c", "exit 7"])
assert manager.way == "snapshots" and manager.get_health_status()["lifemon"]["complete"] is False
processes[0].kill()
while not manager.get_health_status()["lifemon"]["orphans"]:
    assert time.monotonic() < end
    time.sleep(0.01)
assert _proc.stat(engine).parent == os.getpid()
manager._cleanup_orphans()
while _proc.stat(engine):
    manager.get_health_status()
    assert time.monotonic() < end, "it is reaped"
    time.sleep(0.01)
assert own.wait() == 7, "the server's own child is the server's"
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent / "programs")],
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "LIFEMON_WAY": "snapshots",
            "PIDS": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@needs_helper
@needs_root
def test_a_tracker_that_is_switched_off_meanwhile_changes_nothing(serve: Serve) -> None:
    """With a BPF file system of its own: it is nobody else's tracker."""
    script = 'mount -t bpf bpf /sys/fs/bpf && "$LIFEMON" track on >/dev/null && exec "$@"'
    binary = str(find_binary())
    server = serve(
        "server.py",
        "fork",
        "2",
        "engine",
        "plain",
        prefix=["unshare", "-m", "sh", "-c", script, "sh"],
        LIFEMON=binary,
        LIFEMON_WAY="helper",
    )
    server.pids("server")
    server.pids("engine", 2)
    assert "way helper\n" in server.text()
    off = ["nsenter", "-m", "-t", str(server.process.pid), binary, "track", "off"]
    subprocess.run(off, check=True, stdout=subprocess.DEVNULL)
    worker = server.pids("worker", 2)[0]
    os.kill(worker, signal.SIGKILL)
    wait_until("its end", lambda: ended(worker))
    time.sleep(0.5)
    server.process.kill()
    all_end(server, {"worker": 2, "engine": 2})
