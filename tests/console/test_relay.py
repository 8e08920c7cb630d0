"""What a relay sends, and another process prints, is what a reporter prints itself."""

from __future__ import annotations

from kdistill.console import Reporter
from kdistill.console.relay import Relay, play


def report(reporter):
    """Use all that a reporter has."""
    reporter.say("first")
    with reporter.steps("train", 3) as steps:
        steps.advance(2)
        steps.note("epoch 1 of 3", "1")
        reporter.warn("odd")
    reporter.table("title", ("name", "value"), [("a", "1")], "note")


def test_relay(capsys):
    messages = []
    report(Relay(messages.append))
    assert not "".join(capsys.readouterr())
    for options in ({}, {"quiet": True}):
        report(Reporter(**options))
        expected = capsys.readouterr()
        play(messages, Reporter(**options))
        assert capsys.readouterr() == expected
