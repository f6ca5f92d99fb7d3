"""A server without HTTP: `server.py METHOD WORKERS KIND MANAGER...`, monitored until it ends."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from parts import start_workers, tell

from lifemon.process_cleanup import ProcessManager


async def serve(manager: ProcessManager, how: str) -> None:
    if "signals" in how:
        manager.register_signal_handlers()
    async with manager.lifespan_context():
        tell("server")
        await asyncio.sleep(600)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    method, count, kind, how = sys.argv[1:5]
    processes, connections = start_workers(method, int(count), kind)
    limit_s = 60.0 if "slow" in how else 1.0
    options: dict[str, Any] = {"shutdown_timeout": limit_s, "kill_timeout": limit_s}
    manager = ProcessManager(
        processes, connections, policy="any" if "any" in how else "all", **options
    )
    print("way", manager.way, flush=True)
    manager.register_cleanup()
    if "uvloop" in how:
        import uvloop  # pyright: ignore[reportMissingImports]

        uvloop.run(serve(manager, how))
    else:
        asyncio.run(serve(manager, how))


if __name__ == "__main__":
    main()
