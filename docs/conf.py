"""Sphinx: ``tox run -e docs`` builds the pages to docs/_build/html, without the network; warnings are errors."""

import nbopt

project = "nbopt"
author = "the nbopt developers"
version = release = nbopt.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc", "myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # for links to headings, as GitHub makes them

default_role = "py:obj"  # `Tensor` in a docstring is a link
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False  # autodoc lists them

html_theme = "furo"
html_title = f"nbopt {version}"
