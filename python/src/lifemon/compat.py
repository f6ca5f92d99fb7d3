"""Puts lifemon in the place of the module that serve scripts use, without an edit of them."""

from __future__ import annotations

import logging
import sys

from lifemon import process_cleanup

logger = logging.getLogger("lifemon")


def install(name: str = "axolotl.scripts.process_cleanup") -> None:
    """Makes every later import of this module get `lifemon.process_cleanup`.

    To be called before the module is imported: who has imported names of it before keeps those,
    and is warned about in the log.
    """
    if sys.modules.get(name) not in (None, process_cleanup):
        logger.warning("%s was imported before: what was imported of it stays as it is", name)
    sys.modules[name] = process_cleanup
    parent, _, child = name.rpartition(".")
    # An import of the parent that comes later finds the module by its name.
    if parent in sys.modules:
        setattr(sys.modules[parent], child, process_cleanup)
