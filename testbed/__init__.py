"""A testbed that compares parameterizations of diffusion models, and proves them equal in theory.

The public names are those of `__init__.pyi`. Each is imported when it is first used, so that the
command line starts without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
