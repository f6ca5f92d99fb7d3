"""The functions of the package that ask the binary, and the exceptions that its exit codes mean."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from lifemon import _model
from lifemon._binary import BinaryNotFoundError, find_binary
from lifemon._errors import (
    AnswerError,
    CannotRunHereError,
    LifemonError,
    NoSuchProcessError,
    SurvivorsError,
    UsageError,
)

Target = int | str | _model.Id
"""A process: its pid, `"PID@START_NS"`, or anything of this package with an identity."""

_LINE_BYTES_MAX = 64 << 20
"""Bytes of one line of a stream: the first one has every member of the tree."""


_NOT_RUN = {126: errno.EACCES, 127: errno.ENOENT}
"""Exit codes of `lifemon run` for a command that was not run."""

_FAILED = 125
"""Its exit code where lifemon itself has failed."""


def tree(pid: Target | None = None) -> _model.TreeReport:
    """Returns the lineage of a process now, ghosts included; without a process, of the host.

    Raises CannotRunHereError without privileges, NoSuchProcessError.
    """
    return _model.decode(_model.TreeReport, _ask(["tree", *_target(pid)]))


def orphans(
    *,
    tree: Target | None = None,
    match: str | Iterable[str] = (),
    user: str | int | None = None,
    gpu: bool = False,
    verdicts: Iterable[str] = (),
    all: bool = False,
) -> _model.OrphanReport:
    """Returns what was left behind: living processes whose creator is dead.

    `match` are regular expressions for command lines and names. What is deliberate or older than
    tracking is left out, but for `all`, or where `verdicts` names it. Raises as `tree` does.
    """
    words = ["orphans"]
    if tree is not None:
        words += ["--tree", *_target(tree)]
    for pattern in [match] if isinstance(match, str) else match:
        words += ["--match", pattern]
    if user is not None:
        words += ["--user", str(user)]
    words += ["--gpu"] if gpu else []
    words += ["--all"] if all else []
    verdicts = ",".join(verdicts)
    words += ["--verdict", verdicts] if verdicts else []
    return _model.decode(_model.OrphanReport, _ask(words))


def gpu() -> _model.GpuReport:
    """Returns who holds GPUs, where that comes from, and whether it was left behind."""
    return _model.decode(_model.GpuReport, _ask(["gpu"]))


def explain(pid: Target) -> _model.Explanation:
    """Returns all that is known of one process.

    Raises CannotRunHereError where the binary is too old to know this.
    """
    words = ["explain", *_target(pid)]
    try:
        return _model.decode(_model.Explanation, _ask(words))
    except UsageError as error:
        raise CannotRunHereError(
            "this lifemon does not know `explain`", "install a newer one: pip install -U lifemon"
        ) from error


def kill_tree(
    pid: Target,
    *,
    grace: float | None = None,
    signal: str = "TERM",
    timeout: float = 30.0,
    dry_run: bool = False,
    check: bool = True,
) -> _model.KillReport:
    """Kills every process of a tree, nobody else, and proves it.

    With `grace` the members first get `signal`, and so many seconds to end by themselves. Killing
    goes on for at most `timeout` seconds. Raises SurvivorsError where something is left, unless
    `check` is false; otherwise as `tree` does.
    """
    words = ["kill", *_target(pid), "--timeout", _duration(timeout)]
    if grace is not None:
        words += ["--signal", signal, "--grace", _duration(grace)]
    words += ["--dry-run"] if dry_run else []
    report = _model.decode(_model.KillReport, _ask(words))
    if check and not dry_run and (report.survivors or not report.extinct):
        left = ", ".join(f"{one.pid} ({one.reason})" for one in report.survivors) or "something"
        raise SurvivorsError(f"of {pid} is left: {left}", "look at `report.survivors`", report)
    return report


async def watch(pid: Target) -> AsyncGenerator[_model.Event, None]:
    """Yields the tree of a process as it is (`attached`), and then every event of it.

    Ends when nothing of the tree is left. Leaving the loop ends the watch. Raises as `tree` does.
    """
    import asyncio

    # Not by asyncio's subprocesses: before Python 3.12 those start a thread.
    watcher = subprocess.Popen(
        [_binary(), "attach", *_target(pid), "-o", "json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watcher.stdout is not None and watcher.stderr is not None
    reader = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), watcher.stdout
    )
    try:
        has_begun = False
        async for line in reader:
            has_begun = True
            yield _model.decode(_model.Event, _parse(line))
        if not has_begun:
            # It has closed its output, so it ends.
            said = watcher.stderr.read().decode("utf-8", "replace")
            raise _error(watcher.wait(), said)
    finally:
        transport.close()
        watcher.terminate()
        watcher.wait()
        watcher.stderr.close()


class CompletedRun(subprocess.CompletedProcess[Any]):
    """A command that has ended, and in `left` what it had left behind."""

    def __init__(
        self,
        args: list[str],
        returncode: int,
        stdout: Any = None,
        stderr: Any = None,
        left: _model.RunReport | None = None,
    ) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.left = left
        """What it had left, and what became of that; None where lifemon was killed."""


def run(
    args: Sequence[str],
    *,
    grace: float = 10.0,
    check: bool = False,
    timeout: float | None = None,
    **options: Any,
) -> CompletedRun:
    """Runs a command as subprocess.run does, and kills what it leaves behind.

    `options` are those of subprocess.run. What is left has `grace` seconds to end by itself after
    SIGTERM. After `timeout` seconds the command and all of its tree are ended, and
    subprocess.TimeoutExpired is raised. Needs no privileges.
    """
    if isinstance(args, str) or options.get("shell"):
        raise TypeError("args is a list of words: for a shell, ['sh', '-c', text]")
    with tempfile.TemporaryDirectory(prefix="lifemon-run-") as directory:
        file = Path(directory) / "report.json"
        words = [_binary(), "run", "--json", str(file), "--grace", _duration(grace), "--", *args]
        returncode, stdout, stderr = _communicate(words, timeout, options)
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            text = b""
        left = _model.decode(_model.RunReport, _parse(text)) if text else None
    if left is None and returncode in _NOT_RUN:
        number = _NOT_RUN[returncode]
        raise OSError(number, os.strerror(number), args[0])
    if left is None and returncode == _FAILED:
        raise AnswerError("lifemon could not run the command: it says why on standard error")
    completed = CompletedRun(list(args), returncode, stdout, stderr, left)
    if check:
        completed.check_returncode()
    return completed


def _communicate(
    words: list[str], timeout: float | None, options: dict[str, Any]
) -> tuple[int, Any, Any]:
    """Runs it to its end; where that does not come in time, its guardian ends the whole tree."""
    given = options.pop("input", None)
    if options.pop("capture_output", False):
        options.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with subprocess.Popen(words, **options) as process:
        try:
            stdout, stderr = process.communicate(given, timeout=timeout)
        except BaseException:
            # Its guardian ends the whole tree when it is killed.
            process.kill()
            process.wait()
            raise
        return process.returncode, stdout, stderr


def _ask(words: Sequence[str]) -> dict[str, Any]:
    """Runs a command of the binary; returns the object that it prints."""
    try:
        done = subprocess.run(
            [_binary(), *words, "-o", "json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise CannotRunHereError(f"lifemon cannot be run: {error}") from error
    if done.returncode in (0, 1) and done.stdout:
        return _parse(done.stdout)
    raise _error(done.returncode, done.stderr.decode("utf-8", "replace"))


def _parse(text: bytes) -> dict[str, Any]:
    try:
        answer: Any = json.loads(text)
    except ValueError as error:
        raise AnswerError(f"lifemon printed what is no JSON: {error}") from error
    if isinstance(answer, dict):
        found = cast("dict[str, Any]", answer)
        if found.get("schema") == _model.SCHEMA:
            return found
    raise AnswerError(
        f"the answer of lifemon is not {_model.SCHEMA}",
        "install the package and the binary in the same version",
    )


_CODES: dict[int, Callable[[str, str | None], LifemonError]] = {
    2: UsageError,
    3: CannotRunHereError,
    4: NoSuchProcessError,
}


def _error(code: int, said: str) -> LifemonError:
    """Returns the exception for an exit code. What the binary says names the remedy."""
    lines = [line for line in said.splitlines() if line.strip()]
    spoken = next((line for line in lines if line.startswith(("lifemon: ", "error: "))), None)
    message = (spoken or (lines[-1] if lines else f"lifemon ended with {code}")).partition(": ")
    text = message[2] if spoken else message[0] + message[1] + message[2]
    what, _, remedy = text.partition("; ")
    return _CODES.get(code, AnswerError)(what, remedy or None)


def _binary() -> str:
    try:
        return str(find_binary())
    except BinaryNotFoundError as error:
        raise CannotRunHereError(str(error)) from error


def _target(target: Target | None) -> list[str]:
    if target is None:
        return []
    if isinstance(target, bool) or not isinstance(target, (int, str, _model.Id)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a process is a pid or PID@START_NS, not {type(target).__name__}")
    return [str(target)]


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1_000)}ms"
