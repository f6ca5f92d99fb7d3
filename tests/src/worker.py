"""The example worker, which misbehaves where the prompt or the first argument says so."""

import json
import os
import signal
import sys
import time

sys.dont_write_bytecode = True
import example_worker as example  # a copy of monitor/examples/worker.py, beside this


def say(**fields):
    """One write, so that lines of several workers do not mix."""
    os.write(1, (json.dumps(fields) + "\n").encode())


def raw(connection, data):
    connection.sendall(data)


def misbehave(connection, message, late):
    """Whether it did."""
    how = message["prompt"].split("/")[0]
    if how == "hang":
        example.answer(connection, message)
        say(taken=how)
        time.sleep(600)
    elif how == "too-large":
        raw(connection, (0xFFFFFFFF).to_bytes(4, "big") + b"x" * 1000)
    elif how == "not-json":
        raw(connection, (4).to_bytes(4, "big") + b"{no}")
    elif how == "truncated":
        raw(connection, (100).to_bytes(4, "big") + b"{")
        os._exit(3)
    elif how == "never":
        say(taken=how)
    elif how == "late":
        late.append(message)
    else:
        return False
    return True


def main():
    ignores = sys.argv[1:] == ["ignore"]
    if ignores:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = example.socket.socket(fileno=int(os.environ["LIFEMON_WORKER_FD"]))
    engine = example.start_engine()
    if sys.argv[1:] == ["mute"]:
        say(mute=os.getpid())
    else:
        example.send(connection, {"type": "ready", "engine": engine.pid})
    late = []
    while True:
        message = example.receive(connection)
        if message is None:
            if ignores:
                time.sleep(600)
            break
        if message["type"] == "shutdown":
            say(worker=os.getpid(), shutdown=True)
            if not ignores:
                break
        elif not misbehave(connection, message, late):
            while late:
                example.answer(connection, late.pop(0))
            example.answer(connection, message)


main()
