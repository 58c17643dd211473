"""Keras models made smaller and faster at nearly the same accuracy, verified and measured.

The public names stand in `__init__.pyi`, where type checkers find them too. They are loaded on first use, so that
importing the package loads no TensorFlow.
"""

import sys
from typing import Any

import lazy_loader

__version__ = "0.1.0"
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if "tensorflow" in sys.modules or name not in __all__:
        return _load(name)
    from tfopt._base.native_log import native_greetings_aside

    with native_greetings_aside():
        return _load(name)
