"""Real uvicorn with the application beside this: `serve.py PORT [WORKERS] [reload] [uvloop]`."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    port, *words = sys.argv[1:]
    uvicorn.run(
        "app:app",
        host="127.0.0.1",
        port=int(port),
        workers=2 if "2" in words else None,
        reload="reload" in words,
        reload_dirs=[str(Path(__file__).parent)] if "reload" in words else None,
        loop="uvloop" if "uvloop" in words else "asyncio",
        app_dir=str(Path(__file__).parent),
    )
