"""`python tests/mutants`: writes the page of the mutants in docs/ from the catalogue."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.paths import DOCS
from mutants.catalogue import markdown

(page,) = DOCS.rglob("mutants.md")
page.write_text(markdown())
