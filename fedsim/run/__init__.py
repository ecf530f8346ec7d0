"""The run folder: recording, checkpoints, client states, reading runs back.

Importing this package binds the name ``fedsim.run`` to it, which is also the name of the
function that runs an experiment; calling the package calls that function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from fedsim.api import run

        return run(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
