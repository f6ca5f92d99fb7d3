"""The plugin for pytest: with `--lifemon-leaks` a test that leaves a process behind is an error.

The process of pytest adopts what its descendants leave (a subreaper), so that nothing leaves its
tree by losing its parent. What a test has left is named with its lineage, and killed. What was
started by a fixture may live as long as that: it is looked for when the last test has ended.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from lifemon import _proc
from lifemon._proc import ProcessId

_PR_SET_CHILD_SUBREAPER = 36

_GRACE_S = 0.5
"""How long a process may take to end after its test."""


@dataclass
class _Leaks:
    """The processes below this one that are known, and by which test they were started."""

    known: set[ProcessId] = field(default_factory=set[ProcessId])
    of_fixtures: dict[ProcessId, str] = field(default_factory=dict[ProcessId, str])
    lines: dict[ProcessId, str] = field(default_factory=dict[ProcessId, str])

    def below(self) -> dict[ProcessId, ProcessId]:
        """Returns the living processes below this one, each with its parent."""
        own = _proc.identify(os.getpid())
        if own is None:
            return {}
        found = {child: parent for child, parent in _proc.below([own]) if _proc.is_live(child)}
        for process in found:
            self.lines[process] = _proc.command_line(process.pid)
        return found

    def fresh(self) -> dict[ProcessId, ProcessId]:
        """Returns those of them that were not known."""
        below = self.below()
        return {process: below[process] for process in below if process not in self.known}

    def wait(self, processes: Iterable[ProcessId]) -> list[ProcessId]:
        """Returns who is still alive after a short time."""
        deadline = time.monotonic() + _GRACE_S
        while True:
            left = [process for process in processes if _proc.is_live(process)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.005)

    def lineage(self, process: ProcessId, parents: dict[ProcessId, ProcessId]) -> str:
        """Returns how a process belongs to pytest, as far as its creators live."""
        words = [f"{process.pid} {self.lines.get(process, '?')}"]
        above = parents.get(process)
        while above is not None and above.pid != os.getpid():
            words.append(f"{above.pid} {self.lines.get(above, '?')}")
            above = parents.get(above)
        return "\n    created below ".join([*words, "pytest, as a child or left by one"])

    def end(self, processes: Iterable[ProcessId]) -> None:
        """Kills them, and reaps those that this process has adopted."""
        killed, _ = _proc.kill_trees(processes)
        self.wait(killed)
        for process in killed:
            try:
                os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                pass  # Somebody else's child, or reaped by whoever has started it.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.getgroup("lifemon").addoption(
        "--lifemon-leaks",
        action="store_true",
        help="make it an error when a test leaves a process behind, and kill that",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begins to look, where it was asked for."""
    if config.getoption("--lifemon-leaks"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        config.pluginmanager.register(_Plugin(), "lifemon-leaks")


class _Plugin:
    """The hooks around each test."""

    def __init__(self) -> None:
        self._leaks = _Leaks()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Takes note of who is there before the fixtures."""
        self._leaks.known = set(self._leaks.below())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Takes note of who was started by fixtures."""
        fresh = self._leaks.fresh()
        self._leaks.of_fixtures.update(dict.fromkeys(fresh, item.nodeid))
        self._leaks.known.update(fresh)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Looks for what is left, once the fixtures have cleaned up."""
        leaks = self._leaks
        parents = leaks.fresh()
        if nextitem is None:
            below = leaks.below()
            parents.update({one: below[one] for one in leaks.of_fixtures if one in below})
        left = leaks.wait(parents)
        if not left:
            return
        lines = "\n  ".join(leaks.lineage(process, parents) for process in left)
        leaks.end(left)
        count = "a process" if len(left) == 1 else f"{len(left)} processes"
        pytest.fail(f"{item.nodeid} has left {count} behind:\n  {lines}", pytrace=False)
