"""Sphinx configuration. Building needs no network: ``sphinx-build -W -b html docs docs/_build/html``."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the notebooks' networks are small

import gpumlp

HERE = Path(__file__).parent

project = "gpumlp"
author = "The gpumlp authors"
copyright = "2026, the gpumlp authors"
release = version = gpumlp.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_inventories", "_static", "**.ipynb_checkpoints"]

# -- Text and notebooks -----------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"

# -- API reference ----------------------------------------------------------------------------------------

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what arguments are, with shapes and units
autodoc_default_options = {
    "members": True,
    "inherited-members": "BaseEstimator, BaseSearchCV, CallbackSupportMixin, Exception, tuple",
}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "autolink"  # `MLP` in a docstring links where it can, and is set in italics where it cannot
python_use_unqualified_type_names = True

intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", str(HERE / "_inventories/python.inv")),
    "numpy": ("https://numpy.org/doc/stable/", str(HERE / "_inventories/numpy.inv")),
    "sklearn": ("https://scikit-learn.org/stable/", str(HERE / "_inventories/scikit-learn.inv")),
}

# -- HTML -------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "gpumlp"
html_static_path = ["_static"]
html_css_files = ["katex/katex.min.css", "site.css"]
html_js_files = [("katex/katex.min.js", {"defer": "defer"}), ("equations.js", {"defer": "defer"})]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 9,
    "logo": {"text": f"gpumlp {release}"},
    "navbar_persistent": ["search-button"],
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_sidebars = {"[!an]*": [], "notes": []}  # only the API reference and the notebooks have pages below them


# -- Equations: KaTeX from _static/katex, in place of MathJax from a server --------------------------------


def inline_equation(self: Any, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{html.escape(node.astext())}</span>')
    raise nodes.SkipNode


def displayed_equation(self: Any, node: nodes.math_block) -> None:
    text = node.astext()
    self.body.append(f'<div class="math">{html.escape(text)}</div>\n')
    raise nodes.SkipNode


def escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep |W| in docstrings an absolute value: reStructuredText would take it for a substitution."""
    lines[:] = [re.sub(r"(?<![`|])\|(\w+)\|(?![`|])", r"\\|\1\\|", line) for line in lines]


def skip_metadata_requests(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn adds to every estimator to route metadata."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name.rpartition(".")[2]) else None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-skip-member", skip_metadata_requests)
    app.add_html_math_renderer("katex", (inline_equation, None), (displayed_equation, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "katex"
