"""Real uvicorn, where it is installed: `cargo xtask test --pythons` installs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from conftest import ended, wait_until
from test_servers import Serve, all_end, needs_helper

pytest.importorskip("uvicorn")
pytestmark = needs_helper

EVERYBODY = {"worker": 2, "engine": 2}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def health(port: int) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


def start(serve: Serve, *words: str, kind: str = "engine", **env: str) -> tuple[Any, int]:
    port = free_port()
    server = serve("serve.py", str(port), *words, KIND=kind, **env)
    wait_until("an answer", lambda: health(port)[0] == 200, 60)
    for role, count in EVERYBODY.items():
        if role in kind or role == "worker":
            server.pids(role, count)
    return server, port


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sigterm(serve: Serve, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server, _ = start(serve, loop)
    server.process.terminate()
    server.process.wait(30)
    assert "Worker shutdown complete" in server.text()
    all_end(server, EVERYBODY)


def test_two_sigint(serve: Serve) -> None:
    server, _ = start(serve, kind="deaf,engine")
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    server.process.send_signal(signal.SIGINT)
    server.process.wait(30)
    all_end(server, EVERYBODY)


def test_two_sigterm_with_handlers(serve: Serve) -> None:
    server, _ = start(serve, kind="deaf,engine", SIGNALS="1", LIMIT_S="60")
    begun = time.monotonic()
    server.process.terminate()
    time.sleep(0.3)
    server.process.terminate()
    server.process.wait(30)
    assert time.monotonic() - begun < 10
    all_end(server, EVERYBODY)


def test_kill(serve: Serve) -> None:
    server, _ = start(serve)
    time.sleep(0.6)
    server.process.kill()
    all_end(server, EVERYBODY)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_is_killed_and_then_all(serve: Serve, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server, port = start(serve, loop)
    workers = server.pids("worker", 2)
    os.kill(workers[0], signal.SIGKILL)
    wait_until("its end", lambda: ended(workers[0]))
    code, status = health(port)
    assert code == 503 and len(status["dead_workers"]) == 1
    assert "SIGKILL" in status["lifemon"]["causes"][0]["cause"]
    os.kill(workers[1], signal.SIGKILL)
    assert server.process.wait(30) == 1
    all_end(server, EVERYBODY)


def test_a_worker_that_ignores_everything(serve: Serve) -> None:
    server, _ = start(serve, kind="deaf")
    server.process.terminate()
    server.process.wait(30)
    assert "didn't respond to SIGTERM, force killing" in server.text()
    all_end(server, {"worker": 2})


def test_two_workers_of_uvicorn(serve: Serve) -> None:
    server, _ = start(serve, "2")
    server.pids("server", 2)
    server.pids("engine", 4)
    servers = server.pids("server", 2)
    os.kill(servers[0], signal.SIGKILL)
    wait_until("its end", lambda: ended(servers[0]))
    server.process.terminate()
    server.process.wait(30)
    wait_until("the end of all", lambda: all(map(ended, server.pids("engine", 4))))
    wait_until("the end of all", lambda: all(map(ended, server.pids("worker", 4))))


def test_reload(serve: Serve) -> None:
    server, port = start(serve, "reload")
    first = server.pids("server", 1)[0]
    program = os.path.join(os.path.dirname(__file__), "programs", "app.py")
    os.utime(program)
    server.pids("server", 2)
    wait_until("an answer", lambda: health(port)[0] == 200, 60)
    assert ended(first)
    server.process.terminate()
    server.process.wait(30)
    wait_until("the end of all", lambda: all(map(ended, server.pids("engine", 4))))
