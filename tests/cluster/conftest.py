"""Fixtures: a network with loopback only, and a Ray cluster in it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from ray_cluster import LocalCluster, Processes, wait_until


@pytest.fixture(scope="session")
def network():
    """Return the words in front of a command that runs in a network with nothing but the loopback.

    Ray would otherwise look for an address that other machines can reach.
    """
    holder = None
    if shutil.which("unshare") and shutil.which("nsenter"):
        script = "ip link set lo up && echo ready && exec sleep 100000"
        holder = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    if holder is None or holder.stdout.readline() != b"ready\n":
        yield []
        return
    yield ["nsenter", "-t", str(holder.pid), "-n"]
    holder.kill()
    holder.wait()


@pytest.fixture(scope="module")
def cluster(network):
    """A cluster whose head has no CPUs; tests add nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as directory:  # short, for sockets
        cluster = LocalCluster(Processes(network, Path(directory)), f"127.0.0.1:{port}", directory)
        options = [f"--port={port}", f"--temp-dir={directory}", "--num-cpus=0", "--include-dashboard=false"]
        head = cluster.start("--head", *options)
        try:
            wait_until(
                lambda: (Path(directory) / "ray_current_cluster").exists() or head.poll() is not None, "the head"
            )
            assert head.poll() is None, "the head has not started"
            yield cluster
        finally:
            cluster.processes.stop()


@pytest.fixture
def two_workers(cluster):
    """The options that join a cluster with two workers."""
    cluster.add_nodes(2)
    return ["--ray", cluster.address]
