"""Train mlp-800 or cnn in a plain PyTorch loop, and print the seconds of each epoch. Runs without kdistill and TensorFlow.

    python tests/programs/bench/pytorch.py mlp-800 mnist.npz

The networks have the layers, the sizes and the initial weights' distribution of kdistill's. The loop does not count errors.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import numpy as np
import torch
from measuring import print_epochs
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


def prepare(options: Namespace, floats: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """Return a function that trains one epoch, with the data on the device."""
    torch.set_num_threads(options.threads or torch.get_num_threads())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = torch.from_numpy(floats)[:, None].to(device), torch.from_numpy(labels).to(device)
    network = (mlp(800) if options.network == "mlp-800" else cnn()).to(device)
    initialize(network, x[:1])
    network.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    call = network
    if options.compile:  # also for the last batch, which is smaller
        call = torch.compile(network, dynamic=False, mode="reduce-overhead" if device == "cuda" else "default")

    def epoch() -> None:
        for batch in torch.randperm(len(x), device=device).split(options.batch_size):
            with torch.autocast(device, torch.bfloat16, enabled=options.bfloat16):
                loss = nn.functional.cross_entropy(call(x[batch]), y[batch])
            loss.backward()
            adam.step()
            adam.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return epoch


if __name__ == "__main__":
    print_epochs(__doc__, prepare)
