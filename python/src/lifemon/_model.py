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
    """A process with its name; `name_bytes` has one that is no UTF-8 without loss, in base64."""

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
class Stranger(Memory):
    """Memory of a pid that no living process has, and the living that keep it."""

    kept_by: list[Id] = field(default_factory=list[Id])


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
class Ancestor(Who):
    """A creator, and how it ended if it has."""

    died: str | None = None
    exit: Exit | None = None


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
class Released(Id):
    """A killed process whose GPU memory is released."""

    after_ms: float = 0.0


@dataclass(frozen=True)
class Held(Id):
    """A killed process whose GPU memory is not released, and what it is doing."""

    state: str = ""


@dataclass(frozen=True)
class Release:
    """What became of the GPU memory of the killed; `hung`, `failed` where the driver did not say."""

    released: list[Released] = field(default_factory=list[Released])
    held: list[Held] = field(default_factory=list[Held])
    hung: bool = False
    failed: str | None = None


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
    gpu: Release | None = None


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
class Gpu:
    """A GPU as its driver describes it. `memory` of a holder names it by its `uuid`."""

    index: int
    is_partitioned: bool = False
    uuid: str | None = None
    name: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    processes: list[Memory] = field(default_factory=list[Memory])
    errors: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Nvml:
    """What NVIDIA's library has answered."""

    state: str
    after_ms: int | None = None
    detail: str | None = None


@dataclass(frozen=True)
class GpuTree:
    """What the tree of one root holds of GPUs."""

    root: Ancestor
    processes: int
    memory_bytes: int | None = None


@dataclass(frozen=True)
class GpuReport(_Known):
    """Who holds GPUs."""

    gpus: list[Gpu] = field(default_factory=list[Gpu])
    nvml: Nvml | None = None
    holders: list[GpuHolder] = field(default_factory=list[GpuHolder])
    strangers: list[Stranger] = field(default_factory=list[Stranger])
    trees: list[GpuTree] = field(default_factory=list[GpuTree])
    kill: KillReport | None = None
    killed_trees: list[Who] | None = None
    spared: list[Spared] = field(default_factory=list[Spared])


@dataclass(frozen=True)
class Port:
    """A port at which a process can be reached."""

    protocol: str
    port: int


@dataclass(frozen=True)
class Lock:
    """A lock on a file, as the kernel lists it."""

    lock: str
    access: str
    path: str | None = None


@dataclass(frozen=True)
class Holds(Subtree):
    """What is held by one process, or by it and everything below it."""

    ports: list[Port] = field(default_factory=list[Port])
    locks: list[Lock] = field(default_factory=list[Lock])


@dataclass(frozen=True)
class Explained(TreeProcess):
    """The process that was asked about."""

    wait_channel: str | None = None


@dataclass(frozen=True)
class Waiter(Who):
    """Who is told of its end: how, and whether it waits for that now."""

    how: str = ""
    waits_now: bool = False


@dataclass(frozen=True)
class Doom:
    """What `kill` would do; `refused` says why it would not."""

    would_die: int
    refused: str | None = None


@dataclass(frozen=True)
class Explanation(_Known):
    """All that is known of one process. `lineage` begins with its creator."""

    process: Explained = field(kw_only=True)
    zombie: Zombie | None = None
    orphan: Orphan | None = None
    root: Ancestor | None = None
    lineage: list[Ancestor] = field(default_factory=list[Ancestor])
    below: Who | None = None
    holds: Holds = field(kw_only=True)
    subtree: Holds = field(kw_only=True)
    waiters: list[Waiter] = field(default_factory=list[Waiter])
    kill: Doom = field(kw_only=True)


@dataclass(frozen=True)
class SignalSent:
    """A signal that was delivered."""

    signal: int
    signal_name: str | None = None
    sender: Sender | None = None
    sender_root: Who | None = None
    parent_death: bool = False


@dataclass(frozen=True)
class Summary:
    """What was seen of a tree, at the end of its events. `exits` counts them by cause."""

    seen: int
    alive: int
    exits: dict[str, int] = field(default_factory=dict[str, int])
    orphans: list[Who] = field(default_factory=list[Who])
    resynced: int = 0
    lost_events: int = 0


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
    summary: Summary | None = None


@dataclass(frozen=True)
class Command(Id):
    """A command that was run."""

    words: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class RunReport:
    """What a command left behind, and what became of it."""

    command: Command
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
