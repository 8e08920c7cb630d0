"""The programs beside this file: killed runs, full disks, simultaneous runs, the speed, and the paper in miniature."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent
pytestmark = pytest.mark.slow


def program(name, *arguments):
    done = subprocess.run([sys.executable, PROGRAMS / name, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_killed_at_any_time():
    """Stages that are killed at random times lose nothing (see chaos.py)."""
    status, output = program("chaos.py", "--rounds", "8")
    assert status == 0, output
    assert output.count("nothing lost") == 8


def test_full_disk():
    """Stages that run out of disk space lose nothing (see full_disk.py)."""
    status, output = program("full_disk.py")
    if status == 77:
        pytest.skip("no right to mount a file system")
    assert status == 0, output
    assert output.count("failed") == 4


def test_two_at_once():
    """Two stages at the same time lose nothing (see pairs.py)."""
    status, output = program("pairs.py")
    assert status == 0, output
    assert output.count("nothing lost") == 10


def test_bench():
    """The program that measures the speed prints a row for each measurement (see bench/__main__.py)."""
    status, output = program("bench", "--only", "help", "--runs", "1")
    assert status == 0, output
    assert output.count("`kdistill --help`") == 2


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed")
def test_bench_without_pytorch():
    """A group that can't be measured is named, with the reason."""
    status, output = program("bench", "--only", "pytorch")
    assert status == 0, output
    assert "Skipped pytorch: " in output
    assert "pip install torch" in output


def test_bench_on_a_gpu():
    """The program that measures the speed on a GPU works, here in small on any machine (see bench/gpu.py)."""
    status, output = program("bench/gpu.py", "--small", "--runs", "0")
    assert status == 0, output
    assert output.count("| epoch, mlp-800, batches of 128 / ") == (2 if find_spec("torch") else 1)
    assert output.count(" rows/s |") == 1


def test_paper_in_miniature(tmp_path):
    """The program that reproduces the paper fills its tables; run again, everything is up to date (see paper.py)."""
    arguments = ("paper.py", "--quick", "--seeds", "0,1", "--place", tmp_path)
    status, output = program(*arguments)
    assert status == 0, output[-3000:]
    results = (tmp_path / "results.md").read_text()
    assert (tmp_path / "temperatures.png").stat().st_size > 10_000
    for row in ("hard labels", "cached views", "digit 3", "7s and 8s only", "biases corrected", "permuted", "mse"):
        assert row in results
    status, output = program(*arguments)
    assert status == 0
    assert "epoch 1/" not in output
    assert (tmp_path / "results.md").read_text() == results


def test_cifar10_in_miniature(tmp_path):
    """The program for CIFAR-10 fills its table, here on the digits (see cifar10.py)."""
    miniature = (
        "--data digits --teacher resnet-8 --teacher-epochs 1 --student-epochs 1 --views 2 --seeds 0 --temperatures 4"
    )
    arguments = ("cifar10.py", *miniature.split(), "--place", tmp_path)
    status, output = program(*arguments)
    assert status == 0, output[-3000:]
    results = (tmp_path / "results.md").read_text()
    assert results.count("| resnet-8, ") == 2
    assert "T = 4 (chosen)" in results
