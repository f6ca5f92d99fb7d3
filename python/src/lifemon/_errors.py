"""The exceptions of this package. Each says what to do in `remedy`, and at the end of its text."""

from __future__ import annotations

from typing import Any


class LifemonError(Exception):
    """Something that lifemon could not do."""

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.remedy = remedy
        """What to do about it."""


class CannotRunHereError(LifemonError):
    """This host, or this user, lacks what is needed: a privilege, a kernel, BTF, the binary."""


class NoSuchProcessError(LifemonError, ProcessLookupError):
    """No such process, or no longer that one."""


class UsageError(LifemonError, ValueError):
    """The binary does not understand what it was asked."""


class AnswerError(LifemonError):
    """The binary failed, or its answer is not understood."""


class SurvivorsError(LifemonError):
    """Some of a tree is left. `report` says who, and why."""

    def __init__(self, message: str, remedy: str | None, report: Any) -> None:
        super().__init__(message, remedy)
        self.report = report


class WorkersDiedError(RuntimeError):
    """Workers of a manager have died. The text is that of the module that this replaces."""

    def __init__(self, dead: list[int], causes: list[dict[str, Any]]) -> None:
        super().__init__(f"vLLM worker(s) {dead} died. Restart the server to recover.")
        self.dead = dead
        """Indices of the dead workers."""
        self.causes = causes
        """What is known of each death, as under `causes` of the health status."""
        self.remedy = "restart the server"
