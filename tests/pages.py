"""Pages of `report`: their elements, and a check that holds for all of them."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

VOID = ("meta", "img")


class Page(HTMLParser):
    """The elements of a page, each with its text; checks that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        one = {"tag": tag, "text": "", **dict(attrs)}
        assert len(dict(attrs)) == len(attrs)
        self.elements.append(one)
        if tag not in VOID:
            self.open.append(one)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, text):
        for one in self.open:
            one["text"] += text

    def find(self, *tags, **attributes):
        found = [one for one in self.elements if one["tag"] in tags]
        return [one for one in found if all(one.get(name) == value for name, value in attributes.items())]

    def rows(self, caption):
        """Return the cells of each row of the table whose caption begins with some words."""
        table = next(one for one in self.find("table") if one["text"].startswith(caption))
        start = self.elements.index(table)
        rows = []
        for one in self.elements[start + 1 :]:
            if one["tag"] == "table":
                break
            if one["tag"] == "tr":
                rows.append([])
            elif one["tag"] in ("th", "td") and one["text"] is not None and rows:
                rows[-1].append(one["text"])
        return rows


def page_of(place):
    """Return the page of the workspace in a directory."""
    return Page((place / "workspace/report/report.html").read_text(encoding="utf-8"))


def check_page(page):
    """Check that headings are in order, all is described, there are no scripts, and nothing is loaded from elsewhere."""
    assert page.find("html")[0]["lang"] == "en"
    levels = [int(one["tag"][1]) for one in page.find("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    identifiers = [one["id"] for one in page.elements if "id" in one]
    assert len(set(identifiers)) == len(identifiers)
    assert {one["href"] for one in page.find("a")} == {f"#{one['id']}" for one in page.find("section")}
    assert all(one["aria-labelledby"] in identifiers for one in page.find("section"))
    assert all(one["alt"] for one in page.find("img"))
    assert all(one["src"].startswith("data:image/") for one in page.find("img"))
    assert all(one["aria-label"] for one in page.find("svg"))
    assert all(one["scope"] in ("col", "row") for one in page.find("th"))
    assert len(page.find("caption")) == len(page.find("table")) >= 5
    assert not page.find("script", "link", "iframe", "object", "b", "i")
    assert not [name for one in page.elements for name in one if name.startswith("on")]
    assert "url(" not in page.find("style")[0]["text"]
    assert "default-src 'none'" in page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
