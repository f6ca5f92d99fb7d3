"""A server as people write them: `server.py spawn|forkserver|fork`. Speaks the protocol of the actors: ready,
a line, what was made, done. Workers start a grandchild that renames itself; with fork the server has a
thread that moves data besides, as data loaders do."""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

LIFETIME_S = 100
PR_SET_NAME = 15


def say(**fields):
    os.write(1, (json.dumps(fields) + "\n").encode())


def start_ticks(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rsplit(b")", 1)[1].split()[19])


def report(pid, role):
    say(child=pid, role=role, start_ticks=start_ticks(pid))


def hold():
    signal.alarm(LIFETIME_S)
    time.sleep(LIFETIME_S)


def grandchild(made):
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"VLLM::EngineCore", 0, 0, 0)
    made.put((os.getpid(), "grandchild"))
    hold()


def worker(made, method):
    context = multiprocessing.get_context("fork" if method == "fork" else "spawn")
    if method != "fork":
        context.Process(target=grandchild, args=(made,)).start()
    made.put((os.getpid(), "worker"))
    hold()


def main():
    method = sys.argv[1]
    signal.alarm(LIFETIME_S)
    pid = os.getpid()
    say(ready=True, pid=pid, start_ticks=start_ticks(pid))
    sys.stdin.readline()
    context = multiprocessing.get_context(method)
    made = context.Queue()
    count = 3
    for _ in range(count):
        context.Process(target=worker, args=(made, method)).start()
    expected = count if method == "fork" else 2 * count
    if method == "fork":
        threading.Thread(target=hold_in_thread, daemon=True).start()
    for _ in range(expected):
        report(*made.get(timeout=60))
    say(done=True)
    sys.stdin.readline()


def hold_in_thread():
    time.sleep(LIFETIME_S)


if __name__ == "__main__":
    main()
