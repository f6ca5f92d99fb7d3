"""What lifemon prints as JSON, as dataclasses. docs/events.md describes every field; None or empty
is what is absent there. Fields that a newer binary adds are ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

from lifemon._errors import AnswerError

SCHEMA = "lifemon/2"

_ABOUT = {"schema", "kind"}
"""Fields that say what an object is."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Id:
    """The identity of a process: its pid on the host, and when it was started."""

    pid: int
    start_ns: int = 0

    def __str__(self) -> str:
        """Returns it as lifemon takes it on its command line."""
        return f"{self.pid}@{self.start_ns}" if self.start_ns else str(self.pid)


@dataclass(frozen=True)
class Who(Id):
    """A process with its name; `name_bytes` is that in base64, without loss, where it is no UTF-8."""

    name: str | None = None
    name_bytes: str | None = None
    alive: bool | None = None


@dataclass(frozen=True)
class Sender(Who):
    """Who sent a signal; `kernel` where nobody did."""

    pid: int = 0
    kernel: bool = False


@dataclass(frozen=True)
class Exit:
    """How a process ended."""

    cause: str
    code: int | None = None
    signal: int | None = None
    signal_name: str | None = None
    core_dumped: bool = False
    sender: Sender | None = None
    parent_death: bool = False


@dataclass(frozen=True)
class Incomplete:
    """Why an answer can lack something."""

    reason: str
    count: int | None = None
    advice: str | None = None


@dataclass(frozen=True)
class Process(Who):
    """A process with its user."""

    uid: int | None = None
    ns_pid: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What a verdict, or a suspicion, rests on."""

    kind: str
    text: str = ""


@dataclass(frozen=True)
class Placed(Process):
    """A process with its command line, its control group, its unit and its container.

    `truncated` where only the first part of the command line is here; `bytes` is that part in
    base64, without loss, where it is no UTF-8.
    """

    command: list[str] = field(default_factory=list[str])
    truncated: bool = False
    bytes: str | None = None
    cgroup: str | None = None
    unit: str | None = None
    container: str | None = None


@dataclass(frozen=True)
class Member(Process):
    """A member of a tree, dead or alive."""

    creator: Who | None = None
    inferred: bool = False
    elided: int = 0
    died: str | None = None
    exit: Exit | None = None
    deliberate: list[Evidence] = field(default_factory=list[Evidence])
    mps_client: bool = False


@dataclass(frozen=True)
class Memory:
    """GPU memory that a driver accounts to a process."""

    kind: str
    gpu: str | None = None
    bytes: int | None = None
    gpu_instance: int | None = None
    pid: int | None = None


@dataclass(frozen=True)
class Holding:
    """What is held of GPUs."""

    devices: list[str] = field(default_factory=list[str])
    memory: list[Memory] = field(default_factory=list[Memory])
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Subtree:
    """A process and everything below it."""

    processes: int
    resident_bytes: int = 0
    cpu_ms: int = 0
    gpu: Holding | None = None


@dataclass(frozen=True)
class TreeProcess(Member, Placed):
    """A process of `tree`."""

    age_ms: int = 0
    state: str | None = None
    parent: Who | None = None
    reparented: bool = False


@dataclass(frozen=True)
class Orphan(Placed):
    """A living process whose creator is dead."""

    verdict: str = "inferred"
    stranded: bool | None = None
    creator: Who | None = None
    creator_exit: Exit | None = None
    orphaned: str | None = None
    orphaned_ms: int | None = None
    age_ms: int = 0
    root: Who | None = None
    parent: Who | None = None
    state: str | None = None
    gpu: Holding | None = None
    subtree: Subtree | None = None
    evidence: list[Evidence] = field(default_factory=list[Evidence])


@dataclass(frozen=True)
class _Known:
    """Part of every answer from the lineage."""

    since: str | None = None
    tracker: str | None = None
    complete: bool = False
    incomplete: list[Incomplete] = field(default_factory=list[Incomplete])


@dataclass(frozen=True)
class Killed(Process):
    """A process that was killed."""

    exit: Exit | None = None


@dataclass(frozen=True)
class Survivor(Process):
    """A process that is left, and why."""

    reason: str = ""


@dataclass(frozen=True)
class Suspect(Process):
    """A process that may have left a tree unseen."""

    evidence: list[Evidence] = field(default_factory=list[Evidence])
    command: list[str] = field(default_factory=list[str])
    parent: Who | None = None
    killed: bool = False


@dataclass(frozen=True)
class Zombie(Process):
    """A dead process whose parent does not reap it."""

    exit: Exit | None = None
    died: str | None = None
    dead_ms: int | None = None
    parent: Who | None = None
    parent_state: str | None = None


@dataclass(frozen=True)
class Spared(Who):
    """An orphan that was not killed, and why."""

    verdict: str = "inferred"
    reason: str = ""


@dataclass(frozen=True)
class KillReport:
    """What came of a kill."""

    tree: Id | None = None
    dry_run: bool = False
    members: list[Member] = field(default_factory=list[Member])
    killed: list[Killed] = field(default_factory=list[Killed])
    already_dying: list[Who] = field(default_factory=list[Who])
    survivors: list[Survivor] = field(default_factory=list[Survivor])
    suspects: list[Suspect] = field(default_factory=list[Suspect])
    spared: list[Who] = field(default_factory=list[Who])
    others: int = 0
    rejected: int = 0
    not_shown: int = 0
    inferred: bool = False
    extinct: bool = False
    complete: bool = False
    incomplete: list[Incomplete] = field(default_factory=list[Incomplete])
    elapsed_ms: float | None = None
    gone_ms: float | None = None
    gpu: dict[str, Any] | None = None


@dataclass(frozen=True)
class TreeReport(_Known):
    """The lineage now."""

    tree: Id | None = None
    processes: list[TreeProcess] = field(default_factory=list[TreeProcess])
    zombies: list[Zombie] = field(default_factory=list[Zombie])


@dataclass(frozen=True)
class OrphanReport(_Known):
    """What was left behind."""

    orphans: list[Orphan] = field(default_factory=list[Orphan])
    not_shown: dict[str, int] = field(default_factory=dict[str, int])
    zombies: list[Zombie] = field(default_factory=list[Zombie])
    kill: KillReport | None = None
    killed_trees: list[Who] | None = None
    spared: list[Spared] = field(default_factory=list[Spared])


@dataclass(frozen=True)
class GpuHolder(Holding, Placed):
    """A process that holds a GPU, and where it comes from."""

    lineage: list[Who] = field(default_factory=list[Who])
    root: Who | None = None
    orphan: Orphan | None = None


@dataclass(frozen=True)
class GpuReport(_Known):
    """Who holds GPUs. `gpus`, `nvml` and `trees` are as they are printed."""

    gpus: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    nvml: dict[str, Any] = field(default_factory=dict[str, Any])
    holders: list[GpuHolder] = field(default_factory=list[GpuHolder])
    strangers: list[Memory] = field(default_factory=list[Memory])
    trees: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    kill: KillReport | None = None
    killed_trees: list[Who] | None = None
    spared: list[Spared] = field(default_factory=list[Spared])


@dataclass(frozen=True)
class SignalSent:
    """A signal that was delivered."""

    signal: int
    signal_name: str | None = None
    sender: Sender | None = None
    sender_root: Who | None = None
    parent_death: bool = False


@dataclass(frozen=True)
class Event:
    """One event of a tree; `event` says which: `attached`, `fork`, `exec`, `signal`, `exit`, ..."""

    event: str
    seq: int
    time: str | None = None
    tree: Id | None = None
    process: Process | None = None
    creator: Who | None = None
    exit: Exit | None = None
    signal: SignalSent | None = None
    orphans: list[Who] = field(default_factory=list[Who])
    stranded: bool | None = None
    parent: Who | None = None
    age_ms: int | None = None
    after_us: int | None = None
    state: str | None = None
    resynced: bool = False
    root: Member | None = None
    members: list[Member] = field(default_factory=list[Member])
    ghosts: list[Member] = field(default_factory=list[Member])
    since: str | None = None
    tracker: str | None = None
    reason: str | None = None
    count: int | None = None
    recovered: bool | None = None
    complete: bool | None = None
    incomplete: list[Incomplete] = field(default_factory=list[Incomplete])
    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunReport:
    """What a command left behind, and what became of it."""

    command: dict[str, Any]
    code: int
    exit: Exit | None = None
    way: str | None = None
    why_not_ebpf: str | None = None
    killed: list[Killed] = field(default_factory=list[Killed])
    survivors: list[Survivor] = field(default_factory=list[Survivor])
    kept: bool = False
    complete: bool = False
    incomplete: list[Incomplete] = field(default_factory=list[Incomplete])
    elapsed_ms: float | None = None


def decode(kind: type[_T], value: Any, unknown: list[str] | None = None) -> _T:
    """Makes a dataclass of a JSON object. Fields that it does not have are added to `unknown`."""
    if not isinstance(value, dict):
        raise AnswerError(f"{kind.__name__} is not an object", "update the package lifemon")
    given = typing.cast("dict[str, Any]", value)
    hints = _hints(kind)
    try:
        fields = {
            name: _decode(hints[name], one, unknown) for name, one in given.items() if name in hints
        }
        if unknown is not None:
            strange = set(given) - set(hints) - _ABOUT
            unknown.extend(f"{kind.__name__}.{name}" for name in sorted(strange))
        return kind(**fields)
    except TypeError as error:
        raise AnswerError(
            f"{kind.__name__} is not understood ({error})", "update the package lifemon"
        ) from error


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {one.name: hints[one.name] for one in dataclasses.fields(kind)}


def _decode(hint: Any, value: Any, unknown: list[str] | None) -> Any:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
        origin = typing.get_origin(hint)
    if origin is list:
        (inner,) = typing.get_args(hint)
        return [_decode(inner, one, unknown) for one in value or ()]
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, unknown)
    return value
