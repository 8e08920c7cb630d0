"""`evaluate`: its measurements, how often it reads and loads, and datasets that were moved."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers import mentions, write_npz

from kdistill import data
from kdistill.networks import saved_models
from kdistill.networks.build import build_network
from kdistill.networks.loading import graph_digests
from kdistill.stages import measurement
from kdistill.workspace import Workspace, digest


def recorded(place):
    return json.loads((place / "manifest.json").read_text())


def untrained(place, model="mlp-30", seed=0, precision="float32"):
    """Save a network with random weights as training does."""
    place.mkdir(parents=True, exist_ok=True)
    network = build_network(model, (28, 28), 10, role="student", seed=seed, precision=precision)
    for variable in network.weights:  # biases begin with 0
        variable.assign(np.random.default_rng(seed).normal(0, 0.2, variable.shape))
    assert saved_models.save(network, place) is None
    return place / "saved_model"


def siblings(workspace, *names):
    """Add students with the architecture of `student` and other weights."""
    for seed, name in enumerate(names):
        place = shutil.copytree(workspace / "students/student", workspace / name)
        shutil.rmtree(place / "saved_model")
        untrained(place, seed=seed)
        manifest = recorded(place)
        manifest["outputs"] |= {name: digest(place / name) for name in ("saved_model", "model.keras")}
        (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "precision"), [("mlp-30", "float32"), ("cnn", "float32"), ("mlp-30", "mixed_bfloat16")]
)
def test_a_reused_graph_gives_the_same_bits(tmp_path, digits, model, precision):
    """A loaded graph with the variables of another network gives exactly that network's logits."""
    one, other = (untrained(tmp_path / str(seed), model, seed, precision) for seed in (0, 1))
    assert graph_digests(one) == graph_digests(other)
    assert digest(one / "variables") != digest(other / "variables")
    reused, inputs = saved_models.SavedNetwork.load(one), digits.test.read()[:200]
    first = reused.logits(inputs)
    assert reused.restore(other) is not None
    expected = saved_models.SavedNetwork.load(other).logits(inputs)
    np.testing.assert_array_equal(reused.logits(inputs), expected)
    assert not np.array_equal(first, expected)


def test_another_graph_is_not_reused(tmp_path):
    """Another architecture has another graph, and its variables do not fit."""
    one, other = untrained(tmp_path / "one", "mlp-10"), untrained(tmp_path / "other", "mlp-20")
    assert graph_digests(one) != graph_digests(other)
    assert saved_models.SavedNetwork.load(one).restore(other) is None


@pytest.mark.slow
def test_each_graph_is_loaded_once_and_each_row_read_once(run, workspace, monkeypatch):
    """Students of one architecture share one loaded graph, and are measured as they are alone."""
    siblings(workspace, "students/a", "students/b", "sweeps/s/students/c")
    loads, reads = [], []
    load, blocks = saved_models.SavedNetwork.load.__func__, data.Split.blocks
    record = classmethod(lambda cls, path, **options: loads.append(path.parent.name) or load(cls, path, **options))
    monkeypatch.setattr(saved_models.SavedNetwork, "load", record)
    monkeypatch.setattr(data.Split, "blocks", lambda split, rows: reads.append(split.name) or blocks(split, rows))
    outcome = run("evaluate", "--json")
    assert outcome.code == 0, outcome.err
    assert loads == ["teacher", "a"]
    assert reads == ["train", "test"]
    together = json.loads(outcome.out)
    assert [each["name"] for each in together[::2]] == ["teacher", "a", "b", "student"]
    for name in ("teacher", "b", "student"):
        alone = json.loads(run("evaluate", "--json", "--network", name).out)
        assert alone == [each for each in together if each["name"] == name]
    both = json.loads(run("evaluate", "--json", "--network", "s/c", "--network", "a").out)
    assert [each["name"] for each in both] == ["s/c", "s/c", "a", "a"]
    assert both[2:] == [each for each in together if each["name"] == "a"]
    assert both[0]["kl_to_teacher"] > 0


def test_small_memory_gives_the_same_measurements(run, workspace, monkeypatch):
    """Without room for rows or a teacher's logits, they are read and computed again for each network."""
    siblings(workspace, "students/a")
    expected = run("evaluate", "--json").out
    reads, blocks = [], data.Split.blocks
    monkeypatch.setattr(data.Split, "blocks", lambda split, rows: reads.append(split.name) or blocks(split, rows))
    monkeypatch.setattr(measurement, "CACHED_BYTES", 0)
    assert run("evaluate", "--json").out == expected
    assert sorted(reads) == ["test"] * 5 + ["train"] * 5  # 3 networks, and the teacher again for 2 students


def test_failing_network_is_skipped(run, workspace):
    """A warning names a network that does not fit its dataset, and the others are measured."""
    siblings(workspace, "students/a")
    place = workspace / "students/a"
    shutil.rmtree(place / "saved_model")
    small = build_network("mlp-30", (5, 5), 10, role="student", seed=0, precision="float32")
    saved_models.save(small, place)
    manifest = recorded(place)
    manifest["outputs"] |= {name: digest(place / name) for name in ("saved_model", "model.keras")}
    (place / "manifest.json").write_text(json.dumps(manifest))
    outcome = run("evaluate")
    assert outcome.code == 0
    assert len(outcome.err.splitlines()) == 1
    assert mentions(outcome.err, "warning", "student 'a'", "(5, 5)")
    assert run("evaluate", "--network", "a").code == 1
    (place / "saved_model/saved_model.pb").write_bytes(b"x")
    outcome = run("evaluate")
    assert (outcome.code, mentions(outcome.err, "student 'a'", "saved_model")) == (1, True)


@pytest.fixture(scope="module")
def unmoved(tmp_path_factory, digits):
    """A workspace of a dataset in a file, before the file is moved."""
    from helpers import run_command

    place = tmp_path_factory.mktemp("unmoved")
    few = {"x_train": digits.train.read()[:300], "y_train": digits.train.labels[:300]}
    path = write_npz(place / "old.npz", digits, **few)
    quick = ["--model", "mlp-10", "--epochs", "1", "--batch-size", "64"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdistill.cli.silence_native_stderr", lambda: None)
        for command in (["train-teacher", "--dataset", path, *quick], ["soften"], ["train-student", *quick]):
            outcome = run_command(*command, "-w", place / "workspace")
            assert outcome.code == 0, outcome.err
    return place


@pytest.fixture
def moved(unmoved, tmp_path):
    """A copy of that workspace whose manifests name a missing file; the data is in `new.npz`."""
    shutil.copytree(unmoved / "workspace", tmp_path / "workspace")
    shutil.copyfile(unmoved / "old.npz", tmp_path / "new.npz")
    (unmoved / "old.npz").unlink()
    yield tmp_path
    shutil.copyfile(tmp_path / "new.npz", unmoved / "old.npz")


QUICK = ["--model", "mlp-10", "--epochs", "1", "--batch-size", "64"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["evaluate"], ["export"], ["correct-bias"], ["verify"], ["soften"]],
    ids=" ".join,
)
def test_moved_data(run, moved, command):
    """A command fails without the new place of its dataset; with it there is no warning, and artifacts stay fresh."""
    if command == ["export"]:
        pytest.importorskip("ai_edge_litert")
    assert run(*command).code == 1
    outcome = run(*command, "--dataset", "new.npz")
    assert (outcome.code, outcome.err) == (0, "")
    if command[0] in ("export", "correct-bias", "soften"):
        again = run(*command, "--dataset", "new.npz")
        assert (again.up_to_date, again.err) == (True, "")


@pytest.mark.slow
def test_students_of_moved_data(run, moved):
    """A student is up to date with the moved data, and another student trains from it without a warning."""
    outcome = run("train-student", *QUICK, "--dataset", "new.npz")
    assert (outcome.up_to_date, outcome.err) == (True, "")
    outcome = run("train-student", *QUICK, "--dataset", "new.npz", "--name", "other")
    assert (outcome.code, outcome.err) == (0, "")
    digests = [Workspace("workspace").student(name).require().outputs["saved_model"] for name in ("student", "other")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("command", ["report", "export", "correct-bias"])
def test_other_data_is_refused(run, moved, command):
    """Data with another digest gives one line with both digests, and nothing is written."""
    before = digest(moved / "workspace")
    outcome = run(command, "--dataset", "digits")
    assert outcome.code == 1
    assert mentions(outcome.err, "error", "--dataset digits")
    assert len(outcome.err.splitlines()) == 1
    for source in (data.resolve("digits"), data.resolve("new.npz")):
        assert source.digest().removeprefix("sha256:")[:8] in outcome.err
    assert digest(moved / "workspace") == before
    assert run(command, "--dataset", "nosuch").code == 1


@pytest.mark.slow
def test_read_options_of_moved_data(run, tmp_path):
    """Moved data is read with the recorded options by default; with other options it is other data."""
    rows = ["a,b,kind,other", *(f"{i % 7},{i * 3},{i % 2},{i % 3}" for i in range(40))]
    (tmp_path / "old.csv").write_text("\n".join(rows))
    read = ["--dataset", "old.csv", "--labels", "kind", "--test-fraction", "0.2"]
    assert run("train-student", *read, "--alpha", "1", "--model", "small", "--epochs", "1").code == 0
    (tmp_path / "old.csv").rename("new.csv")
    for options in ([], ["--labels", "kind", "--test-fraction", "0.2"]):
        outcome = run("evaluate", "--dataset", "new.csv", *options)
        assert (outcome.code, outcome.err) == (0, "")
    assert run("evaluate", "--dataset", "new.csv", "--labels", "other", "--test-fraction", "0.2").code == 1
