"""An ASGI application with workers, for a real uvicorn. Written as serve scripts are today."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any

from parts import start_workers, tell

from lifemon.process_cleanup import ProcessManager

state: dict[str, Any] = {}


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    logging.basicConfig(level=logging.INFO)
    processes, connections = start_workers("spawn", 2, os.environ.get("KIND", ""))
    limit_s = float(os.environ.get("LIMIT_S", "1"))
    manager = ProcessManager(processes, connections, shutdown_timeout=limit_s, kill_timeout=limit_s)
    manager.register_cleanup()
    if os.environ.get("SIGNALS"):
        manager.register_signal_handlers()
    state["manager"] = manager
    monitor = asyncio.create_task(manager.monitor_workers())
    tell("server")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    monitor.cancel()
    manager._shutdown_workers()  # pyright: ignore[reportPrivateUsage]  # as its callers do
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    status = state["manager"].get_health_status()
    code = 200 if status["status"] == "ok" else 503
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(status).encode()})
