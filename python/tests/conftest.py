"""Fixtures: the module under the contract, servers as programs, and nothing left behind."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lifemon import _proc

SOURCE = Path(__file__).parent.parent / "src"

ORIGINAL = os.environ.get("LIFEMON_ORIGINAL")
"""The file of the module that lifemon replaces: the contract is then tried on that."""


def original() -> types.ModuleType:
    """Loads the module that is replaced from its file, without the package around it."""
    assert ORIGINAL
    import logging

    stub: Any = types.ModuleType("axolotl.utils.logging")
    stub.get_logger = logging.getLogger
    sys.modules.setdefault("axolotl.utils.logging", stub)
    spec = importlib.util.spec_from_file_location("process_cleanup_original", ORIGINAL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["process_cleanup_original"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module() -> types.ModuleType:
    """The module under the contract."""
    return original() if ORIGINAL else importlib.import_module("lifemon.process_cleanup")


@pytest.fixture
def ours() -> None:
    """Skips what only lifemon promises, where the original is under test."""
    if ORIGINAL:
        pytest.skip("an addition of lifemon")


@pytest.fixture(autouse=True)
def private_tracker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps the tests of lifemon itself from switching the tracker of the host meanwhile, and an
    agent of the host out."""
    monkeypatch.setenv("LIFEMON_AGENT", "/no/agent")
    try:
        directory = os.open("/sys/fs/cgroup", os.O_RDONLY)
    except OSError:
        yield
        return
    fcntl.flock(directory, fcntl.LOCK_SH)
    yield
    os.close(directory)


def wait_until(what: str, is_so: Callable[[], Any], limit_s: float = 20.0) -> Any:
    """Waits for a condition; fails with its name."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = is_so()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"not within {limit_s} s: {what}")


def ended(pid: int) -> bool:
    """Returns whether a process cannot run any more."""
    found = _proc.stat(pid)
    return found is None or not found.is_live


class Server:
    """A program of tests/programs in a process of its own; ended, with all below it, at last."""

    def __init__(
        self,
        directory: Path,
        words: list[str],
        prefix: list[str],
        python: str = sys.executable,
        **env: str,
    ) -> None:
        self.directory = directory
        program = Path(__file__).parent / "programs" / words[0]
        path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PIDS": str(directory), **env}
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, python, str(program), *words[1:]],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pids(self, role: str, count: int = 1) -> list[int]:
        """Waits until so many processes of this role have told their pids; returns those."""

        def told() -> list[int]:
            files = sorted(self.directory.glob(f"{role}.*"))
            return [int(file.name.rpartition(".")[2]) for file in files]

        def all_told() -> list[int]:
            assert self.process.poll() is None or len(told()) >= count, self.text()
            return told() if len(told()) >= count else []

        return wait_until(f"{count} of {role}", all_told)

    def text(self) -> str:
        """Returns what it has printed."""
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """Kills it, and everybody who has told a pid here and is still alive."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for file in self.directory.glob("*.*"):
            digits = file.name.rpartition(".")[2]
            if not digits.isdigit():
                continue
            process = _proc.ProcessId(int(digits), int(file.read_text() or 0))
            if process.start_ns and _proc.is_live(process):
                _proc.kill_trees([process])


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts programs as servers."""
    servers: list[Server] = []

    def start(*words: str, prefix: list[str] | None = None, **env: str) -> Server:
        directory = tmp_path / str(len(servers))
        directory.mkdir()
        directory.chmod(0o777)
        servers.append(Server(directory, list(words), prefix or [], **env))
        return servers[-1]

    yield start
    for server in servers:
        server.end()
