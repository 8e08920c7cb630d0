"""The guides: Markdown files that `kdistill guide` shows and that read the same on the web."""

from __future__ import annotations

import sys
from pathlib import Path

from kdistill.errors import UsageError

DIRECTORY = Path(__file__).parent


def topics() -> dict[str, str]:
    """Return the topics and their titles."""
    files = sorted(DIRECTORY.glob("*.md"))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}


def read(topic: str) -> str:
    """Return the text of a guide.

    Raises:
        UsageError: if there is no such topic.
    """
    if topic not in topics():
        raise UsageError(f"there is no guide {topic!r} (expected one of {', '.join(topics())})")
    return (DIRECTORY / f"{topic}.md").read_text(encoding="utf-8")


def show(topic: str | None) -> None:
    """Print a guide, or the list of topics; on a terminal formatted and paged."""
    listing = "\n".join(f"- **{name}**: {title}" for name, title in topics().items())
    text = f"# Guides\n\n{listing}\n\n`kdistill guide TOPIC` shows one." if topic is None else read(topic)
    if not sys.stdout.isatty():
        print(text.rstrip())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    with console.pager(styles=True):
        console.print(Markdown(text))
