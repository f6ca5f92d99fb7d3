"""The way by the node agent, which guards the trees with the rights of this user, in containers
too. The death of this process ends them, whatever becomes of the agent meanwhile.

It speaks HTTP over a Unix socket; `LIFEMON_AGENT` names another one.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import threading
from typing import Any

from lifemon._errors import LifemonError
from lifemon._proc import ProcessId
from lifemon._ways import Death, Ended, Json

logger = logging.getLogger("lifemon")

_SOCKET = "/run/lifemon/lifemon.sock"

_TIMEOUT_S = 40.0
"""How long an answer may take: that to a kill comes when it is done."""


_REASON = "asked for by the Python package"


class AgentError(LifemonError):
    """The agent has refused something, or does not answer. `code` is its word for it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, "see docs/agent.md")
        self.code = code


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("lifemon", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Agent:
    """The guards of this process, and what the agent says of their trees."""

    def __init__(self, path: str) -> None:
        self._connection = _Connection(path)
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._guards: list[str] = []
        self._roots: list[str] = []
        self._hosts: dict[ProcessId, str] = {}
        self._incomplete: list[Json] = []
        self._refused: list[Json] = []

    @property
    def name(self) -> str:
        return "agent"

    @property
    def survives(self) -> bool:
        return True

    @property
    def incomplete(self) -> list[Json]:
        return [*self._refused, *self._incomplete]

    def fileno(self) -> int | None:
        return None

    def watch(self, workers: list[ProcessId]) -> None:
        try:
            self._guard(workers)
        except AgentError as error:
            if not self._guards:
                raise
            self._refused.append({"reason": "not_guarded", "advice": str(error)})

    def _guard(self, workers: list[ProcessId]) -> None:
        trees = [self.ask("GET", f"/v1/tree/ns:{worker.pid}") for worker in workers]
        roots = [_name(tree["tree"]) for tree in trees]
        guard = self.ask("POST", "/v1/guards", {"trees": roots, "on_disconnect": False})
        self._guards.append(guard["id"])
        self._roots += roots
        self._note_incomplete(trees)

    def read(self) -> list[Death]:
        return []

    def look(self) -> None:
        pass

    def orphans(self) -> list[tuple[ProcessId, str]]:
        found: list[tuple[ProcessId, str]] = []
        trees: list[Json] = []
        for root in self._roots:
            try:
                tree = self.ask("GET", f"/v1/tree/{root}")
            except AgentError as error:
                if error.code != "no_such_process":
                    trees.append(_unanswered(error))
                continue
            trees.append(tree)
            alive = {_name(one) for one in tree["processes"] if one.get("alive")}
            for one in tree["processes"]:
                creator = one.get("creator")
                if not one.get("alive") or creator is None or _name(one) == root:
                    continue
                if _name(creator) not in alive:
                    process = ProcessId(one.get("ns_pid", one["pid"]), one["start_ns"])
                    self._hosts[process] = _name(one)
                    found.append((process, one.get("name", "")))
        self._note_incomplete(trees)
        return found

    def end(self) -> Ended:
        ended = Ended()
        for root in self._roots:
            self._kill(root, ended)
        return ended

    def end_tree(self, process: ProcessId) -> Ended:
        ended = Ended()
        name = self._hosts.get(process)
        if name is not None:
            self._kill(name, ended)
        return ended

    def _kill(self, name: str, ended: Ended) -> None:
        if os.getpid() != self._owner:
            return  # The copy that a fork has made.
        # Workers end whatever they are, as in every other way.
        body = {"process": name, "reason": _REASON, "force": True}
        try:
            report = self.ask("POST", "/v1/kills", body)
        except AgentError as error:
            if error.code != "no_such_process":
                pid = int(name.partition("@")[0])
                ended.survivors.append({"pid": pid, "reason": str(error)})
            return
        for one in report.get("killed", []):
            ended.killed.append(ProcessId(one.get("ns_pid", one["pid"]), one["start_ns"]))
        ended.survivors += report.get("survivors", [])

    def close(self) -> None:
        for guard in self._guards:
            try:
                self.ask("DELETE", f"/v1/guards/{guard}")
            except AgentError as error:
                logger.debug("The agent has not let go of a guard: %s", error)
        self._guards.clear()
        self._connection.close()

    def abandon(self) -> None:
        self._connection.close()
        self._guards.clear()
        self._roots.clear()

    def _note_incomplete(self, trees: list[Json]) -> None:
        reasons: list[Json] = []
        for tree in trees:
            reasons += [one for one in tree.get("incomplete", []) if one not in reasons]
        self._incomplete = reasons

    def ask(self, method: str, path: str, body: Any = None) -> Json:
        """Sends a request and returns the answer. A connection that was closed is made again."""
        with self._lock:
            return self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: Any) -> Json:
        text = json.dumps(body) if body is not None else None
        headers = {"Content-Type": "application/json"} if text else {}
        if path == "/v1/kills":
            # Asked again, it is the same kill.
            headers["Idempotency-Key"] = os.urandom(16).hex()
        for is_last in (False, True):
            try:
                self._connection.request(method, path, text, headers)
                answer = self._connection.getresponse()
                content = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if is_last:
                    what = f"the agent does not answer: {error}"
                    raise AgentError(what, "unavailable") from error
        else:
            raise AssertionError
        found: Json = json.loads(content) if content else {}
        if answer.status >= 400:
            detail = found.get("detail") or found.get("title") or answer.reason
            raise AgentError(f"the agent: {detail}", found.get("code", "internal"))
        return found


def connect() -> Agent | None:
    """Returns the way by the agent; None where no agent answers."""
    path = os.environ.get("LIFEMON_AGENT", _SOCKET)
    if not os.path.exists(path):
        return None
    agent = Agent(path)
    try:
        agent.ask("GET", "/v1/info")
    except AgentError as error:
        logger.info("Without the agent of lifemon: %s", error)
        return None
    return agent


def _name(process: Json) -> str:
    return f"{process['pid']}@{process['start_ns']}"


def _unanswered(error: AgentError) -> Json:
    return {"incomplete": [{"reason": "no_tracker", "advice": str(error)}]}
