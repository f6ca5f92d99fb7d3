"""Measures what docs/python.md says: `python measure.py [TRIALS]`. Prints ratios and medians."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from multiprocessing import connection, get_context
from typing import Any

from lifemon import _proc
from lifemon.process_cleanup import ProcessManager, WorkersDiedError

MEBIBYTE = 1 << 20


def idle(size_mib: int, ready: Any) -> None:
    """Touches so much memory, and waits for its end."""
    kept = bytearray(size_mib * MEBIBYTE)
    kept[::4096] = b"x" * len(kept[::4096])
    ready.send(True)
    time.sleep(600)


def start(size_mib: int) -> tuple[Any, Any]:
    ours, its = get_context("fork").Pipe()
    process = get_context("fork").Process(target=idle, args=(size_mib, its))
    process.start()
    its.close()
    ours.recv()
    return process, ours


def kill_and_poll(size_mib: int, is_dead: Any, process: Any) -> float:
    begun = time.perf_counter()
    os.kill(process.pid, signal.SIGKILL)
    while not is_dead():
        pass
    return (time.perf_counter() - begun) * 1e6


def check_raises(size_mib: int) -> float:
    """Returns us from SIGKILL until check_workers_alive raises."""
    process, pipe = start(size_mib)
    manager = ProcessManager([process], [pipe])

    def is_dead() -> bool:
        try:
            manager.check_workers_alive()
        except WorkersDiedError:
            return True
        return False

    took = kill_and_poll(size_mib, is_dead, process)
    process.join()
    manager._workers.close()  # pyright: ignore[reportPrivateUsage]
    return took


def original_raises(size_mib: int) -> float:
    """Returns the same for `is_alive` of each process, which the original asks."""
    process, _pipe = start(size_mib)
    took = kill_and_poll(size_mib, lambda: not process.is_alive(), process)
    process.join()
    return took


def sentinel_raises(size_mib: int) -> float:
    """Returns the same for the sentinel of multiprocessing."""
    process, _pipe = start(size_mib)
    took = kill_and_poll(size_mib, lambda: connection.wait([process.sentinel], 0), process)
    process.join()
    return took


async def in_loop(size_mib: int, way: str) -> float:
    """Returns us from SIGKILL until a task that waits in a loop goes on."""
    process, pipe = start(size_mib)
    loop = asyncio.get_running_loop()
    begun = 0.0
    if way == "lifemon":
        manager = ProcessManager([process], [pipe], policy="any")
        acted = loop.create_future()
        manager._end_trees = lambda: not acted.set_result(None)  # pyright: ignore
        manager._cleanup_orphans = lambda: None  # pyright: ignore
        real, os._exit = os._exit, lambda code: None  # pyright: ignore
        task = asyncio.create_task(manager.monitor_workers())
        await asyncio.sleep(0.05)
        begun = time.perf_counter()
        os.kill(process.pid, signal.SIGKILL)
        await acted
        took = time.perf_counter() - begun
        await task
        os._exit = real
        manager._workers.close()  # pyright: ignore[reportPrivateUsage]
    else:
        happened = loop.create_future()
        loop.add_reader(process.sentinel, happened.set_result, None)
        await asyncio.sleep(0.05)
        begun = time.perf_counter()
        os.kill(process.pid, signal.SIGKILL)
        await happened
        took = time.perf_counter() - begun
        loop.remove_reader(process.sentinel)
    process.join()
    return took * 1e6


def cost(workers: int) -> tuple[float, float]:
    """Returns us for one check of workers that live: lifemon's, and the original's."""
    started = [start(1) for _ in range(workers)]
    processes = [process for process, _ in started]
    manager = ProcessManager(processes, [pipe for _, pipe in started])
    rounds = 5_000

    def each(check: Any) -> float:
        times: list[float] = []
        for _ in range(7):
            begun = time.perf_counter()
            for _ in range(rounds):
                check()
            times.append((time.perf_counter() - begun) / rounds * 1e6)
        return statistics.median(times)

    ours = each(manager.check_workers_alive)
    original = each(lambda: [i for i, p in enumerate(processes) if not p.is_alive()])
    for process in processes:
        process.kill()
        process.join()
    manager._shutdown_workers()  # pyright: ignore[reportPrivateUsage]
    return ours, original


def import_ms(code: str) -> float:
    times: list[float] = []
    for _ in range(11):
        words = [sys.executable, "-c", code]
        begun = time.perf_counter()
        subprocess.run(words, check=True)
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def helper_kib() -> dict[str, int]:
    process, pipe = start(1)
    manager = ProcessManager([process], [pipe])
    helpers = [pid for pid in _proc.children(os.getpid()) if " helper" in _proc.command_line(pid)]
    found: dict[str, int] = {}
    for pid in helpers:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith(("VmRSS", "VmHWM", "RssAnon")):
                    name, value = line.split(":")
                    found[name] = int(value.split()[0])
    process.kill()
    process.join()
    manager._workers.close()  # pyright: ignore[reportPrivateUsage]
    return found


def spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "p50_us": round(statistics.median(values), 1),
        "p99_us": round(values[int(len(values) * 0.99) - 1], 1),
    }


def main() -> None:
    logging.disable()
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    report: dict[str, Any] = {"python": sys.version.split()[0], "trials": trials}
    for size_mib in (1, 512):
        count = trials if size_mib == 1 else max(trials // 5, 5)
        ours: list[float] = []
        original: list[float] = []
        sentinel: list[float] = []
        ours_in_loop: list[float] = []
        sentinel_in_loop: list[float] = []
        # In turn: what else the machine does hits all alike.
        for _ in range(count):
            ours.append(check_raises(size_mib))
            original.append(original_raises(size_mib))
            sentinel.append(sentinel_raises(size_mib))
            ours_in_loop.append(asyncio.run(in_loop(size_mib, "lifemon")))
            sentinel_in_loop.append(asyncio.run(in_loop(size_mib, "sentinel")))
        report[f"worker of {size_mib} MiB"] = {
            "n": count,
            "check_workers_alive": spread(ours),
            "is_alive": spread(original),
            "sentinel": spread(sentinel),
            "monitor_workers in the loop": spread(ours_in_loop),
            "sentinel in the loop": spread(sentinel_in_loop),
        }
    report["cost of a check, us"] = {
        str(workers): dict(zip(("lifemon", "is_alive of each"), cost(workers), strict=True))
        for workers in (1, 8)
    }
    nothing = import_ms("pass")
    report["import, ms over an empty program"] = {
        "lifemon": round(import_ms("import lifemon") - nothing, 1),
        "lifemon.process_cleanup": round(import_ms("import lifemon.process_cleanup") - nothing, 1),
        "asyncio alone": round(import_ms("import asyncio") - nothing, 1),
    }
    report["helper, KiB"] = helper_kib()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
