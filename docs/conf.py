"""How the documentation is built: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import docs_pages  # noqa: E402
from longvis_bench.version import __version__  # noqa: E402

docs_pages.write(docs_pages.GENERATED)

project = "longvis-bench"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generated/readme.md"]

# A link to a page or a heading that is not there is a warning, and `make docs` makes warnings errors.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Docstrings are written as plain text with `code` in single backticks.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"  # the fields follow, so their list in brackets is left out
autodoc_default_options = {"members": True, "exclude-members": "model_config, model_post_init"}

html_theme = "pydata_sphinx_theme"
html_title = "longvis-bench"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_sidebars = {"**": ["sidebar-nav-bs"]}


def setup(app: Sphinx) -> None:
    """Two things that pages and docstrings of this repository need before they are read."""
    app.connect("source-read", _relink)
    app.connect("autodoc-process-docstring", _set_prose_aside, priority=400)
    app.connect("autodoc-process-docstring", _restore_prose, priority=600)


def _relink(app: Sphinx, name: str, source: list[str]) -> None:
    """Links of a page hold in the repository; here they become those of the site."""
    page = Path(app.srcdir, name).parent
    if page == docs_pages.DOCS:
        source[0] = docs_pages.relink(source[0], page, page)


_prose: dict[str, list[str]] = {}
"""Field -> its docstring, while napoleon (priority 500) takes its first line for "type: meaning"."""


def _set_prose_aside(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    if what == "attribute":
        _prose[name] = list(lines)


def _restore_prose(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    lines[:] = _prose.pop(name, lines)
