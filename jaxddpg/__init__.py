"""Deterministic policy gradients in JAX: pure functions, whole populations of agents, compiled.

The public list stands in `__init__.pyi`; names load on first use, so importing the package is immediate.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
