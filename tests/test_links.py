"""The pages of the documentation: links between them hold, and they name what there is."""

import re
from pathlib import Path

import pytest

from nbopt.language.ops import COMPOSED, PRIMITIVES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *(ROOT / "docs").rglob("*.md")])


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    """Each link to a file of the repository leads to one, and to a heading that it has."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


def test_all_operations():
    """The page on rules has every operation of `be`."""
    text = (ROOT / "docs" / "own-optimizer.md").read_text()
    assert [name for name in {**PRIMITIVES, **COMPOSED} if f"be.{name}" not in text] == []


def test_every_page_says_what_it_is_for():
    """A page begins with what a reader can do after reading it."""
    for page in (ROOT / "docs").glob("*.md"):
        first = page.read_text().split("\n\n")[1]
        assert page.stem == "index" or first.startswith("After this page you "), page.name
