"""A server with lifemon's ProcessManager: `managed.py PACKAGE LIFEMON`. Its worker and the engine that
this has started, in a session of its own, hold memory of a GPU, with PyTorch. Speaks the protocol of the
actors; what its health status says of GPUs is in the line with `way`."""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time

LIFETIME_S = 120
BYTES = 1 << 30


def say(**fields):
    os.write(1, (json.dumps(fields) + "\n").encode())


def start_ticks(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rsplit(b")", 1)[1].split()[19])


def allocate():
    import torch

    signal.alarm(LIFETIME_S)
    tensor = torch.full((BYTES,), 1, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    return tensor


def engine(made):
    os.setsid()
    _tensor = allocate()
    made.put((os.getpid(), "engine"))
    time.sleep(LIFETIME_S)


def worker(connection, made):
    _tensor = allocate()
    multiprocessing.get_context("spawn").Process(target=engine, args=(made,)).start()
    made.put((os.getpid(), "worker"))
    connection.recv()


async def serve():
    from lifemon.process_cleanup import ProcessManager

    context = multiprocessing.get_context("spawn")
    made = context.Queue()
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs, made))
    process.start()
    for _ in range(2):
        pid, role = made.get(timeout=60)
        say(child=pid, role=role, start_ticks=start_ticks(pid))
    manager = ProcessManager([process], [ours], policy="any")
    async with manager.lifespan_context():
        known = manager.get_health_status()["lifemon"]
        say(way=known["way"], gpu=[one["pid"] for one in known["gpu"]])
        say(done=True)
        await asyncio.sleep(LIFETIME_S)


def main():
    signal.alarm(LIFETIME_S)
    package, binary = sys.argv[1:]
    sys.path.insert(0, package)
    os.environ["LIFEMON_BIN"] = binary
    pid = os.getpid()
    say(ready=True, pid=pid, start_ticks=start_ticks(pid))
    sys.stdin.readline()
    asyncio.run(serve())


if __name__ == "__main__":
    main()
