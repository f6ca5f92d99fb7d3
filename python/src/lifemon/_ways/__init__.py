"""The ways to know the trees of a server's workers, and to end them. The best one is chosen.

1. `agent`: the node agent guards the trees; exact, survives the server, needs no privileges.
2. `run`: below `lifemon run`, its guardian lends a helper; exact, needs no privileges.
3. `helper`: the binary beside the server; exact with eBPF, otherwise `helper-snapshots`.
4. `snapshots`: this process looks into /proc by itself, where there is no binary.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Protocol

from lifemon._proc import ProcessId

Json = dict[str, Any]

logger = logging.getLogger("lifemon")


@dataclass(frozen=True, slots=True)
class Death:
    """The death of a worker, as a way reports it."""

    process: ProcessId
    cause: str
    """In words: `SIGKILL from 77 bash`."""
    exit: Json | None
    since: str
    """When, RFC 3339."""


@dataclass(slots=True)
class Ended:
    """What came of ending trees."""

    killed: list[ProcessId] = field(default_factory=list[ProcessId])
    survivors: list[Json] = field(default_factory=list[Json])


class Way(Protocol):
    """One way. No method of it starts a thread, and none but `end` and `end_tree` blocks."""

    @property
    def name(self) -> str:
        """Returns the word for it."""
        ...

    @property
    def survives(self) -> bool:
        """Returns whether the trees are ended when this process is killed."""
        ...

    @property
    def incomplete(self) -> list[Json]:
        """Returns why something can be missed, as `{reason, advice}`; empty where nothing can."""
        ...

    def fileno(self) -> int | None:
        """Returns a descriptor that is readable when `read` has something."""
        ...

    def watch(self, workers: list[ProcessId]) -> None:
        """Takes workers, with all below them, into its care."""
        ...

    def read(self) -> list[Death]:
        """Reads what there is, and returns deaths of workers."""
        ...

    def look(self) -> None:
        """Brings its knowledge up to date, where nothing reports changes by itself."""
        ...

    def orphans(self) -> list[tuple[ProcessId, str]]:
        """Returns living processes of the trees whose creator is dead, with their names."""
        ...

    def end(self) -> Ended:
        """Kills all that is left of all trees."""
        ...

    def end_tree(self, process: ProcessId) -> Ended:
        """Kills one process of the trees with all below it."""
        ...

    def close(self) -> None:
        """Lets go of the trees, and kills nobody."""
        ...

    def abandon(self) -> None:
        """Closes what a fork has copied, and tells nobody."""
        ...


def choose(workers: list[ProcessId], *, subreaper: bool) -> Way:
    """Takes workers into the care of the best way that works here.

    `LIFEMON_WAY` may name one, for tests and where one is not wanted.
    """
    from lifemon._ways import helper, run, snapshots

    wanted = os.environ.get("LIFEMON_WAY")
    found: Way | None = None
    if wanted in (None, "agent"):
        found = _agent(workers)
    if found is None and wanted in (None, "run"):
        found = run.start(workers)
    if found is None and wanted in (None, "helper", "helper-snapshots"):
        found = helper.start(use_ebpf=wanted != "helper-snapshots")
        if found is not None:
            found.watch(workers)
    if found is None:
        found = snapshots.Snapshots(subreaper=subreaper)
        found.watch(workers)
    return found


def _agent(workers: list[ProcessId]) -> Way | None:
    """Asks the agent, which may refuse: it guards a few trees for each user."""
    from lifemon._ways import agent

    found = agent.connect()
    if found is None:
        return None
    try:
        found.watch(workers)
    except agent.AgentError as error:
        logger.warning("Not guarded by the agent of lifemon: %s", error)
        found.close()
        return None
    return found
