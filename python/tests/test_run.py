"""The way by `lifemon run`: a server below it, killed and shut down, as root and as nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ORIGINAL, SOURCE, Server
from test_servers import IS_ROOT, all_end, has_binary, kill_both_workers, needs_root

from lifemon import find_binary

pytestmark = [
    pytest.mark.skipif(bool(ORIGINAL), reason="an addition of lifemon"),
    pytest.mark.skipif(not has_binary(), reason="there is no binary: set LIFEMON_BIN"),
]

Serve = Callable[..., Server]

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]

USERS = [
    pytest.param([], id="own"),
    pytest.param(NOBODY, id="nobody", marks=needs_root),
]


@pytest.fixture
def open_to_all(tmp_path: Path) -> Iterator[Path]:
    """A directory that another user may use."""
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.stat().st_uid == os.getuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    yield tmp_path


def below_run(user: list[str], directory: Path) -> tuple[list[str], str]:
    """Returns the words before those of a server, and a Python; skips where there is none."""
    binary = directory / "lifemon"
    shutil.copy(find_binary(), binary)
    binary.chmod(0o755)
    python = "/usr/bin/python3" if IS_ROOT else shutil.which("python3") or "python3"
    tried = [*user, python, "-c", "import multiprocessing, lifemon"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    if subprocess.run(tried, env=environment, capture_output=True).returncode != 0:
        pytest.skip("another user cannot read this checkout, or has no Python")
    return [*user, str(binary), "run", "--grace", "0", "--"], python


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_server_that_is_killed_leaves_nothing(
    serve: Serve, open_to_all: Path, method: str, user: list[str]
) -> None:
    prefix, python = below_run(user, open_to_all)
    server = serve("server.py", method, "2", "engine", "plain", prefix=prefix, python=python)
    (pid,) = server.pids("server")
    everybody = {"worker": 2, "engine": 2}
    for role, count in everybody.items():
        server.pids(role, count)
    assert "way run" in server.text()
    os.kill(pid, signal.SIGKILL)
    all_end(server, everybody)
    assert server.process.wait(20) == 137
    assert "of its workers' trees killed" in server.text()


@pytest.mark.parametrize("user", USERS)
def test_all_workers_killed_end_the_server_and_their_orphans(
    serve: Serve, open_to_all: Path, user: list[str]
) -> None:
    prefix, python = below_run(user, open_to_all)
    server = serve("server.py", "fork", "2", "engine", "plain", prefix=prefix, python=python)
    server.pids("server")
    engines = server.pids("engine", 2)
    kill_both_workers(server, engines)
    assert "left behind" not in server.text(), "the manager has ended all of it"


HEALTH = """
import json, os, signal, subprocess, sys, time
from multiprocessing import get_context
sys.path.insert(0, sys.argv[1])
from lifemon import Guard
from lifemon.process_cleanup import ProcessManager

def scatter(connection):
    connection.recv()
    # Its parents are dead before anybody can have looked.
    words = ["setsid", "sh", "-c", "(setsid sleep 600 & echo $!)"]
    pid = int(subprocess.Popen(words, stdout=subprocess.PIPE).stdout.readline())
    connection.send(pid)
    time.sleep(600)

context = get_context("fork")
ours, its = context.Pipe()
worker = context.Process(target=scatter, args=(its,))
worker.start()
manager = ProcessManager([worker], [])
ours.send("go")
scattered = ours.recv()
beside = subprocess.Popen(["sleep", "600"])
end = time.monotonic() + 20
while not (found := manager.get_health_status()["lifemon"])["orphans"]:
    assert time.monotonic() < end
    time.sleep(0.01)
assert [one["pid"] for one in found["orphans"]] == [scattered]
with Guard(beside):
    assert beside.poll() is None
assert beside.wait() == -9
worker.kill()
while manager.get_health_status()["status"] == "ok":
    assert time.monotonic() < end
found = manager.get_health_status()["lifemon"]
assert os.path.exists(f"/proc/{scattered}")
manager._shutdown_workers()
while os.path.exists(f"/proc/{scattered}"):
    assert time.monotonic() < end
print(json.dumps(found))
"""


@pytest.mark.parametrize("user", USERS)
def test_what_loses_its_parents_at_once_is_known_and_ended(
    open_to_all: Path, user: list[str]
) -> None:
    prefix, python = below_run(user, open_to_all)
    words = [*prefix, python, "-c", HEALTH, str(Path(__file__).parent / "programs")]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    details = json.loads(done.stdout)
    assert details["way"] == "run" and details["complete"] is True, details
    assert details["causes"][0]["exit"]["signal"] == signal.SIGKILL
    assert "left behind" not in done.stderr


@needs_root
def test_another_user_below_a_run_of_root_gets_the_next_way(
    serve: Serve, open_to_all: Path
) -> None:
    prefix, python = below_run([], open_to_all)
    below_run(NOBODY, open_to_all)
    server = serve(
        "server.py", "fork", "1", "engine", "plain", prefix=[*prefix, *NOBODY], python=python
    )
    server.pids("server")
    server.pids("engine", 1)
    assert "way helper-snapshots" in server.text(), server.text()
    assert "WARNING" not in server.text(), "nothing is lost that was there"


def test_a_socket_of_somebody_else_is_not_taken_for_a_guardians() -> None:
    script = """
import os, signal, socket
from lifemon._ways import run

namespace = os.stat("/proc/self/ns/pid").st_ino
name = f"\\0lifemon-run/{namespace}/{os.getpid()}"

def listen():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    return listener

def is_taken():
    child = os.fork()
    if child == 0:
        os._exit(run._connect(os.getppid()) is not None)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

with listen():
    assert is_taken()
reader, writer = os.pipe()
other = os.fork()
if other == 0:
    kept = listen()
    os.write(writer, b"x")
    signal.pause()
os.read(reader, 1)
try:
    assert not is_taken()
finally:
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
