"""`python tests/mutants`: writes docs/maintainers/mutants.md from the catalogue."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.paths import DOCS
from mutants.catalogue import markdown

(DOCS / "maintainers" / "mutants.md").write_text(markdown())
