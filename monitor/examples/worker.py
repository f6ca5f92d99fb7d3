"""A worker for examples/server.rs: JSON messages in frames, with the standard library alone.

A frame is four bytes of length, big-endian, then that many bytes of JSON. The number of the
descriptor is in LIFEMON_WORKER_FD. Like an engine, it starts a process of its own under another
name, in a session of its own, which outlives it.
"""

import json
import os
import socket
import subprocess
import sys

MESSAGE_BYTES_MAX = 16 << 20
ENGINE = "VLLM::EngineCore"


def receive_exactly(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            return None
        data += piece
    return data


def receive(connection):
    header = receive_exactly(connection, 4)
    if header is None:
        return None
    length = int.from_bytes(header, "big")
    if length > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {length} bytes is too large")
    body = receive_exactly(connection, length)
    return None if body is None else json.loads(body)


def send(connection, message):
    body = json.dumps(message).encode()
    connection.sendall(len(body).to_bytes(4, "big") + body)


def answer(connection, message):
    """The server tells by the id whose answer it is."""
    text = message.get("prompt", "")[::-1]
    generated = {"type": "generated", "id": message.get("id"), "text": text}
    send(connection, {**generated, "worker": os.getpid()})


def start_engine():
    sleep = "import time; time.sleep(600)"
    return subprocess.Popen(
        [ENGINE, "-c", sleep],
        executable=sys.executable,
        start_new_session=True,
        close_fds=True,
    )


def main():
    connection = socket.socket(fileno=int(os.environ["LIFEMON_WORKER_FD"]))
    engine = start_engine()
    send(connection, {"type": "ready", "engine": engine.pid})
    while True:
        message = receive(connection)
        if message is None:
            break
        if message.get("type") == "shutdown":
            # One write: lines of several workers do not mix.
            os.write(1, (json.dumps({"worker": os.getpid(), "shutdown": True}) + "\n").encode())
            break
        if message.get("type") == "generate":
            answer(connection, message)
    engine.terminate()
    engine.wait()


if __name__ == "__main__":
    main()
