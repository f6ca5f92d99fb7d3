"""What the programs of the tests are made of: workers, their children, and who tells its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lifemon import _proc


def tell(role: str) -> None:
    """Tells that this process is there, by a file that has its pid in its name."""
    own = _proc.identify(os.getpid())
    directory = Path(os.environ["PIDS"])
    draft = directory / f".draft.{os.getpid()}"
    draft.write_text(str(own.start_ns if own else 0))
    draft.rename(directory / f"{role}.{os.getpid()}")


ENGINE = """
import ctypes, os, sys, time
sys.path.insert(0, os.path.dirname({programs!r}))
os.setsid()
ctypes.CDLL(None).prctl(15, b"VLLM::EngineCore", 0, 0, 0)
from parts import tell
tell("engine")
time.sleep(600)
"""


def start_engine() -> None:
    """Starts a renamed grandchild in a session of its own, as an engine is."""
    code = ENGINE.format(programs=__file__)
    subprocess.Popen([sys.executable, "-c", code, "VLLM::EngineCore"])


def worker(connection: Any, kind: str) -> None:
    """Serves until it is asked to shut down, or its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "deaf" in kind:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "engine" in kind:
        start_engine()
    tell("worker")
    if "deaf" in kind:
        while True:
            time.sleep(600)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message.get("type") == "shutdown":
            return
        connection.send({"echo": message})


def start_workers(method: str, count: int, kind: str = "") -> tuple[list[Any], list[Any]]:
    """Starts workers as serve scripts do; returns their processes and the connections."""
    context: Any = get_context(method)
    processes: list[Any] = []
    connections: list[Any] = []
    for _ in range(count):
        ours, its = context.Pipe()
        process = context.Process(target=worker, args=(its, kind))
        process.start()
        its.close()
        processes.append(process)
        connections.append(ours)
    return processes, connections
