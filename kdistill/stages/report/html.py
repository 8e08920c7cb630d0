"""HTML elements. Every text is escaped unless it is `Html` already."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kdistill.console import Table, printable

VOID = ("img", "meta")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # no scripts, and nothing from elsewhere


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | float | None | Iterable["Content"]


def join(content: Content) -> Html:
    """Return the HTML of some content: texts are escaped, iterables are joined, and None is left out."""
    if content is None:
        return Html()
    if isinstance(content, Html):
        return content
    if isinstance(content, (str, int, float)):
        return Html(html.escape(printable(str(content))))
    return Html("".join(map(join, content)))


def element(tag: str, *content: Content, **attributes: Any) -> Html:
    """Return an element.

    Args:
        tag: its name.
        *content: what is in it.
        **attributes: by name: `class_` is written as `class`, `aria_label` as `aria-label`. None and False are left out.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is not None and value is not False:
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{join("" if value is True else value)}"')
    opened = Html(f"<{' '.join(parts)}>")
    return opened if tag in VOID else Html(f"{opened}{join(content)}</{tag}>")


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        name: that links point to.
        title: its heading.
        content: of the section.
    """

    name: str
    title: str
    content: Content

    def html(self) -> Html:
        """Return the section."""
        heading = f"{self.name}-title"
        return element(
            "section", element("h2", self.title, id=heading), self.content, id=self.name, aria_labelledby=heading
        )

    def link(self) -> Html:
        """Return a link to the section."""
        return element("a", self.title, href=f"#{self.name}")


def capitalized(text: str) -> str:
    """Return a text that begins with a capital letter, except for names such as mAP."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def paragraphs(*lines: Content, class_: str | None = None) -> Html:
    """Return a paragraph per line."""
    return join(element("p", line, class_=class_) for line in lines)


def command(line: str) -> Html:
    """Return a command line. Each word is an element, so that a line breaks between words and not at hyphens."""
    return element("code", Html(" ".join(element("span", word) for word in line.split(" "))))


def missing(what: str, line: str) -> Html:
    """Return a line that says what is missing, and the command that adds it."""
    return element("p", what, ": ", command(line), class_="missing")


def table(content: Table) -> Html:
    """Return a table that scrolls sideways if it is too wide. The first column has the headings of the rows."""
    title, columns, rows, note = content
    head = element("tr", (element("th", column.strip(), scope="col") for column in columns))
    body = (
        element("tr", element("th", row[0], scope="row"), (element("td", cell) for cell in row[1:])) for row in rows
    )
    return join(
        [
            element(
                "div",
                element(
                    "table", element("caption", capitalized(title)), element("thead", head), element("tbody", body)
                ),
                class_="wide",
                tabindex="0",
                role="region",
                aria_label=title,
            ),
            paragraphs(*note.splitlines(), class_="note"),
        ]
    )


def image(content: bytes, media_type: str, alt: str, **attributes: Any) -> Html:
    """Return an image that is part of the page."""
    return element("img", src=f"data:{media_type};base64,{base64.b64encode(content).decode()}", alt=alt, **attributes)


def document(title: str, *content: Content) -> str:
    """Return a page that needs nothing from elsewhere and runs no scripts."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", title),
        element("style", Html(style)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *content), lang='en')}\n"
