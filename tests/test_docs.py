"""The README and the guides: links, names of commands and options, and examples that run as they are written.

In a Markdown file, `bash` blocks (kdistill commands) and `python` blocks are run, in order, in one directory. A Python block
that starts with `# NAME.py` is saved as that file. `console` and `text` blocks are not run. `toml` blocks are read.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import h5py
import matplotlib.image
import numpy as np
import pytest
from helpers import README, ROOT, commands, write_npz
from typer.main import get_command

import kdistill
from kdistill import SoftTargets, row_keys
from kdistill.cli import app
from kdistill.networks import exports
from kdistill.stages import configuration

GUIDES = sorted((ROOT / "kdistill/guides").glob("*.md"))
DOCUMENTS = [README, *GUIDES]
PYTHON_API = ROOT / "kdistill/guides/python-api.md"
README_LINES = 250
FEW_EPOCHS = ["--epochs", "2", "--xla", "off"]
QUICKER = {  # appended to the commands: the last value of an option counts
    "train-teacher": FEW_EPOCHS,
    "train-student": FEW_EPOCHS,
    "run": FEW_EPOCHS,
    "sweep": [*FEW_EPOCHS, "--seeds", "0"],
}
NEEDS = {  # packages of optional extras, by document
    "README": ["ai_edge_litert"],
    "data": ["pandas", "pyarrow"],
    "sweeps": ["ai_edge_litert"],
    "teachers": ["tf2onnx", "onnx", "onnxruntime"],
    "export": ["ai_edge_litert", "tf2onnx", "onnxruntime"],
    "predict": ["ai_edge_litert", "pyarrow"],
}
OTHER_OPTIONS = {
    "--help",
    "--logdir",
    "--only",
    "--runs",
    "--head",
    "--address",
    "--ntasks",
}  # those of Click and of other programs
ROWS = 300
CENTROIDS = """
import numpy as np
with np.load("mnist.npz") as data:
    centroids = np.stack([data["x_train"][data["y_train"] == label].mean(axis=0).ravel() for label in range(10)])
def teacher(rows):
    return -((rows.reshape(-1, 1, 784) - centroids) ** 2).mean(axis=2)
"""


def blocks(path):
    """Return the fenced blocks of a Markdown file as (language, content)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(path):
    """Return a Markdown file without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """Return the anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_in(script):
    """Return the arguments of each kdistill command in a shell script; any other program is an error."""
    record = "kdistill() { printf '%q ' \"$@\"; echo; }\n"
    bash = shutil.which("bash")
    result = subprocess.run(
        [bash, "-euc", record + script], env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def documented_commands():
    """Yield the document and the words of each kdistill command, including those that are not run."""
    for path in DOCUMENTS:
        for language, content in blocks(path):
            if language == "bash":
                yield from ((path, command) for command in commands_in(content))
            elif language == "console":
                lines = content.replace("\\\n", " ").splitlines()
                yield from ((path, shlex.split(line)[2:]) for line in lines if line.startswith("$ kdistill "))


def options(command):
    """Return the names of a command's options."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def quicker(command):
    """Return a command that does less work: few epochs, seeds and views."""
    if not {"--config", "--write-config"} & set(command):  # these exclude all other options
        command = [*command, *QUICKER.get(command[0], [])]
    if "--views" in command:
        command[command.index("--views") + 1] = "2"
    return command


def write_data(place, digits, made):
    """Write the files that the documents name: a part of the digits in every format, and a teacher's outputs."""
    x, y = digits.train.read()[:ROWS], digits.train.labels[:ROWS]
    x_test, y_test = digits.test.read()[:100], digits.test.labels[:100]
    write_npz(place / "mnist.npz", digits, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    np.savez(place / "pool.npz", x_train=np.roll(x, 1, axis=2))
    np.save(place / "x.npy", x)
    np.save(place / "y.npy", y)
    (place / "arrays").mkdir()
    for name, values in (("x_train", x), ("y_train", y), ("x_test", x_test), ("y_test", y_test)):
        np.save(place / "arrays" / f"{name}.npy", values)
    for number, (image, label) in enumerate(zip(x[:100], y[:100], strict=True)):
        folder = place / "photos" / f"class-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(folder / f"{number}.png", image, cmap="gray")
    with h5py.File(place / "data.h5", "w") as file:
        file["images"], file["digits"] = x, y
    table = x.reshape(ROWS, 4, 7, 4, 7).mean(axis=(2, 4)).reshape(ROWS, 16).round(2)
    lines = [",".join([*(f"part_{i}" for i in range(16)), "kind"])]
    lines += [",".join([*map(str, row), f"digit {label}"]) for row, label in zip(table, y, strict=True)]
    for name in ("measurements.csv", "measurements.data"):
        (place / name).write_text("\n".join(lines) + "\n")
    reviews = [f"a {'fine' if label else 'dull'} film,{label}" for label in np.arange(ROWS) % 2]
    (place / "reviews.csv").write_text(
        "\n".join(["text,label", *(f"{row} {review}" for row, review in enumerate(reviews))])
    )
    shutil.copytree(made / "teachers/teacher/saved_model", place / "their/saved_model")
    shutil.copyfile(made / "teachers/teacher/model.keras", place / "net.keras")
    logits = SoftTargets(made / "soft-targets/soft-targets.h5").logits()[:ROWS]
    np.savez(place / "logits.npz", logits=logits, row_keys=row_keys(x))
    np.savez(place / "outputs.npz", train=logits, test=np.eye(10, dtype=np.float32)[y_test])
    (place / "centroids.py").write_text(CENTROIDS)


def run_python(code, place):
    """Run a Python block in a new process; return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=place)
    assert result.returncode == 0, f"{code}\n{result.stderr}"
    return result.stdout


def run_document(path, place, run):
    """Run all examples of a document in order; return the output of the Python blocks."""
    printed = []
    for language, content in blocks(path):
        if language == "bash":
            for command in commands_in(content):
                outcome = run(*quicker(command))
                assert outcome.code == 0, f"kdistill {shlex.join(command)}\n{outcome.err}"
        elif language == "python" and (name := re.match(r"# (\w+\.py)\n", content)):
            (place / name[1]).write_text(content)
        elif language == "python" and ("import torch" not in content or importlib.util.find_spec("torch")):
            printed.append(run_python(content, place))
    return printed


@pytest.mark.slow
def test_readme_examples(run, tmp_path, digits, made):
    """The README's examples run in an empty directory with `mnist.npz`, and write the documented artifacts."""
    for package in NEEDS["README"]:
        pytest.importorskip(package)
    write_data(tmp_path, digits, made)
    (printed,) = run_document(README, tmp_path, run)
    assert re.findall(r"^(\w+), (\w+) rows: \d+ errors of (\d+)$", printed, re.MULTILINE) == [
        ("teacher", "train", "1437"),
        ("teacher", "test", "360"),
        ("student", "train", "1437"),
        ("student", "test", "360"),
    ]
    for path in (
        "students/distilled",
        "students/hard-labels",
        "plots/learning-curves.png",
        "exports/small-tflite-int8",
    ):
        assert (tmp_path / "workspace" / path).exists()
    verified = run("verify")
    assert verified.code == 0, verified.out


@pytest.mark.slow
def test_python_api_examples(run, tmp_path):
    """The examples of the Python API run in an empty directory: the stages, a sweep, Keras's `fit`, the losses."""
    stages, _, fit, reading, _ = run_document(PYTHON_API, tmp_path, run)
    assert re.findall(r"^(\w+), (\w+) rows: \d+ errors of (\d+)", stages, re.MULTILINE) == [
        ("teacher", "train", "1437"),
        ("teacher", "test", "360"),
        ("student", "train", "1437"),
        ("student", "test", "360"),
    ]
    assert "1,437 rows of 10 classes, T = 20 (1437, 10)" in fit
    assert "val_accuracy" in fit
    assert re.search(r"^1437 10 20\.0 \d+\n\(1437, 16\) \(1437,\)\n\(2, 10\)$", reading, re.MULTILINE)
    for path in ("student.keras", "workspace/plots/learning-curves.png", "workspace/sweeps/sweep/table.csv"):
        assert (tmp_path / path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in GUIDES if path != PYTHON_API], ids=lambda path: path.stem)
def test_guide_examples(path, run, workspace, digits, made):
    """The examples of a guide run after the four stages, and every artifact passes `kdistill verify`."""
    for package in NEEDS.get(path.stem, []):
        pytest.importorskip(package)
    if not any(language in ("bash", "python") for language, _ in blocks(path)):
        pytest.skip("no examples to run")
    write_data(workspace.parent, digits, made)
    if "onnx" in NEEDS.get(path.stem, []):
        exports.write_onnx(made / "teachers/teacher/saved_model", workspace.parent / "net.onnx", "none", None)
    run_document(path, workspace.parent, run)
    verified = run("verify")
    assert verified.code == 0, verified.out


def test_pytorch_example(run, tmp_path, digits, made):
    """The PyTorch example is a teacher as it is written."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    write_data(tmp_path, digits, made)
    (example,) = (content for path in GUIDES for _, content in blocks(path) if "import torch" in content)
    (tmp_path / "torch_teacher.py").write_text(example)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    outcome = run("soften", "--teacher", "torch_teacher:logits", "--dataset", "mnist.npz")
    assert outcome.code == 0, outcome.err
    stored = SoftTargets(tmp_path / "workspace/soft-targets/soft-targets.h5").logits()
    weights, bias = (parameter.detach().numpy() for parameter in network.parameters())
    with np.load(tmp_path / "mnist.npz") as data:
        inputs = data["x_train"].reshape(-1, 784).astype(np.float32) / 255
    np.testing.assert_allclose(stored, inputs @ weights.T + bias, atol=1e-4)


def test_readme_is_short():
    """The README has at most 250 lines."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_every_block_has_a_known_language():
    """Each fenced block says whether it is run."""
    for path in DOCUMENTS:
        languages = {language for language, _ in blocks(path)}
        assert languages <= {"bash", "python", "console", "text", "toml"}, path
        assert path.read_text(encoding="utf-8").count("```") == 2 * len(blocks(path)), path


def test_configuration_files_are_valid(tmp_path):
    """The configuration files in the documents have stages, and only options that these have."""
    files = [content for path in DOCUMENTS for language, content in blocks(path) if language == "toml"]
    assert files
    for content in files:
        (tmp_path / "kdistill.toml").write_text(content)
        configuration.read(str(tmp_path / "kdistill.toml"))


def test_links_resolve():
    """Links lead to files that exist, and anchors to headings."""
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.is_file(), f"{path}: {target}"
            assert not anchor or anchor in anchors(file), f"{path}: {target}"


def test_links_of_guides_stay_inside_the_package():
    """Guides are shipped with the package: they link to each other, and outside it only to pictures."""
    for path in GUIDES:
        outside = re.findall(r"(?<!!)\[[^\]]*\]\((\.\./[^)]+)\)", prose(path))
        assert not outside, path


def test_every_guide_is_listed():
    """The README and the overview list every guide."""
    readme, index = README.read_text(encoding="utf-8"), (ROOT / "kdistill/guides/index.md").read_text(encoding="utf-8")
    for path in GUIDES:
        assert f"(kdistill/guides/{path.name})" in readme
        assert path.stem == "index" or f"({path.name})" in index


def test_every_command_is_in_the_table():
    """The README's table has one row for each command of the app, and no other."""
    listed = re.findall(r"^\| `kdistill ([a-z][\w-]*)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(commands())


def test_reference_is_the_generated_one():
    """`kdistill/guides/reference.md` is what `make reference` writes."""
    from programs.reference import generate

    assert (ROOT / "kdistill/guides/reference.md").read_text() == generate()


def test_documented_commands_exist():
    """Commands in examples, including those that are not run, have the options that they are given."""
    known = commands()
    checked = 0
    for path, (name, *arguments) in documented_commands():
        assert name in known, f"{path}: kdistill {name}"
        given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        assert given <= options(known[name]), f"{path}: kdistill {name} {shlex.join(arguments)}"
        checked += 1
    assert checked > len(known)


def test_documented_options_exist():
    """Options and subcommands in the text belong to the app."""
    root = get_command(app)
    known = options(root).union(OTHER_OPTIONS, *(options(command) for command in root.commands.values()))
    for path in DOCUMENTS:
        text = prose(path)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\w", text)) <= known, path
        named = set(re.findall(r"`kdistill ([a-z][\w-]*)", text))
        assert named <= set(root.commands), path


def test_results_have_the_documented_attributes():
    """The table of stages in the guide to the Python API names attributes of what each function returns."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*) \|$", PYTHON_API.read_text(encoding="utf-8"), re.MULTILINE)
    described = {function: (settings, text) for function, settings, text in rows if function in kdistill.STAGES}
    assert described.keys() == set(kdistill.STAGES)
    for function, (settings, text) in described.items():
        hints = typing.get_type_hints(getattr(kdistill, function))
        assert hints["settings"] is getattr(kdistill, settings)
        results = typing.get_args(hints["return"]) or (hints["return"],)
        attributes = {field.name for result in results for field in dataclasses.fields(result)}
        documented = re.findall(r"`(\w+)`", text)
        assert documented
        assert set(documented) <= attributes, function


def test_settings_have_the_documented_fields():
    """The table of groups in the guide to the Python API names their fields."""
    rows = re.findall(r"^\| `([A-Z]\w+)` \| `(\w+)` \| (.*) \|$", PYTHON_API.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 3
    for name, field, text in rows:
        group = getattr(kdistill, name)
        assert set(re.findall(r"`(\w+)`", text)) <= {each.name for each in dataclasses.fields(group)}, name
        assert any(field in cls.__dataclass_fields__ for cls in (kdistill.TrainStudent, kdistill.Sweep)), field


def test_documented_names_exist():
    """Dotted names of the package in the text can be imported, and the Python API's guide has every public name."""
    for path in DOCUMENTS:
        for name in re.findall(r"`(kdistill\.\w[\w.]*)", prose(path)):
            if Path(name).suffix in (".json", ".log", ".toml"):
                continue
            module, _, attribute = name.rpartition(".")
            try:
                value = getattr(importlib.import_module(module), attribute, None) or importlib.import_module(name)
            except ModuleNotFoundError:
                value = None
            assert value is not None, f"{path}: {name}"
    text = PYTHON_API.read_text(encoding="utf-8")
    missing = [name for name in kdistill.__all__ if not re.search(rf"\b{name}\b", text)]
    assert not missing
