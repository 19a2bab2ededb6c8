"""Sphinx: ``tox run -e docs`` builds the pages to docs/_build/html.

It needs no network, and warnings are errors.
"""

import re

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
# Numpydoc links the attribute skipped of nbopt.torch.Optimizer, and two classes have one.
suppress_warnings = ["ref.python"]
numpydoc_show_class_members = False  # autodoc lists them

html_theme = "furo"
html_title = f"nbopt {version}"


def setup(app):
    """Keep the initials of authors: "D.

    P. Kingma" at the start of a line would be an item of an enumeration.
    """

    def escaped(app, what, name, obj, options, lines):
        lines[:] = [re.sub(r"^([A-Z])\. ", r"\1\\. ", line) for line in lines]

    app.connect("autodoc-process-docstring", escaped)
