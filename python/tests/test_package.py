"""The functions of the package, its exceptions, and what it does not do."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import ORIGINAL, SOURCE, ended, wait_until
from test_servers import needs_helper, needs_root

import lifemon
from lifemon import _commands, _model, _proc, compat

pytestmark = pytest.mark.skipif(bool(ORIGINAL), reason="this is lifemon's")


def start(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script])


def python(code: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **env}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_import_imports_nothing_and_starts_nothing() -> None:
    code = """
import sys
before = set(sys.modules)
import lifemon
print(sorted(set(sys.modules) - before))
import lifemon.process_cleanup, threading, os
assert threading.active_count() == 1
assert not open(f"/proc/self/task/{os.getpid()}/children").read()
assert "multiprocessing" not in sys.modules
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "asyncio" not in done.stdout and "lifemon._" not in done.stdout


def test_every_name_is_there() -> None:
    assert set(lifemon.__all__) == set(dir(lifemon))
    for name in lifemon.__all__:
        assert getattr(lifemon, name) is not None
    with pytest.raises(AttributeError):
        _ = lifemon.no_such_name  # pyright: ignore


def test_without_a_binary_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFEMON_BIN", "/no/such/program")
    with pytest.raises(lifemon.CannotRunHereError, match="/no/such/program"):
        lifemon.tree(1)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, lifemon.UsageError),
        (3, lifemon.CannotRunHereError),
        (4, lifemon.NoSuchProcessError),
        (1, lifemon.AnswerError),
    ],
)
def test_exit_codes_are_exceptions_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    program = tmp_path / "lifemon"
    program.write_text(f"#!/bin/sh\necho 'lifemon: it did not work; do this' >&2\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("LIFEMON_BIN", str(program))
    with pytest.raises(kind, match="it did not work: do this") as raised:
        lifemon.orphans()
    assert raised.value.remedy == "do this"  # pyright: ignore


def test_an_answer_of_another_schema_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "lifemon"
    program.write_text('#!/bin/sh\necho \'{"schema":"lifemon/1"}\'\n')
    program.chmod(0o755)
    monkeypatch.setenv("LIFEMON_BIN", str(program))
    with pytest.raises(lifemon.AnswerError, match="lifemon/2"):
        lifemon.gpu()


@needs_helper
def test_a_process_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((lifemon.NoSuchProcessError, lifemon.CannotRunHereError)):
        lifemon.kill_tree(2**22 - 1)
    with pytest.raises(TypeError):
        lifemon.kill_tree(True)


@needs_helper
@needs_root
def test_a_tree_is_shown_and_killed() -> None:
    child = start("sleep 600 & sleep 600 & wait")
    wait_until("three", lambda: len(lifemon.tree(child.pid).processes) == 3)
    report = lifemon.tree(child.pid)
    root = report.processes[0]
    assert root.pid == child.pid and root.alive and root.command[0] == "sh"
    dry = lifemon.kill_tree(child.pid, dry_run=True)
    assert len(dry.members) == 3 and child.poll() is None
    killed = lifemon.kill_tree(root, grace=0.1)
    assert killed.extinct and len(killed.killed) + len(killed.already_dying) >= 1
    child.wait(10)


@needs_helper
@needs_root
def test_every_field_that_the_binary_prints_is_known() -> None:
    child = start("sleep 600 & wait")
    try:
        answers: list[tuple[type, list[str]]] = [
            (_model.TreeReport, ["tree", str(child.pid)]),
            (_model.OrphanReport, ["orphans", "--all"]),
            (_model.GpuReport, ["gpu"]),
            (_model.Explanation, ["explain", str(child.pid)]),
            (_model.KillReport, ["kill", str(child.pid), "--dry-run"]),
            (_model.KillReport, ["kill", str(child.pid)]),
        ]
        for kind, words in answers:
            unknown: list[str] = []
            _model.decode(kind, _commands._ask(words), unknown)
            assert unknown == [], words
    finally:
        child.kill()
        child.wait()


def shapes() -> list[tuple[type, str]]:
    return [
        (_model.TreeReport, "tree"),
        (_model.OrphanReport, "orphans"),
        (_model.GpuReport, "gpu"),
        (_model.KillReport, "kill"),
        (_model.KillReport, "kill_dry_run"),
        (_model.RunReport, "run"),
        (_model.Event, "attach"),
        (_model.Explanation, "explain"),
    ]


@pytest.mark.parametrize(("kind", "name"), shapes(), ids=[name for _, name in shapes()])
def test_every_field_of_the_golden_shapes_is_known(kind: type, name: str) -> None:
    file = SOURCE.parent.parent / "tests" / "e2e" / "shapes" / f"{name}.txt"
    if not file.exists():
        pytest.skip("not in a checkout")
    for line in file.read_text().split():
        parts = line.replace("[]", "").split(".")
        assert is_known(kind, parts[1:] if name == "attach" else parts), line


def is_known(kind: Any, parts: list[str]) -> bool:
    """Returns whether a path of fields leads through the dataclasses, or into free JSON."""
    for part in parts:
        if part in _model._ABOUT:
            return True
        hints = _model._hints(kind)
        if part not in hints:
            return False
        kind = hints[part]
        while not isinstance(kind, type) or hasattr(kind, "__args__"):
            inner = [one for one in getattr(kind, "__args__", ()) if one is not type(None)]
            if not inner or getattr(kind, "__origin__", None) is dict:
                return True
            kind = inner[0]
        if kind in (dict, list):
            return True
        if not hasattr(kind, "__dataclass_fields__"):
            continue
    return True


def fields_missing(schema: Any, defs: dict[str, Any], kind: Any, path: str) -> list[str]:
    """Returns the fields of a JSON Schema that the dataclasses do not have."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    parts = [part for word in ("anyOf", "oneOf", "allOf") for part in schema.get(word, [])]
    found = [one for part in parts for one in fields_missing(part, defs, kind, path)]
    arguments = [one for one in getattr(kind, "__args__", ()) if one is not type(None)]
    if arguments and getattr(kind, "__origin__", None) is not dict:
        kind = arguments[0]
    if "items" in schema:
        return found + fields_missing(schema["items"], defs, kind, path + "[]")
    if not hasattr(kind, "__dataclass_fields__"):
        return found
    hints = _model._hints(kind)
    for name, inner in schema.get("properties", {}).items():
        if name in hints:
            found += fields_missing(inner, defs, hints[name], f"{path}.{name}")
        elif name not in _model._ABOUT:
            found.append(f"{path}.{name} is not in {kind.__name__}")
    return found


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, {"attach": "event"}.get(name, name)) for kind, name in shapes() if "_" not in name],
)
def test_every_field_of_the_schemas_is_known(kind: type, name: str) -> None:
    file = SOURCE.parent.parent / "docs" / "schema" / f"{name}.json"
    if not file.exists():
        pytest.skip("there are no schemas here")
    schema = json.loads(file.read_text())
    assert fields_missing(schema, schema.get("$defs", {}), kind, name) == []


@needs_helper
@needs_root
def test_the_events_of_a_tree() -> None:
    child = start("sleep 1 & wait")

    async def main() -> list[str]:
        seen: list[str] = []
        async for event in lifemon.watch(child.pid):
            if event.event == "attached":
                assert event.root is not None and event.root.pid == child.pid
                os.kill(child.pid, signal.SIGKILL)
            if event.event == "exit" and event.process and event.process.pid == child.pid:
                assert event.exit is not None and event.exit.signal == 9
                assert event.exit.sender is not None and event.exit.sender.pid == os.getpid()
            seen.append(event.event)
        return seen

    seen = asyncio.run(asyncio.wait_for(main(), 30))
    child.wait()
    assert seen[0] == "attached" and "exit" in seen and seen[-1] == "detached"


@needs_helper
@needs_root
def test_a_watch_that_is_left_ends() -> None:
    child = start("exec sleep 600")

    async def main() -> None:
        events = lifemon.watch(child.pid)
        async for _ in events:
            break
        await events.aclose()

    asyncio.run(main())
    assert [pid for pid in _proc.children(os.getpid()) if "attach" in _proc.command_line(pid)] == []
    child.kill()
    child.wait()


@needs_helper
def test_a_command_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"setsid sleep 600 & echo $! > {file}; echo out; exit 3"
    done = lifemon.run(["sh", "-c", script], grace=0.2, capture_output=True, text=True)
    assert done.returncode == 3 and done.stdout == "out\n"
    assert done.left is not None and len(done.left.killed) == 1
    assert ended(int(file.read_text()))
    with pytest.raises(subprocess.CalledProcessError):
        lifemon.run(["false"], check=True)
    assert lifemon.run(["cat"], input=b"in", capture_output=True).stdout == b"in"
    with pytest.raises(FileNotFoundError):
        lifemon.run(["/no/such/program"], capture_output=True)
    with pytest.raises(TypeError):
        lifemon.run("a string")


@needs_helper
def test_a_command_that_takes_too_long(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"setsid sleep 600 & echo $! > {file}; sleep 600"
    with pytest.raises(subprocess.TimeoutExpired):
        lifemon.run(["sh", "-c", script], timeout=0.5)
    wait_until("its end", lambda: ended(int(file.read_text())))


@needs_helper
def test_a_guard_ends_its_tree_on_leaving() -> None:
    child = start("sleep 600 & wait")
    with lifemon.Guard(child) as guard:
        assert guard.way in ("helper", "helper-snapshots")
        assert child.poll() is None
    assert child.wait(10) == -9
    kept = start("exec sleep 600")
    with lifemon.Guard(kept.pid) as guard:
        guard.keep = True
    assert kept.poll() is None
    kept.kill()
    kept.wait()
    with pytest.raises(lifemon.NoSuchProcessError):
        lifemon.Guard(kept.pid)


@needs_helper
def test_a_guard_ends_its_tree_when_its_owner_is_killed() -> None:
    code = """
import os, subprocess, sys, time, lifemon
child = subprocess.Popen(["sh", "-c", "setsid sleep 600 & wait"])
time.sleep(0.2)
with lifemon.Guard(child):
    print(child.pid, flush=True)
    time.sleep(0.6)
    print("ready", flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    assert owner.stdout.readline() == "ready\n"
    below = [child, *_proc.children(child)]
    owner.kill()
    owner.wait()
    for pid in below:
        wait_until("its end", lambda pid=pid: ended(pid))


@needs_helper
def test_a_binary_without_explain_names_the_remedy() -> None:
    help_text = subprocess.run([lifemon.find_binary(), "--help"], capture_output=True, text=True)
    if "  explain " in help_text.stdout:
        found = lifemon.explain(os.getpid())
        assert found.process.pid == os.getpid() and found.process.alive
        assert found.subtree.processes >= found.holds.processes == 1
    else:
        with pytest.raises(lifemon.CannotRunHereError, match="pip install -U lifemon"):
            lifemon.explain(os.getpid())


def test_the_module_is_replaced_without_an_edit(caplog: pytest.LogCaptureFixture) -> None:
    package: Any = types.ModuleType("some_serve_scripts")
    package.__path__ = []
    sys.modules["some_serve_scripts"] = package
    try:
        compat.install("some_serve_scripts.process_cleanup")
        found = importlib.import_module("some_serve_scripts.process_cleanup")
        ours = importlib.import_module("lifemon.process_cleanup")
        assert found is ours and package.process_cleanup is ours
        sys.modules["some_serve_scripts.process_cleanup"] = types.ModuleType("original")
        with caplog.at_level(logging.WARNING):
            compat.install("some_serve_scripts.process_cleanup")
        assert "was imported before" in caplog.text
    finally:
        for name in ("some_serve_scripts", "some_serve_scripts.process_cleanup"):
            sys.modules.pop(name, None)


def test_the_default_is_the_module_of_axolotl_also_without_that() -> None:
    code = """
from lifemon import compat
compat.install()
from axolotl.scripts.process_cleanup import ProcessManager
import lifemon.process_cleanup
assert ProcessManager is lifemon.process_cleanup.ProcessManager
"""
    assert python(code).returncode == 0


LEAKY = """
import subprocess, pytest

@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(["sleep", "601"])
    yield process
    process.kill()
    process.wait()

def test_clean(server):
    subprocess.run(["true"])

def test_leaky():
    subprocess.run(["sh", "-c", "sleep 602 & :"])

def test_still_there(server):
    assert server.poll() is None
"""


def test_a_test_that_leaves_a_process_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(LEAKY)
    words = ["-m", "pytest", "-p", "lifemon.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *words, "--lifemon-leaks", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "3 passed, 1 error" in done.stdout, done.stdout
    assert "test_leaky has left a process behind" in done.stdout
    assert "sleep 602" in done.stdout and "sleep 601" not in done.stdout
    quiet = subprocess.run(
        [sys.executable, *words, str(tmp_path), "-k", "clean"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 passed" in quiet.stdout
