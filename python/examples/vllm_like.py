"""A server as vLLM's is, without vLLM: each worker starts an engine that renames itself and has a
session of its own, as `VLLM::EngineCore` has. `python vllm_like.py` prints who is there and waits:
then kill a worker, or this, in any way, and look for engines with `pgrep -fa VLLM::EngineCore`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from multiprocessing import Pipe, Process, get_context
from multiprocessing.connection import Connection

from lifemon.process_cleanup import ProcessManager

PR_SET_NAME = 15


def engine() -> None:
    """Holds the GPU, in a server that has one."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"VLLM::EngineCore", 0, 0, 0)
    time.sleep(3600)


def worker(connection: Connection) -> None:
    """Starts an engine, and serves until it is asked to shut down."""
    Process(target=engine).start()
    try:
        while connection.recv().get("type") != "shutdown":
            pass
    except (EOFError, KeyboardInterrupt):
        pass
    # As an engine that hangs: nobody ends it here.
    os._exit(0)


async def serve() -> None:
    context = get_context("spawn")
    pipes = [Pipe() for _ in range(2)]
    processes = [context.Process(target=worker, args=(its,)) for _, its in pipes]
    for process in processes:
        process.start()
    manager = ProcessManager(processes, [ours for ours, _ in pipes], policy="any")
    manager.register_signal_handlers()
    print(f"server {os.getpid()}, workers {[one.pid for one in processes]}: known by {manager.way}")
    async with manager.lifespan_context():
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(serve())
