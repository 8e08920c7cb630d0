"""A reporter whose messages another process prints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kdistill.console.reporter import Reporter, Steps

Message = tuple[Any, ...]  # the name of a method of `Reporter` or `Steps`, and its arguments
END = "end"  # of the steps


class Relay(Reporter):
    """Sends each message instead of printing it. `play` prints it.

    Args:
        send: called with each message.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        super().__init__()
        self._send = send

    def say(self, text: str) -> None:
        self._send(("say", text))

    def warn(self, text: str) -> None:
        self._send(("warn", text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
        self._send(("table", title, columns, rows, note))

    @contextlib.contextmanager
    def steps(self, task: str, total: int) -> Iterator[Steps]:
        self._send(("steps", task, total))
        try:
            yield _SentSteps(self, self._send)
        finally:
            self._send((END,))


class _SentSteps(Steps):
    def __init__(self, reporter: Reporter, send: Callable[[Message], None]) -> None:
        super().__init__(None, reporter)
        self._send = send

    def advance(self, steps: float = 1) -> None:
        self._send(("advance", steps))

    def note(self, line: str, short: str) -> None:
        self._send(("note", line, short))


def play(messages: Iterable[Message], reporter: Reporter) -> None:
    """Print the messages of a `Relay`, until there are no more."""
    with contextlib.ExitStack() as stack:
        steps = Steps(None, reporter)
        for name, *arguments in messages:
            if name == "steps":
                steps = stack.enter_context(reporter.steps(*arguments))
            elif name == END:
                stack.close()
            else:
                getattr(steps if hasattr(Steps, name) else reporter, name)(*arguments)
