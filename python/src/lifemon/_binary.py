"""Finds the binary that this package was installed with. Runs nothing."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_NAME = "lifemon"


class BinaryNotFoundError(FileNotFoundError):
    """The binary is not where pip installs it."""


def find_binary() -> Path:
    """Returns the path of the binary: that in `LIFEMON_BIN`, otherwise where pip installs it.

    Raises BinaryNotFoundError, with the remedy, when there is none.
    """
    named = os.environ.get("LIFEMON_BIN")
    if named:
        if os.access(named, os.X_OK):
            return Path(named)
        raise BinaryNotFoundError(f"LIFEMON_BIN names no program that can be run: {named}")
    directories = list(dict.fromkeys(_directories()))
    for directory in directories:
        binary = directory / _NAME
        if os.access(binary, os.X_OK) and binary.is_file():
            return binary
    looked = ", ".join(str(directory) for directory in directories)
    raise BinaryNotFoundError(
        f"the lifemon binary is not in {looked}: run `pip install --force-reinstall lifemon` "
        "on Linux with glibc, for x86-64 or arm64"
    )


def _directories() -> Iterator[Path]:
    """Yields the directories of scripts, the likeliest first."""
    yield Path(sysconfig.get_path("scripts"))
    # `pip install --target DIRECTORY` and `--prefix` put it beside the modules.
    package = Path(__file__).resolve().parent
    yield package.parent / "bin"
    prefix = _prefix_of(package)
    if prefix is not None:
        yield prefix / "bin"
    if site.ENABLE_USER_SITE:
        yield Path(sysconfig.get_path("scripts", scheme="posix_user"))


def _prefix_of(package: Path) -> Path | None:
    """Returns the prefix of a package in PREFIX/lib/pythonX.Y/site-packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    parents = package.parents
    if len(parents) > 3 and parents[1].name in (version, "python3"):
        return parents[3]
    return None
