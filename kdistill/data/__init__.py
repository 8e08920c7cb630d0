"""Datasets: from a name to checked rows and labels, the keys that identify rows, selection, and augmentation.

A dataset has training and test rows: inputs of one shape, either uint8 (which networks see scaled to [0, 1]) or other
numbers (which they see as they are), and class numbers from 0. A transfer set has only training rows, with or without
labels. To add a format, write a `Reader` in `kdistill.data.readers` and add a line to `settings.catalog.DATA_FORMATS`.
"""

from kdistill.data.dataset import Dataset, Split, concatenate
from kdistill.data.selection import describe_selection, selection_mask
from kdistill.data.sources import Source, load, resolve, short_name

__all__ = [
    "NO_LABEL",
    "Dataset",
    "Source",
    "Split",
    "concatenate",
    "describe_selection",
    "load",
    "resolve",
    "selection_mask",
    "short_name",
]
