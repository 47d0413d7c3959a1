"""Train and record networks, and measure how they partition their input space while they learn.

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so `import grokkit` costs
nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
