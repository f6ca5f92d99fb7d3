"""A server whose workers hold memory of a GPU, with PyTorch. Speaks the protocol of the actors: ready;
then for each line of its input what was made, and done. The server itself never touches the GPU.

hold BYTES    a worker that has allocated BYTES
busy BYTES    the same, in the middle of a kernel that takes 20 s
heir BYTES    the same, and after that a child of it, role heir, that does nothing
fail BYTES    a worker that has allocated BYTES, in a call that fails when it is told to end
spawn BYTES   a worker of multiprocessing's spawn that has allocated BYTES
share BYTES   a worker that has allocated BYTES, and one, role user, that has mapped them by CUDA IPC
open          a worker that has the device files open and has allocated nothing
many COUNT    that many workers that do nothing
end PID       tells a worker to exit
leave         the server exits with 0, its workers stay
"""

import json
import multiprocessing
import os
import pickle
import signal
import sys
import time

LIFETIME_S = 120
KERNEL_CYCLES = 30_000_000_000

# What a worker is told with, by its pid.
ends = {}


def say(**fields):
    os.write(1, (json.dumps(fields) + "\n").encode())


def start_ticks(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rsplit(b")", 1)[1].split()[19])


def report(pid, role):
    say(child=pid, role=role, start_ticks=start_ticks(pid))


def hold_on(told):
    """Returns when it is told to end. The end of the server is no reason: that is what leaks."""
    if os.read(told, 1) == b"":
        time.sleep(LIFETIME_S)


def allocate(count):
    import torch

    tensor = torch.full((count,), 1, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    return tensor


def hold(made, told, count):
    _tensor = allocate(count)
    made(b"worker")
    hold_on(told)


def busy(made, told, count):
    import torch

    _tensor = allocate(count)
    torch.cuda._sleep(KERNEL_CYCLES)
    made(b"worker")
    hold_on(told)


def heir(made, told, count):
    _tensor = allocate(count)
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIFETIME_S)
        time.sleep(LIFETIME_S)
    made(b"worker")
    made(b"heir %d" % pid)
    hold_on(told)


def fail(made, told, count):
    _tensor = allocate(count)
    made(b"worker")
    hold_on(told)
    raise SystemExit(3)


def give(made, told, count, pipe):
    tensor = allocate(count)
    os.write(pipe, pickle.dumps(tensor.untyped_storage()._share_cuda_()))
    os.close(pipe)
    made(b"worker")
    hold_on(told)


def take(made, told, _count, pipe):
    import torch

    torch.cuda.init()
    _storage = torch.UntypedStorage._new_shared_cuda(*pickle.load(os.fdopen(pipe, "rb")))
    torch.cuda.synchronize()
    made(b"user")
    hold_on(told)


def open_alone(made, told, _count):
    for name in ("/dev/nvidiactl", "/dev/nvidia0"):
        os.open(name, os.O_RDWR)
    made(b"worker")
    hold_on(told)


def nothing(made, told, _count):
    made(b"worker")
    hold_on(told)


def start(work, count, *more, lines=1):
    """Forks a worker, and reports it and what it has made, when that is ready."""
    reading, writing = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIFETIME_S)
        os.close(reading)
        os.close(tell)
        work(lambda line: os.write(writing, line + b"\n"), told, count, *more)
        sys.exit(0)
    os.close(writing)
    os.close(told)
    for pipe in more:
        os.close(pipe)
    ends[pid] = tell
    with os.fdopen(reading, "rb") as made:
        for _ in range(lines):
            words = made.readline().split()
            if not words:
                say(error="a worker has ended before it was ready")
                return
            report(int(words[1]) if len(words) > 1 else pid, words[0].decode())


def spawned(count, made, told):
    _tensor = allocate(count)
    made.put(os.getpid())
    told.wait()


def spawn(count):
    context = multiprocessing.get_context("spawn")
    made, told = context.Queue(), context.Event()
    worker = context.Process(target=spawned, args=(count, made, told))
    worker.start()
    report(made.get(timeout=60), "worker")


def share(count):
    reading, writing = os.pipe()
    start(give, count, writing)
    start(take, count, reading)


def obey(words):
    count = int(words[1]) if len(words) > 1 else 0
    match words[0]:
        case "hold":
            start(hold, count)
        case "busy":
            start(busy, count)
        case "heir":
            start(heir, count, lines=2)
        case "fail":
            start(fail, count)
        case "open":
            start(open_alone, 0)
        case "many":
            for _ in range(count):
                start(nothing, 0)
        case "spawn":
            spawn(count)
        case "share":
            share(count)
        case "end":
            os.write(ends[count], b"x")
        case "leave":
            os._exit(0)
        case other:
            say(error=f"no command {other}")


def main():
    signal.alarm(LIFETIME_S)
    # Imported once, and before any fork: a worker that is forked has it then.
    import torch  # noqa: F401

    pid = os.getpid()
    say(ready=True, pid=pid, start_ticks=start_ticks(pid))
    for line in sys.stdin:
        obey(line.split())
        say(done=True)


if __name__ == "__main__":
    main()
