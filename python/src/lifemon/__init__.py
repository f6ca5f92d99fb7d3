"""Process lifecycle monitor: who belongs to what, what was left behind, and its exact end.

    import lifemon

    lifemon.kill_tree(4200, grace=10)
    with lifemon.Guard(worker.pid):
        ...
    async for event in lifemon.watch(4200):
        ...

`lifemon.process_cleanup` is the drop-in for the module of that name. Nothing is imported before it
is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifemon._binary import BinaryNotFoundError, find_binary
    from lifemon._commands import CompletedRun, explain, gpu, kill_tree, orphans, run, tree, watch
    from lifemon._errors import (
        AnswerError,
        CannotRunHereError,
        LifemonError,
        NoSuchProcessError,
        SurvivorsError,
        UsageError,
        WorkersDiedError,
    )
    from lifemon._guard import Guard
    from lifemon._model import (
        Event,
        Exit,
        Explanation,
        GpuReport,
        Id,
        Incomplete,
        KillReport,
        Member,
        Orphan,
        OrphanReport,
        Process,
        RunReport,
        TreeReport,
        Who,
    )

_PLACES = {
    "_binary": "BinaryNotFoundError find_binary",
    "_commands": "CompletedRun explain gpu kill_tree orphans run tree watch",
    "_errors": "AnswerError CannotRunHereError LifemonError NoSuchProcessError SurvivorsError "
    "UsageError WorkersDiedError",
    "_guard": "Guard",
    "_model": "Event Exit Explanation GpuReport Id Incomplete KillReport Member Orphan "
    "OrphanReport Process RunReport TreeReport Who",
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}

__all__ = [
    "AnswerError",
    "BinaryNotFoundError",
    "CannotRunHereError",
    "CompletedRun",
    "Event",
    "Exit",
    "Explanation",
    "GpuReport",
    "Guard",
    "Id",
    "Incomplete",
    "KillReport",
    "LifemonError",
    "Member",
    "NoSuchProcessError",
    "Orphan",
    "OrphanReport",
    "Process",
    "RunReport",
    "SurvivorsError",
    "TreeReport",
    "UsageError",
    "Who",
    "WorkersDiedError",
    "explain",
    "find_binary",
    "gpu",
    "kill_tree",
    "orphans",
    "run",
    "tree",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, at its first use."""
    place = _PLACE_OF.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{place}"), name)


def __dir__() -> list[str]:
    return __all__
