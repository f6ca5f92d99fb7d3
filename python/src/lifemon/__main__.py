"""`python -m lifemon ARGS` becomes the binary; `python -m lifemon sudo ARGS` does so as root."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from lifemon._binary import BinaryNotFoundError, find_binary


def main(arguments: list[str]) -> NoReturn:
    """Replaces this process with the binary: signals and exit code are the binary's."""
    try:
        binary = str(find_binary())
    except BinaryNotFoundError as error:
        sys.exit(f"lifemon: {error}")
    command = [binary, *arguments]
    if arguments[:1] == ["sudo"]:
        command = ["sudo", "--", binary, *arguments[1:]]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        remedy = {
            "sudo": "install sudo, or run this as root without it",
        }.get(command[0], "this wheel is for Linux with glibc, on x86-64 or arm64")
        sys.exit(f"lifemon: cannot run {command[0]}: {error.strerror}: {remedy}")


if __name__ == "__main__":
    main(sys.argv[1:])
