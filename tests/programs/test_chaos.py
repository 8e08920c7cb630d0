"""Nothing is lost, whatever happens to a run: killed, out of disk, or beside another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def script(name, *arguments):
    done = subprocess.run([sys.executable, HERE / name, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.slow
def test_killed_at_any_instant():
    """20 rounds of SIGKILL over all stages: nothing lost, nothing different; see chaos.py."""
    code, out = script("chaos.py", "--rounds", "20")
    assert code == 0, out
    assert "20 rounds, 0 with anything lost or different" in out


@pytest.mark.slow
def test_full_disk():
    """The disk full at every point of every stage: one line, and what stood stands; see full_disk.py."""
    code, out = script("full_disk.py")
    if code == 77:
        pytest.skip("no right to mount a small file system")
    assert code == 0, out
    assert "0 with anything lost" in out


@pytest.mark.slow
def test_two_at_once():
    """Each pair of stages at the same time in one workspace; see pairs.py."""
    code, out = script("pairs.py")
    assert code == 0, out
    assert "10 pairs, 0 with anything lost" in out


@pytest.mark.slow
def test_paper_in_miniature(tmp_path):
    """`make paper QUICK=1`: every command runs, and the table has each row; again, all is up to date; see paper.py."""
    arguments = ("paper.py", "--quick", "--seeds", "0,1", "--place", tmp_path)
    code, out = script(*arguments)
    assert code == 0, out[-3000:]
    results = (tmp_path / "results.md").read_text()
    assert (tmp_path / "temperatures.png").stat().st_size > 10_000
    for row in ("hard labels", "cached views", "without a single 3", "7s and 8s only", "biases corrected", "permuted"):
        assert row in results
    code, again = script(*arguments)
    assert code == 0
    assert "epoch 1/" not in again
    assert (tmp_path / "results.md").read_text() == results
