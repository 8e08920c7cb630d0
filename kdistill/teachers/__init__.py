"""Teachers: networks, functions, ensembles of these, and logits that another program has computed."""

from kdistill.teachers.ensemble import Ensemble, RowBlock
from kdistill.teachers.find import (
    EXTERNAL_OPTIONS,
    UnloadedTeacher,
    digest,
    find_teacher,
    load_ensemble,
    reload_ensemble,
    reload_for_test_rows,
)
from kdistill.teachers.outputs import ZERO_MASS, ZeroCount
from kdistill.teachers.precomputed import PrecomputedLogits, StoredTeacher, read_logits

__all__ = [
    "EXTERNAL_OPTIONS",
    "ZERO_MASS",
    "Ensemble",
    "PrecomputedLogits",
    "RowBlock",
    "StoredTeacher",
    "UnloadedTeacher",
    "ZeroCount",
    "digest",
    "find_teacher",
    "load_ensemble",
    "read_logits",
    "reload_ensemble",
    "reload_for_test_rows",
]
