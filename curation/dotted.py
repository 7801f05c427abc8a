"""Code of a user's own, named by dotted path."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def load_object(name: str) -> Any:
    """What ``module:name`` or ``module.name`` stands for; modules in the current folder are found too.

    Raises:
        Exception: whatever the module raises, and ImportError or AttributeError where there is no such thing.
    """
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own code lies beside where they work
    return getattr(importlib.import_module(module), attribute)
