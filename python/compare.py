"""Compares lifemon with the module that it replaces on the same leak: `python compare.py FILE`, as
root, where FILE is the original's process_cleanup.py. Both run in a pid namespace of their own,
because the original kills by name. In one, lifemon has no eBPF: its way is `helper-snapshots`.

A server has two workers, each with a renamed engine in a session of its own. Beside it a healthy
server has an engine of the same name. Then the workers are killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "tests" / "programs"

SERVER = """
import asyncio, importlib.util, logging, sys, types
sys.path[:0] = [{programs!r}]
from parts import start_workers, tell
if {original!r}:
    stub = types.ModuleType("axolotl.utils.logging")
    stub.get_logger = logging.getLogger
    sys.modules["axolotl.utils.logging"] = stub
    spec = importlib.util.spec_from_file_location("original", {original!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
else:
    import lifemon.process_cleanup as module
processes, connections = start_workers("fork", 2, "engine")
manager = module.ProcessManager(processes, connections)
manager.register_cleanup()
tell("server")
asyncio.run(manager.monitor_workers())
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def start(original: str) -> tuple[subprocess.Popen[bytes], dict[str, list[int]]]:
    directory = tempfile.mkdtemp()
    environment = {**os.environ, "PIDS": directory, "PYTHONPATH": str(HERE / "src")}
    code = SERVER.format(programs=str(PROGRAMS), original=original)
    server = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
    )
    while True:
        found: dict[str, list[int]] = {}
        for file in Path(directory).glob("[a-z]*.*"):
            role, _, pid = file.name.partition(".")
            found.setdefault(role, []).append(int(pid))
        if len(found.get("engine", [])) == 2 and "server" in found:
            return server, found
        time.sleep(0.01)


def leak(original: str) -> dict[str, object]:
    _, healthy = start("")
    broken, pids = start(original)
    time.sleep(1)
    begun = time.monotonic()
    for pid in pids["worker"]:
        os.kill(pid, signal.SIGKILL)
    try:
        code: object = broken.wait(20)
    except subprocess.TimeoutExpired:
        code = None
    took = time.monotonic() - begun
    time.sleep(1)
    return {
        "server ended with": code,
        "after_s": round(took, 2),
        "own engines killed": sum(not is_alive(pid) for pid in pids["engine"]),
        "engines of the healthy server hit": sum(not is_alive(pid) for pid in healthy["engine"]),
    }


def main() -> None:
    if os.getpid() != 1:
        words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        sys.exit(subprocess.run([*words, sys.executable, __file__, *sys.argv[1:]]).returncode)
    found = {"original": leak(sys.argv[1]), "lifemon": leak("")}
    print(json.dumps(found, indent=1))
    # As process 1 it takes everybody else along.
    os._exit(0)


if __name__ == "__main__":
    main()
