"""The way by `lifemon run`: the guardian of the command lends this process a helper. What the trees
leave stays below the guardian, so it is exact without privileges, and ends in any case.

The guardian is found among the ancestors of this process, by the name of its socket: no variable
and no descriptor tells of it. The kernel's word on who answers is checked.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator

from lifemon import _proc
from lifemon._proc import ProcessId
from lifemon._ways.helper import Helper

logger = logging.getLogger("lifemon")

_CONNECT_TIMEOUT_S = 1.0
"""How long the guardian may take to accept. It serves others meanwhile."""

_CREDENTIALS = struct.Struct("3i")


class Lent(Helper):
    """The helper that a guardian has lent."""

    @property
    def name(self) -> str:
        return "run"


def start(workers: list[ProcessId]) -> Lent | None:
    """Takes workers into the care of the nearest `lifemon run` that serves this process; None where
    there is none, or it is not for these workers.
    """
    for guardian in _ancestors():
        channel = _connect(guardian)
        if channel is None:
            continue
        found = Lent(None, channel)
        found.watch(workers)
        if found.survives:
            return found
    return None


def _ancestors() -> Iterator[int]:
    """Yields the pids of the parent of this process, of its parent, and so on."""
    seen = {0}
    pid = os.getppid()
    while pid not in seen:
        yield pid
        seen.add(pid)
        above = _proc.stat(pid)
        pid = above.parent if above else 0


def _connect(guardian: int) -> socket.socket | None:
    """Connects to the guardian that has this pid; None where it is none, or lends nothing."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
        channel = socket.socket(socket.AF_UNIX)
    except OSError:
        return None
    try:
        channel.settimeout(_CONNECT_TIMEOUT_S)
        channel.connect(f"\0lifemon-run/{namespace}/{guardian}")
        channel.settimeout(None)
        told = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(told)[0] == guardian:
            return channel
        logger.warning("Somebody else has the socket of `lifemon run`: it is not used")
    except OSError as error:
        logger.debug("Process %d lends no helper: %s", guardian, error)
    channel.close()
    return None
