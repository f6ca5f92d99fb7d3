"""The way by the node agent, with a real one in a mount namespace: its socket and its tracker are
seen by nobody else.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ORIGINAL, SOURCE, ended, wait_until
from test_servers import has_binary, needs_root

from lifemon import find_binary

PROGRAMS = Path(__file__).parent / "programs"


def has_agent() -> bool:
    if ORIGINAL or not has_binary():
        return False
    words = [str(find_binary()), "agent", "--help"]
    return subprocess.run(words, capture_output=True).returncode == 0


pytestmark = [
    needs_root,
    pytest.mark.skipif(not has_agent(), reason="this lifemon has no agent"),
]

AGENT = """
mount -t tmpfs tmpfs /run && mount -t bpf bpf /sys/fs/bpf || exit 77
"$1" agent </dev/null >/dev/null 2>&1 & agent=$!
for i in $(seq 100); do [ -S /run/lifemon/lifemon.sock ] && break; sleep 0.1; done
shift
"$@"; code=$?
for i in $(seq 100); do
    left=
    for file in "$PIDS"/*.*; do kill -0 "${file##*.}" 2>/dev/null && left=1; done
    [ "$left" ] || break
    sleep 0.1
done
kill $agent; wait $agent
exit $code
"""

HEALTH = """
import json, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from parts import start_workers
from lifemon.process_cleanup import ProcessManager
processes, connections = start_workers("fork", 2, "engine")
manager = ProcessManager(processes, connections)
end = time.monotonic() + 20
while len([f for f in os.listdir(os.environ["PIDS"]) if f.startswith("engine")]) < 2:
    assert time.monotonic() < end
    time.sleep(0.01)
os.kill(processes[0].pid, signal.SIGKILL)
while not (found := manager.get_health_status()["lifemon"])["orphans"]:
    assert time.monotonic() < end
print(json.dumps(manager.get_health_status()))
if sys.argv[2] == "killed":
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
manager._cleanup_orphans()
assert manager.get_health_status()["lifemon"]["orphans"] == []
manager._shutdown_workers()
"""

USERS = {
    "root": [],
    "nobody": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"],
}


@pytest.fixture
def usable(tmp_path: Path) -> Iterator[Path]:
    """A directory that another user may write to."""
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.stat().st_uid == os.getuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    pids = tmp_path / "pids"
    pids.mkdir()
    pids.chmod(0o777)
    yield pids


@pytest.mark.parametrize("user", list(USERS))
@pytest.mark.parametrize("how", ["killed", "shut down"])
def test_the_agent_ends_what_a_server_leaves(usable: Path, user: str, how: str) -> None:
    python = "/usr/bin/python3"
    words = [*USERS[user], python, "-c", HEALTH, str(PROGRAMS), how]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PIDS": str(usable)}
    del environment["LIFEMON_AGENT"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", AGENT, "sh", str(find_binary()), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
    )
    if done.returncode == 77 or "No module named 'lifemon'" in done.stderr:
        pytest.skip("no mount namespace here, or another user cannot read this checkout")
    assert done.returncode == (137 if how == "killed" else 0), done.stderr
    details = json.loads(done.stdout)["lifemon"]
    assert details["way"] == "agent" and details["complete"] is True, details
    assert len(details["orphans"]) == 1
    for file in usable.glob("[a-z]*.*"):
        pid = int(file.name.rpartition(".")[2])
        wait_until(f"the end of {file.name}", lambda pid=pid: ended(pid))
