"""The documentation site, `sphinx-build -c docs . build/docs`, made of the pages of the repository."""

import importlib.metadata
from typing import Any

project = "jaxddpg"
version = release = importlib.metadata.version("jaxddpg")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*", "README.md", "bench/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
html_theme = "furo"
html_title = "jaxddpg"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "replace"}  # that of every flax record
python_use_unqualified_type_names = True


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", begin_with_text, priority=0)


def begin_with_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Has napoleon take the docstring of an attribute as it is, and not what precedes a colon for its type."""
    if what in ("attribute", "property"):
        lines.insert(0, "")
