"""Train a network in a plain PyTorch loop, and print the seconds of each epoch. Runs without kdistill and TensorFlow.

    python tests/programs/bench/pytorch.py mlp-800 mnist.npz

The networks have the layers, the sizes and the initial weights' distribution of kdistill's. The loop does not count errors.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


def mlp(units: int) -> nn.Module:
    dense = nn.LazyLinear(units), nn.ReLU(), nn.Linear(units, units), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *dense, nn.Linear(units, 10))


def cnn() -> nn.Module:
    convolutions = [nn.LazyConv2d(32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [layer for _ in range(4) for layer in (nn.LazyLinear(56), nn.ReLU())]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense, nn.Linear(56, 10))


def initialize(network: nn.Module, row: torch.Tensor) -> None:
    """Draw the weights as Keras does: Glorot's uniform distribution, and biases of 0."""
    network(row)  # gives lazy layers their sizes
    for parameter in network.parameters():
        nn.init.xavier_uniform_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)


def main() -> None:
    """Train, and print the seconds of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("mlp-800", "cnn"))
    parser.add_argument(
        "data", type=Path, help=".npz file with x_train (rows, height, width) uint8 and y_train (rows,)"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action="store_true", help="compute in mixed precision")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    with np.load(options.data, allow_pickle=False) as arrays:
        inputs = torch.from_numpy(arrays["x_train"].astype(np.float32) / 255.0)[:, None].to(device)
        labels = torch.from_numpy(arrays["y_train"].astype(np.int64)).to(device)
    network = mlp(800) if options.network == "mlp-800" else cnn()
    network.to(device)
    initialize(network, inputs[:1])
    network.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    call = network
    if options.compile:  # also for the last batch, which is smaller
        call = torch.compile(network, dynamic=False, mode="reduce-overhead" if device == "cuda" else "default")
    for _ in range(options.epochs):
        start = time.perf_counter()
        for batch in torch.randperm(len(inputs), device=device).split(options.batch_size):
            with torch.autocast(device, torch.bfloat16, enabled=options.bfloat16):
                loss = nn.functional.cross_entropy(call(inputs[batch]), labels[batch])
            loss.backward()
            adam.step()
            adam.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
