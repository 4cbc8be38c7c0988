"""The report of a study: a pure reader of the trial directories."""

import lazy_loader

# The page needs matplotlib, which the plan of a study, a reader of `report.seeds`, does without.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
