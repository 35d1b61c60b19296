"""Formulas as MathML, which browsers draw themselves: no script and no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

_OTHER_NAMES = (  # what docutils does not know: commands, and fractions of two digits without braces
    (r"\\dots\b", r"\\ldots"),
    (r"\\[bB]ig(?![a-zA-Z])", ""),
    (r"\\([td]?frac)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}"),
)


def mathml(formula: str, block: bool) -> str:
    """A formula in TeX as MathML; of a block that has lines, ``&`` aligns them."""
    for name, known in _OTHER_NAMES:
        formula = re.sub(name, known, formula)
    return tex2mathml(formula, as_block=block)


def inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(f'<span class="math">{mathml(node.astext(), False)}</span>')
    raise nodes.SkipNode


def display(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on lines of its own, which scrolls where it is wider than the page."""
    self.body.append(f'<div class="math" tabindex="0">{mathml(node.astext(), True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the renderer as ``mathml``."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
