"""Configuration of the documentation; nothing here needs the network."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

project = "metasched"
author = "The metasched authors"
copyright = author
try:
    release = metadata.version("metasched")
except metadata.PackageNotFoundError:
    release = "not installed"

extensions = [
    "myst_nb",  # with myst_parser in it
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "directives",
    "mathml",
]
exclude_patterns = ["_build", "tables"]
nitpicky = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "metasched"
html_static_path = ["_static"]
html_css_files = ["style.css"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"  # .ci/run turns it off where the page is not written
nb_execution_timeout = 300  # seconds, of a cell
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_output_stderr = "remove"  # warnings of exporters

autodoc_typehints = "signature"  # shapes and ranges are in the docstrings
autodoc_typehints_format = "short"
nitpick_ignore_regex = [("py:class", ".*")]  # types in signatures, of which most have no page
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_param = False  # `low, high: ...` describes two at once, which a field of its own cannot
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

doctest_test_doctest_blocks = ""  # those of the docstrings are run by pytest
