"""Python functions as teachers: scikit-learn, PyTorch, and everything that a function can return or do wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import QUICK, mentions

from kdistill.data import user_code
from kdistill.evaluation import metrics
from kdistill.soft_targets import SoftTargets

DIGITS = ["--dataset", "digits"]
MODULE = """
import numpy as np
from pathlib import Path
print("a module may print")
HERE = Path(__file__).parent
def logits(x):
    print("and so may a function")
    assert x.dtype == np.uint8 and x.shape[1:] == (28, 28)
    with open(HERE / "calls.txt", "a") as file:
        print(len(x), file=file)
    values = x[:, 14, 9:19].astype(float) / 64
    x[:] = 0  # it has a copy
    return values
def log_probabilities(x):
    values = logits(x)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))
def probabilities(x):
    return np.exp(log_probabilities(x))
def narrow(x):
    return logits(x)[:, :3]
def labels(x):
    return logits(x).argmax(axis=1)
def votes(x):
    return (64 * logits(x)).astype(int)
def nothing(x):
    pass
def text(x):
    return "seven"
def few_rows(x):
    return logits(x)[1:]
def ragged(x):
    return [[1.0], [1.0, 2.0]]
def fails(x):
    raise RuntimeError("the service is down")
def stops(x):
    raise SystemExit("bye")
def nan(x):
    values = logits(x)
    values[values.sum(axis=1) == values.sum(axis=1)[5]] = np.nan
    return values
def interrupted(x):
    values = logits(x)
    if (HERE / "interrupt").exists() and len((HERE / "calls.txt").read_text().split()) == 6:
        raise KeyboardInterrupt
    return values
a_number = 3
"""


def soft_targets(name="soft-targets"):
    return SoftTargets(f"workspace/soft-targets/{name}.h5")


@pytest.fixture
def module(tmp_path, request):
    """Write a module with functions to the working directory, under a new name, and return the name."""
    name = f"teacher_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


def expected_logits(digits):
    return digits.train.read()[:, 14, 9:19].astype(np.float32) / 64


def test_logits_and_probabilities(run, module, digits):
    """Logits are stored as they are, log-probabilities too; probabilities are recognized and give the same softmax."""
    expected = expected_logits(digits)
    for function in ("logits", "log_probabilities", "probabilities"):
        outcome = run("soften", "--teacher", f"{module}:{function}", *DIGITS, "--name", function)
        assert outcome.code == 0, outcome.err
        assert mentions(outcome.out, f"{module}:{function}", "probabilities") == (function == "probabilities")
        assert "may" not in outcome.out
        logits = soft_targets(function).logits()
        np.testing.assert_allclose(metrics.log_softmax(logits), metrics.log_softmax(expected), atol=1e-4)
    np.testing.assert_array_equal(soft_targets("logits").logits(), expected)
    assert soft_targets("logits").teacher == f"{module}:logits"
    assert run("verify").code == 0  # it finds the rows by their keys, so the function has changed a copy


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("narrow", ["(256, 3)", "(256, 10)"]),
        ("labels", ["(256,)", "int64", "(256, 10)"]),
        ("votes", ["(256, 10)", "int64"]),
        ("nothing", ["None", "(256, 10)"]),
        ("text", ["str", "(256, 10)"]),
        ("few_rows", ["(255, 10)", "(256, 10)"]),
        ("ragged", ["ValueError"]),
        ("fails", ["RuntimeError: the service is down", 34]),
        ("stops", ["SystemExit", "bye"]),
        ("nan", ["row 5"]),
        ("a_number", ["no function"]),
        ("nosuch", ["no function"]),
    ],
)
def test_failures_are_one_line_with_the_name_of_the_function(run, tmp_path, module, function, words):
    outcome = run("soften", "--teacher", f"{module}:{function}", *DIGITS)
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if "may" not in line]
    assert mentions(line, f"{module}:{function}", *words), line
    assert not (tmp_path / "workspace").exists()


def test_wrong_names(run, module):
    """A module that does not exist, one with its extension, and one that can't be imported."""
    assert mentions(run("soften", "--teacher", "nosuch:f", *DIGITS).err, "--teacher nosuch:f", "nosuch")
    assert mentions(run("soften", "--teacher", "m.py:f", *DIGITS).err, "--teacher m.py:f", "--teacher m:f")
    outcome = run("soften", "--teacher", f"{module}:logits")
    assert (outcome.code, mentions(outcome.err, "--dataset")) == (2, True)
    with open(f"{module}.py", "a") as file:
        file.write("import nosuch_library\n")
    assert mentions(run("soften", "--teacher", f"{module}:logits", *DIGITS).err, f"{module}:logits", "nosuch_library")


def test_batch_size_limits_every_call(run, tmp_path, module):
    """No command calls the function with more rows than `--batch-size`."""
    options = ["--teacher", f"{module}:logits", *DIGITS, "--batch-size", "100", "--top-k", "3", "--dtype", "float16"]
    assert run("soften", *options).code == 0
    assert run("verify").code == 0
    calls = list(map(int, (tmp_path / "calls.txt").read_text().split()))
    assert max(calls) == 100
    assert sum(calls) == 256 + 1437 + 256


def test_interrupted_run_resumes(run, tmp_path, module, digits):
    """Rows that the function has answered for are not asked again."""
    (tmp_path / "interrupt").touch()
    options = ["--teacher", f"{module}:interrupted", *DIGITS, "--batch-size", "300"]
    assert run("soften", *options).code == 130
    (tmp_path / "interrupt").unlink()
    (tmp_path / "calls.txt").unlink()
    outcome = run("soften", *options)
    assert mentions(outcome.out, "1,200"), outcome.out
    assert (tmp_path / "calls.txt").read_text().split() == ["256", "237"]
    np.testing.assert_array_equal(soft_targets().logits(), expected_logits(digits))


@pytest.mark.slow
def test_views_and_ensembles(run, module, linear, digits):
    """A function takes part in an ensemble with a SavedModel, in views too; `verify` computes a sample again."""
    members = ["--teacher", f"{module}:logits", "--teacher", linear[0] / "one"]
    options = ["--mean", "geometric", "--augment", "shift:1", "--views", "2", *DIGITS]
    assert run("soften", *members, *options).code == 0
    of_network = linear[1].logits(np.float32(digits.train.read()) / 255).numpy()
    expected = (expected_logits(digits) + of_network) / 2
    np.testing.assert_allclose(soft_targets().logits(), expected, atol=1e-4)
    assert run("verify").code == 0
    assert run("train-student", *QUICK).code == 0
    table = json.loads(run("evaluate", "--json").out)
    assert [row["name"] for row in table if row["split"] == "test"] == [f"{module}:logits + one", "student"]


def test_staleness(run, tmp_path, module):
    """The digest covers the function's name, the source and the artifacts; no command imports the module to compute it."""
    source, weights = tmp_path / f"{module}.py", tmp_path / "weights.bin"
    weights.write_bytes(b"1")
    source.write_text(MODULE + "ARTIFACTS: list = ['weights.bin']\nopen(HERE / 'imported', 'w')\n")
    options = ["soften", "--teacher", f"{module}:logits", *DIGITS]
    assert run(*options).code == 0
    (tmp_path / "imported").unlink()
    assert run(*options).up_to_date
    assert json.loads(run("status", "--json").out)["artifacts"][0]["state"] == "fresh"
    weights.write_bytes(b"2")
    (artifact,) = json.loads(run("status", "--json").out)["artifacts"]
    assert (artifact["state"], artifact["command"]) == ("stale", f"kdistill {' '.join(options)}")
    assert f"{module}:logits" in artifact["reasons"][0]
    assert not (tmp_path / "imported").exists()
    assert mentions(run(*options).out, "teacher", "changed")
    outcome = run("soften", "--teacher", f"{module}:log_probabilities", *DIGITS)
    assert mentions(outcome.out, f"{module}:logits", f"{module}:log_probabilities")
    weights.unlink()
    assert mentions(run(*options).err, f"--teacher {module}:logits", weights, "ARTIFACTS")


@pytest.mark.parametrize(
    "assignment",
    ["ARTIFACTS = [str(HERE)]", "ARTIFACTS = 'a'", "ARTIFACTS = []\nARTIFACTS = []", "if HERE: ARTIFACTS = []"],
)
def test_artifacts_must_be_written_out(run, tmp_path, module, assignment):
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write(assignment)
    outcome = run("soften", "--teacher", f"{module}:logits", *DIGITS)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert mentions(outcome.err, tmp_path / f"{module}.py", "ARTIFACTS")


def test_functions_of_one_module_have_different_digests(run, module):
    assert user_code.digest(f"{module}:logits", "teacher") != user_code.digest(f"{module}:nan", "teacher")


FOREST = """
from pathlib import Path
import joblib
ARTIFACTS = ["forest.joblib"]
forest = joblib.load(Path(__file__).parent / ARTIFACTS[0])
def teacher(x):
    return forest.predict_proba(x.reshape(len(x), -1))
"""


@pytest.mark.slow
def test_forest(run, tmp_path, digits):
    """A forest's probabilities, with many zeros, teach a student; its test errors are measured, and it can change."""
    ensemble = pytest.importorskip("sklearn.ensemble", reason="scikit-learn is not installed")
    import joblib

    def flat(split):
        return split.read().reshape(len(split), -1)

    for seed in (0, 1):
        forest = ensemble.RandomForestClassifier(20, random_state=seed).fit(flat(digits.train), digits.train.labels)
        joblib.dump(forest, tmp_path / f"{seed}.joblib")
    (tmp_path / "0.joblib").rename(tmp_path / "forest.joblib")
    (tmp_path / "forest_teacher.py").write_text(FOREST)
    options = ["soften", "--teacher", "forest_teacher:teacher", *DIGITS, "--temperature", "2"]
    outcome = run(*options)
    assert mentions(outcome.out, "forest_teacher:teacher", "probabilities")
    assert run(*options).up_to_date
    assert run("verify").code == 0
    assert run("train-student", *QUICK).code == 0
    rows = {row["name"]: row for row in json.loads(run("evaluate", "--json").out) if row["split"] == "test"}
    expected = joblib.load(tmp_path / "forest.joblib").predict(flat(digits.test))
    assert rows["forest_teacher:teacher"]["errors"] == (expected != digits.test.labels).sum()
    assert rows["student"]["agreement"] > 0.5
    (tmp_path / "1.joblib").rename(tmp_path / "forest.joblib")
    assert mentions(run("status").out, "stale", "forest_teacher:teacher")


TORCH = """
from pathlib import Path
import torch
ARTIFACTS = ["net.pt"]
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
net.load_state_dict(torch.load(Path(__file__).parent / ARTIFACTS[0]))
def teacher(x):
    with torch.no_grad():
        return net(torch.from_numpy(x).float() / 255)
def with_gradient(x):
    return net(torch.from_numpy(x).float() / 255)
"""


@pytest.mark.slow
def test_pytorch_network(run, tmp_path, digits):
    """Its logits are stored; a tensor that needs a gradient is refused with PyTorch's advice."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    (tmp_path / "torch_teacher.py").write_text(TORCH)
    outcome = run("soften", "--teacher", "torch_teacher:teacher", *DIGITS)
    assert outcome.code == 0, outcome.err
    weights, bias = (parameter.detach().numpy() for parameter in net.parameters())
    inputs = digits.train.read().reshape(-1, 784).astype(np.float32) / 255
    np.testing.assert_allclose(soft_targets().logits(), inputs @ weights.T + bias, atol=1e-4)
    assert run("verify").code == 0
    outcome = run("soften", "--teacher", "torch_teacher:with_gradient", *DIGITS, "--name", "b")
    assert mentions(outcome.err, "torch_teacher:with_gradient", "tensor.detach")
