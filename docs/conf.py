"""Sphinx's settings. MyST, since the pages are Markdown that a repository shows as it is; furo,
since it is readable in light and dark, small, and loads nothing from another server.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "testbed"
author = "The testbed developers"
copyright = author
version = release = re.search(
    r'^__version__ = "(.*)"', (HERE.parent / "testbed" / "__init__.py").read_text(), re.MULTILINE
)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "docstrings",  # before napoleon, which reads what it leaves
    "sphinx.ext.napoleon",
    "mathml",
    "generated",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True
# Other projects' names are not looked up: their inventories would have to be fetched.
nitpick_ignore_regex = [(r"py:.*", r"(?!testbed\b).*")]
nitpick_ignore = [  # type variables
    ("py:class", "testbed.diffusion.ddpm.Level"),
    ("py:class", "testbed.trial.resolve._T"),
    ("py:class", "testbed.trial.storage.base.T"),
    ("py:class", "testbed.study.outage.T"),
    ("py:class", "testbed.study.executors.base.T"),
    ("py:class", "testbed.study.executors.base.T_co"),
    ("py:class", "testbed.trial.resolve._M"),
    ("py:class", "testbed.report.robustness.Statement"),
]
suppress_warnings = ["ref.python"]  # a hint that two modules have a class for, such as Tracker
show_warning_types = True
highlight_language = "text"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False  # there are none, and to look for them takes a tenth of the build
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

html_theme = "furo"
html_title = "testbed"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False

linkcheck_timeout = 30
linkcheck_workers = 4
linkcheck_ignore = [r"http://127\.0\.0\.1.*", r"http://localhost.*"]
