"""The examples do what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SOURCE, wait_until
from test_servers import needs_helper

from lifemon import _proc

EXAMPLES = SOURCE.parent / "examples"

pytestmark = needs_helper


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a program of the examples; ends it, and waits until nothing of it is left."""
    server = subprocess.Popen(
        [sys.executable, "-u", *words],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        cwd=EXAMPLES,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield server
    finally:
        own = _proc.identify(server.pid)
        below = [one for one, _ in _proc.below([own])] if own else []
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
        for one in below:
            wait_until(f"the end of {one}", lambda one=one: not _proc.is_live(one))


def test_the_server_as_that_of_vllm() -> None:
    with running("vllm_like.py") as server:
        assert server.stdout is not None
        assert "known by helper" in server.stdout.readline()
        own = _proc.identify(server.pid)
        assert own is not None

        def engines() -> int:
            names = [_proc.stat(one.pid) for one, _ in _proc.below([own])]
            return sum(name is not None and name.name.startswith("VLLM::") for name in names)

        wait_until("two engines", lambda: engines() == 2)


def test_the_server_with_fastapi() -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    from test_uvicorn import free_port, health

    port = free_port()
    with running("-m", "uvicorn", "fastapi_server:app", "--port", str(port)):
        wait_until("an answer", lambda: health(port)[0] == 200, 60)
        url = f"http://127.0.0.1:{port}/generate?prompt=hello"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: Any = json.load(answer)
        assert found == {"text": "HELLO"}


def test_every_example_is_tried() -> None:
    names = {path.name for path in Path(EXAMPLES).glob("*.py")}
    assert names == {"vllm_like.py", "fastapi_server.py"}
