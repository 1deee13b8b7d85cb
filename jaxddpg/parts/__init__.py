"""The parts of an agent and of its training: pure functions and networks. They import only `types` and `settings`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["descent", "equations", "features", "networks", "noise", "replay", "sharding"]
)
