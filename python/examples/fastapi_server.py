"""A FastAPI server with workers: `uvicorn fastapi_server:app`, or `python fastapi_server.py`.

Kill it with `kill -9`: its workers, and whatever they have started, end with it. Kill a worker:
`/health` answers 503, with the cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from lifemon.process_cleanup import ProcessManager, is_fatal_worker_error, safe_recv

WORKERS = 2


def work(connection: Connection) -> None:
    """Answers until it is asked to shut down, or the server is gone."""
    while True:
        try:
            command = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if command.get("type") == "shutdown":
            return
        try:
            connection.send({"text": command["prompt"].upper()})
        except Exception as error:
            connection.send({"error": str(error), "kind": "worker_error"})
            if is_fatal_worker_error(error):
                return


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Not fork: the server has threads by now.
    context = get_context("spawn")
    pipes = [Pipe() for _ in range(WORKERS)]
    processes = [context.Process(target=work, args=(its,)) for _, its in pipes]
    for process in processes:
        process.start()
    for _, its in pipes:
        its.close()
    manager = ProcessManager(processes, [ours for ours, _ in pipes])
    manager.register_cleanup()
    app.state.manager = manager
    async with manager.lifespan_context():
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> JSONResponse:
    status = app.state.manager.get_health_status()
    return JSONResponse(status, status_code=200 if status["status"] == "ok" else 503)


@app.get("/generate")
async def generate(prompt: str) -> Any:
    manager: ProcessManager = app.state.manager
    manager.check_workers_alive()
    connection = manager.connections[0]
    connection.send({"type": "generate", "prompt": prompt})
    return await asyncio.get_running_loop().run_in_executor(None, safe_recv, connection)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=8000)
