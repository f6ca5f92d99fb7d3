"""The way by the own helper: the bundled binary as a process beside the server. It watches the
trees with eBPF where it may, by snapshots otherwise, and ends them when this process is dead. One
that `lifemon run` lends (`run.py`) is the same with another parent.

Both sides speak in frames: four bytes of length, big-endian, then so many bytes of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import struct
import subprocess
import threading
import time
import weakref
from typing import Any

from lifemon._binary import BinaryNotFoundError, find_binary
from lifemon._proc import ProcessId
from lifemon._ways import Death, Ended, Json

logger = logging.getLogger("lifemon")

_BEGIN_TIMEOUT_S = 10.0
"""How long the helper may take to watch the first trees. It takes some tens of milliseconds."""

_KILL_TIMEOUT_S = 30.0
"""How long the helper may take to kill."""

_FRAME_BYTES_MAX = 16 << 20

_HEADER = struct.Struct(">I")

DEAD: Json = {
    "reason": "helper_dead",
    "advice": "the helper of lifemon has ended: who is dead is known, what they left is not. "
    "Restart the server",
}


class Helper:
    """The helper, and what it has told. `process` is None where it is no child of this process."""

    def __init__(self, process: subprocess.Popen[bytes] | None, channel: socket.socket) -> None:
        self._process = process
        self._channel: socket.socket | None = channel
        self._buffer = bytearray()
        self._state: Json = {}
        self._ended: Json | None = None
        self._deaths: list[Death] = []
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._is_lost = False
        self._was_there = process is not None
        # Whoever drops a manager has not ended its workers. At the exit of the interpreter nothing
        # is released: then the helper does its work.
        self._release = weakref.finalize(self, _release, process, channel, os.getpid())
        self._release.atexit = False

    @property
    def name(self) -> str:
        return "helper" if self._state.get("ebpf") else "helper-snapshots"

    @property
    def survives(self) -> bool:
        return self._channel is not None

    @property
    def incomplete(self) -> list[Json]:
        found: list[Json] = list(self._state.get("incomplete", []))
        return [*found, DEAD] if self._is_lost else found

    def fileno(self) -> int | None:
        return self._channel.fileno() if self._channel is not None else None

    def watch(self, workers: list[ProcessId]) -> None:
        self._state = {}
        self._send({"watch": [worker._asdict() for worker in workers]})
        self._await(lambda: bool(self._state), _BEGIN_TIMEOUT_S)

    def read(self) -> list[Death]:
        self._receive()
        deaths, self._deaths = self._deaths, []
        return deaths

    def look(self) -> None:
        pass

    def orphans(self) -> list[tuple[ProcessId, str]]:
        orphans: list[Json] = self._state.get("orphans", [])
        return [(_id(orphan), orphan.get("name", "")) for orphan in orphans]

    def end(self) -> Ended:
        return self._kill("end")

    def end_tree(self, process: ProcessId) -> Ended:
        return self._kill({"kill": process._asdict()})

    def _kill(self, request: Any) -> Ended:
        if os.getpid() != self._owner:
            return Ended()  # The copy that a fork has made.
        self._ended = None
        self._send(request)
        self._await(lambda: self._ended is not None, _KILL_TIMEOUT_S)
        ended: Json = self._ended or {}
        return Ended([_id(one) for one in ended.get("killed", [])], ended.get("survivors", []))

    def close(self) -> None:
        self._release()
        self._channel = None
        self._state = {**self._state, "orphans": []}

    def abandon(self) -> None:
        self._release.detach()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        # It is no child of this process: nothing is to wait for.
        if self._process is not None:
            self._process.returncode = 0

    def _send(self, message: Any) -> None:
        if self._channel is None or os.getpid() != self._owner:
            return
        body = json.dumps(message).encode()
        try:
            self._channel.sendall(_HEADER.pack(len(body)) + body)
        except OSError as error:
            self._lose(str(error))

    def _await(self, is_so: Any, limit_s: float) -> None:
        """Waits for an answer. Blocks."""
        deadline = time.monotonic() + limit_s
        while not is_so() and self._channel is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                logger.warning("The helper of lifemon has not answered in %.0f s", limit_s)
                return
            ready = select.poll()
            ready.register(self._channel, select.POLLIN)
            if ready.poll(left_s * 1_000):
                self._receive()

    def _receive(self) -> None:
        """Reads what is there, and takes note of it. Several threads may ask for the health."""
        with self._lock:
            self._receive_alone()

    def _receive_alone(self) -> None:
        while self._channel is not None:
            try:
                data = self._channel.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                self._lose(str(error))
                break
            if not data:
                self._lose("it has ended")
                break
            self._buffer += data
        self._take()

    def _take(self) -> None:
        """Takes note of each message that is whole."""
        at = 0
        while len(self._buffer) >= at + _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, at)
            if length > _FRAME_BYTES_MAX:
                self._lose("it speaks another language")
                return
            end = at + _HEADER.size + length
            if len(self._buffer) < end:
                break
            self._note(json.loads(bytes(self._buffer[at + _HEADER.size : end])))
            at = end
        del self._buffer[:at]

    def _note(self, message: Json) -> None:
        if "state" in message:
            self._state = message["state"]
            self._was_there = True
        elif "ended" in message:
            self._ended = message["ended"]
        elif "died" in message:
            died: Json = message["died"]
            how: Json | None = died.get("exit")
            self._deaths.append(Death(_id(died), died["cause"], how, died["since"]))

    def _lose(self, why: str) -> None:
        """Takes note that the helper is gone."""
        if self._channel is not None:
            if self._was_there:
                logger.warning("The helper of lifemon is lost: %s", why)
            else:
                logger.info("No helper of lifemon is lent: %s", why)
            self._is_lost = True
            self._release.detach()
            self._channel.close()
            self._channel = None
            if self._process is not None:
                self._process.poll()


def start(*, use_ebpf: bool) -> Helper | None:
    """Starts the helper; None where there is no binary for this machine."""
    ours, its = socket.socketpair()
    try:
        words = [str(find_binary()), "helper"]
        words += [] if use_ebpf else ["--without-ebpf"]
        # A session of its own: what is sent to the job at the terminal is not for it.
        process = subprocess.Popen(
            words, stdin=its.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
        )
    except (BinaryNotFoundError, OSError) as error:
        logger.info("Without the helper of lifemon: %s", error)
        ours.close()
        return None
    finally:
        its.close()
    return Helper(process, ours)


def _release(
    process: subprocess.Popen[bytes] | None, channel: socket.socket, owner: int
) -> None:
    if os.getpid() != owner:
        return
    body = b'"release"'
    try:
        channel.sendall(_HEADER.pack(len(body)) + body)
        channel.close()
        if process is not None:
            process.wait(_BEGIN_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.debug("The helper of lifemon was not released: %s", error)


def _id(process: Json) -> ProcessId:
    return ProcessId(process["pid"], process["start_ns"])
