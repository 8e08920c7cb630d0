"""Shared by the tests of the cluster: processes that can be found again, and a Ray cluster of them on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from helpers import KDISTILL, ROOT, Outcome, mentions

PATIENCE = 240.0  # seconds; Ray starts in 5 to 8 s, and on a busy machine in a minute


def wait_until(condition, what):
    """Wait until a condition is true, and return its value."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
    return value


@dataclass
class Processes:
    """Starts processes in a network and a working directory, and finds them and what they started by that directory."""

    prefix: list[str]
    place: Path

    def start(self, *command, **options):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TF_NUM_INTRAOP_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",  # otherwise Ray writes a token to the home directory
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "80000000",
        }
        return subprocess.Popen(
            [*self.prefix, *map(str, command)],
            env=environment,
            cwd=self.place,
            text=True,
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options,
        )

    def kdistill(self, *arguments):
        """Start a command of kdistill."""
        return self.start(*KDISTILL, *arguments)

    def read_until(self, process, *words):
        """Read what a process prints up to a line that has some words."""
        lines = iter(process.stdout.readline, "")
        assert any(mentions(line, *words) for line in lines), process.stderr.read()

    def run(self, *arguments):
        """Run a command of kdistill to its end."""
        return outcome(self.kdistill(*arguments))

    def alive(self):
        """Return the numbers of the processes that are left. All work in `place`; Ray's rewrite their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):  # it has ended, or belongs to someone else
                if path.readlink() == self.place:
                    found.append(int(path.parent.name))
        return found

    def stop(self):
        """Kill what is left."""
        while found := self.alive():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def outcome(process):
    """Wait for the end of a process."""
    out, err = process.communicate(timeout=PATIENCE)
    return Outcome(process.returncode, out, err)


@dataclass
class LocalCluster:
    """A head without CPUs, and nodes with one each."""

    processes: Processes
    address: str
    directory: str
    nodes: list = field(default_factory=list)

    def start(self, *options):
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=80000000", *options]
        return self.processes.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def add_nodes(self, number):
        """Start nodes until there are as many, one after the other: two at once may choose the same sockets (Ray 2.60)."""
        sockets = Path(self.directory) / "session_latest" / "sockets"
        while len(self.nodes) < number:
            taken = len(list(sockets.glob("raylet*")))
            self.nodes.append(self.start(f"--address={self.address}", "--num-cpus=1"))
            wait_until(lambda taken=taken: len(list(sockets.glob("raylet*"))) > taken, "a node")

    def kill_node(self):
        """Kill the last node with everything that runs on it."""
        os.killpg(self.nodes.pop().pid, signal.SIGKILL)
