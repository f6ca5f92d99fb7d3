"""Process lifecycle monitor: the lifemon binary, and where it is."""

from lifemon._binary import BinaryNotFoundError, find_binary

__all__ = ["BinaryNotFoundError", "find_binary"]
