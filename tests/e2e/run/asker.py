"""A server below `lifemon run` that asks for the helper that is lent: what the tests begin with."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time


def connect(guardian):
    """Connects to the guardian with this pid."""
    channel = socket.socket(socket.AF_UNIX)
    namespace = os.stat("/proc/self/ns/pid").st_ino
    channel.connect(f"\0lifemon-run/{namespace}/{guardian}")
    channel.settimeout(30)
    return channel


def ask(channel, message):
    """Sends a message; returns whether the other side is there."""
    body = json.dumps(message).encode()
    try:
        channel.sendall(struct.pack(">I", len(body)) + body)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def take(channel, length):
    """Reads exactly so much; less where the other side has closed."""
    data = b""
    while len(data) < length:
        try:
            more = channel.recv(length - len(data))
        except ConnectionResetError:
            more = b""
        if not more:
            break
        data += more
    return data


def hear(channel, wanted):
    """Reads until a message of this kind comes; returns its content, None at the end."""
    while True:
        header = take(channel, 4)
        if len(header) < 4:
            return None
        message = json.loads(take(channel, struct.unpack(">I", header)[0]))
        if wanted in message:
            return message[wanted]


def start_ticks(pid):
    """Returns the start of a process, in clock ticks."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def name(pid):
    """Returns the identity of a process."""
    return {"pid": pid, "start_ns": start_ticks(pid) * 10**9 // os.sysconf("SC_CLK_TCK")}


def shell(script):
    """Starts a worker, which waits for a line before it runs this."""
    words = ["sh", "-c", f"read line; {script}"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def go(worker):
    """Lets a worker run its script until it has written a line, and returns that."""
    worker.stdin.write(b"\n")
    worker.stdin.flush()
    return worker.stdout.readline().decode().strip()


def lives(pid):
    """Returns whether a process is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(is_so):
    """Waits for a condition."""
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end, "not within 30 s"
        time.sleep(0.005)


def watch(workers):
    """Takes workers into the care of a helper; returns the connection and the first state."""
    channel = connect(os.getppid())
    ask(channel, {"watch": [name(worker.pid) for worker in workers]})
    return channel, hear(channel, "state")
