"""ONNX networks as teachers: exported by kdistill, made with onnx's own helper, and everything that is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import mentions

from kdistill.soft_targets import SoftTargets
from kdistill.teachers import onnx_networks

onnx = pytest.importorskip("onnx", reason="kdistill[onnx] is not installed")
pytest.importorskip("onnxruntime", reason="kdistill[onnx] is not installed")

COLORS = (6, 4, 3)  # height, width, channels
FLOAT = onnx.TensorProto.FLOAT


def soft_targets(name="soft-targets"):
    return SoftTargets(f"workspace/soft-targets/{name}.h5")


def linear(path, shape, *, dtype=FLOAT, scores=("scores",), pixels=72, classes=3, **save):
    """Write a network that flattens its inputs and multiplies them with random weights; return the weights."""
    weights = np.random.default_rng(0).normal(0, 0.1, (pixels, classes)).astype(np.float32)
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("Cast", ["images"], ["floats"], to=FLOAT),
        make("Reshape", ["floats", "shape"], ["flat"]),
        *(make("MatMul", ["flat", "weights"], [name]) for name in scores),
        make("ArgMax", [scores[0]], ["label"], axis=1),
    ]
    flat = onnx.numpy_helper.from_array(np.array([-1, pixels]), "shape")
    outputs = [info("label", onnx.TensorProto.INT64, None), *(info(name, FLOAT, ["rows", classes]) for name in scores)]
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [info("images", dtype, shape)],
        outputs,
        [flat, onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, path, **save)
    return weights


@pytest.fixture
def colors(tmp_path, monkeypatch):
    """Write a dataset of small color images to `colors.npz` in the working directory, and return the training rows."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(1)
    labels = np.arange(60) % 3
    inputs = draw.integers(0, 256, (60, *COLORS), np.uint8)
    np.savez("colors.npz", x_train=inputs, y_train=labels, x_test=inputs[:9], y_test=labels[:9])
    return inputs


def soften(run, *options):
    return run("soften", "--teacher", "net.onnx", "--dataset", "colors.npz", *options)


def flat(inputs, layout="channels-last"):
    images = np.moveaxis(inputs, -1, 1) if layout == "channels-first" else inputs
    return images.reshape(len(inputs), -1).astype(np.float32)


@pytest.mark.slow
def test_network_that_kdistill_exported(run, workspace):
    """The teacher of the workspace and its export have the same logits, and `evaluate` the same errors."""
    pytest.importorskip("tf2onnx", reason="kdistill[onnx] is not installed")
    assert run("export", "--network", "teacher", "--format", "onnx").code == 0
    path = workspace / "exports/teacher-onnx/model.onnx"
    assert run("soften", "--teacher", path, "--dataset", "digits", "--name", "outside").code == 0
    np.testing.assert_allclose(soft_targets("outside").logits(), soft_targets().logits(), atol=1e-3)
    assert (
        run("train-student", "--soft-targets", "outside", "--model", "small", "--epochs", "1", "--xla", "off").code == 0
    )
    rows = {row["name"]: row for row in json.loads(run("evaluate", "--json").out) if row["split"] == "test"}
    assert rows["model.onnx"]["errors"] == rows["teacher"]["errors"]
    assert run("verify").code == 0


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
def test_layout_is_detected(run, colors, layout):
    """By the sizes of the axes, where the network has them."""
    shape = [3, None, 4] if layout == "channels-first" else ["height", 4, 3]
    weights = linear("net.onnx", ["rows", *shape])
    outcome = soften(run)
    assert outcome.code == 0, outcome.err
    np.testing.assert_allclose(soft_targets().logits(), flat(colors, layout) / 255 @ weights, atol=1e-5)
    other = {"channels-first": "channels-last", "channels-last": "channels-first"}[layout]
    assert mentions(soften(run, "--teacher-layout", other).err, "--teacher-layout", other, "net.onnx")


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
@pytest.mark.parametrize("shape", [["rows", "a", "b", "c"], None])
def test_layout_that_the_shapes_leave_open(run, colors, layout, shape):
    """It must be given, and is recorded: `verify` uses it too."""
    weights = linear("net.onnx", shape)
    outcome = soften(run)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert mentions(outcome.err, "net.onnx", "--teacher-layout channels-last or channels-first")
    assert soften(run, "--teacher-layout", layout).code == 0
    np.testing.assert_allclose(soft_targets().logits(), flat(colors, layout) / 255 @ weights, atol=1e-5)
    assert run("verify").code == 0
    assert soften(run, "--teacher-layout", layout).up_to_date
    assert mentions(run("status", "--json").out, "fresh")


@pytest.mark.parametrize("shape", [[None, 28, 28], [None, 1, 28, 28], [None, 28, 28, 1], [100, 28, 28]])
def test_gray_images_get_an_axis_for_the_channel(run, digits, shape):
    """If the network has one. Batches of one size are padded."""
    weights = linear("net.onnx", shape, pixels=784, classes=10)
    assert run("soften", "--teacher", "net.onnx", "--dataset", "digits").code == 0
    np.testing.assert_allclose(soft_targets().logits(), flat(digits.train.read()) / 255 @ weights, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "options", "scale"),
    [
        (FLOAT, [], 1 / 255),
        (FLOAT, ["--teacher-input", "raw"], 1),
        (onnx.TensorProto.FLOAT16, [], 1 / 255),
        (onnx.TensorProto.UINT8, [], 1),
        (onnx.TensorProto.INT64, [], 1),
    ],
)
def test_input_types(run, colors, dtype, options, scale):
    """Floats are scaled to [0, 1] unless --teacher-input says otherwise, and integers are not."""
    weights = linear("net.onnx", ["rows", *COLORS], dtype=dtype)
    assert soften(run, *options).code == 0
    np.testing.assert_allclose(
        soft_targets().logits(), flat(colors) * np.float32(scale) @ weights, rtol=1e-3, atol=2e-3
    )


def test_outputs(run, colors):
    """The only output of floats is used; of several, --output names one."""
    linear("net.onnx", ["rows", *COLORS], scores=("one", "two"))
    assert mentions(soften(run).err, "net.onnx", "--output", "one, two")
    assert mentions(soften(run, "--output", "label").err, "'label'", "one, two")
    assert soften(run, "--output", "two").code == 0
    assert run("verify").code == 0


def test_weights_beside_the_file_are_part_of_the_digest(run, colors, tmp_path):
    """As PyTorch and onnx write them. If they change, the soft targets are stale."""
    external = {"save_as_external_data": True, "location": "net.onnx.data", "size_threshold": 100}
    weights = linear("net.onnx", ["rows", *COLORS], **external)
    data = tmp_path / "net.onnx.data"
    assert data.stat().st_size >= weights.nbytes
    assert soften(run).code == 0
    np.testing.assert_allclose(soft_targets().logits(), flat(colors) / 255 @ weights, atol=1e-5)
    before = onnx_networks.digest(tmp_path / "net.onnx")
    data.write_bytes(data.read_bytes()[:-1] + b"\0")
    assert onnx_networks.digest(tmp_path / "net.onnx") != before
    assert mentions(run("status").out, "stale", tmp_path / "net.onnx")
    data.unlink()
    outcome = soften(run)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert mentions(outcome.err, tmp_path / "net.onnx")


def test_refused_networks(run, colors, tmp_path, monkeypatch):
    """In one line with the file, and what to do."""
    (tmp_path / "net.onnx").write_text("hello")
    outcome = soften(run)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert mentions(outcome.err, tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"")
    assert mentions(soften(run).err, tmp_path / "net.onnx")
    linear("net.onnx", ["rows", 28, 28], pixels=784)
    assert mentions(soften(run).err, "(28, 28)", "(6, 4, 3)", "colors.npz")
    linear("net.onnx", ["rows", *COLORS], classes=5)
    assert mentions(soften(run).err, 5, 3, "colors.npz")
    linear("net.onnx", ["rows", *COLORS], pixels=36)  # two rows of outputs for each row
    assert mentions(soften(run).err, tmp_path / "net.onnx", "(120, 3)")
    assert run("soften", "--teacher", "nosuch.onnx", "--dataset", "colors.npz").code == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert mentions(soften(run).err, "pip install 'kdistill[onnx]'")
    assert not (tmp_path / "workspace").exists()
