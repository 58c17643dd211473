"""Keras models made smaller and faster at nearly the same accuracy, verified and measured.

The public names stand in `__init__.pyi`, where type checkers find them too. They are loaded on first use, so that
importing the package loads no TensorFlow.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
