"""`report`: a page that is well formed, escapes all names, and has the numbers of `evaluate` and `sweep`."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest
from helpers import QUICK, imports_of, run_command
from pages import check_page, page_of
from PIL import Image

from kdistill.stages.report.html import Html, element, join
from kdistill.stages.report.pictures import encode

NAMES = ('<script>alert("1")<', "a\"b' onload='x", "c & <b>d")
TRAINING = (*QUICK[2:], "--model", "mlp-10")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Return a workspace on pictures whose classes and directory have hostile names, with everything that is reported."""
    place = tmp_path_factory.mktemp("reported")
    draw = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        folder = place / 'it\'s "<i>"' / name
        folder.mkdir(parents=True)
        for row in range(40):
            values = draw.integers(0, 200, (6, 5, 3)) + 15 * number
            Image.fromarray(values.astype(np.uint8)).save(folder / f"{row}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdistill.cli.silence_native_stderr", lambda: None)
        patch.chdir(place)
        for command in (
            ["train-teacher", "--dataset", place / 'it\'s "<i>"', "--test-fraction", "0.5", *QUICK],
            ["soften"],
            ["train-student", *TRAINING],
            ["train-student", *TRAINING, "--alpha", "1", "--name", "plain"],
            ["sweep", *TRAINING, "--temperature", "4", "--seeds", "0,1", "--validation-fraction", "0.2"],
            ["report"],
        ):
            outcome = run_command(*command)
            assert outcome.code == 0, outcome.err
    return place


@pytest.mark.slow
def test_page_is_accessible_and_needs_nothing_else(reported):
    """Tags are balanced, headings in order, tables and pictures described; there is no script and no other file."""
    check_page(page_of(reported))


@pytest.mark.slow
def test_names_are_escaped(reported):
    """Names of classes, and of a directory in commands, are shown as they are."""
    page = page_of(reported)
    assert {name for name, *_ in page.rows("Errors per class")[1:]} == set(NAMES)
    commands = [one["text"] for one in page.find("pre") if one["text"].startswith("kdistill train-teacher")]
    dataset = shlex.split(commands[0])[shlex.split(commands[0]).index("--dataset") + 1]
    assert dataset.startswith(str(reported / 'it\'s "<i>"'))


@pytest.mark.slow
def test_numbers_are_those_of_evaluate_and_sweep(run, reported, monkeypatch):
    """The page has the errors, NLL and ECE of `evaluate --json`, and the differences of the sweep's summary."""
    monkeypatch.chdir(reported)
    measured = {each["name"]: each for each in json.loads(run("evaluate", "--json").out) if each["split"] == "test"}
    teacher, plain, student = (measured[name] for name in ("teacher", "plain", "student"))
    page = page_of(reported)
    numbers = list(map(int, re.findall(r"\d+", page.find("h1")[0]["text"])))
    assert numbers == [student["errors"], student["rows"], plain["errors"]]
    tiles = [int(one["text"]) for one in page.find("strong") if one["text"].isdigit()][:3]
    assert tiles == [teacher["errors"], plain["errors"], student["errors"]]
    _, *rows = page.rows("Test split")
    for name, _, errors, rate, nll, ece, *_ in rows:
        expected = measured[name]
        assert int(errors) == expected["errors"]
        assert (rate, nll, ece) == (f"{expected['error_rate']:.2%}", f"{expected['nll']:.3f}", f"{expected['ece']:.3f}")
    _, *classes = page.rows("Errors per class")
    totals = np.array([list(map(int, row[1:])) for row in classes]).sum(axis=0).tolist()
    expected = [student["rows"], *(each["errors"] for each in (teacher, plain, student))]
    assert totals == [*expected, student["errors"] - plain["errors"]]
    section = page.find("section", id="rows")[0]["text"]
    gained, lost = (part.count("hard: ") for part in section.split("Gained")[1].split("Lost"))
    assert gained - lost == plain["errors"] - student["errors"]
    summary = json.loads((reported / "workspace/sweeps/sweep/summary.json").read_text())
    differences = [f"{each['difference']['mean']:+,.1f}" for each in summary if each["kind"] == "distilled"]
    assert [row[-1].split(" ")[0] for row in page.rows("Errors, mean")[2:]] == differences


@pytest.mark.slow
def test_report_is_an_artifact(run, reported, tmp_path):
    """It is up to date without heavy libraries, has the same bytes again, and is stale when a network changes."""
    shutil.copytree(reported / "workspace", tmp_path / "workspace")
    path = tmp_path / "workspace/report/report.html"
    before = path.read_bytes()
    code, imported = imports_of("report", cwd=tmp_path)
    assert code == 0
    assert not {"tensorflow", "keras", "matplotlib"} & set(imported)
    assert run("report", "--force").code == 0
    assert path.read_bytes() == before
    assert run("verify").code == 0
    assert run("train-student", *TRAINING, "--alpha", "1", "--name", "plain", "--seed", "3").code == 0
    states = {each["kind"]: each for each in json.loads(run("status", "--json").out)["artifacts"]}
    assert (states["report"]["state"], states["report"]["command"]) == ("stale", "kdistill report")
    assert run("report").code == 0
    shutil.rmtree(tmp_path / "workspace/students")  # the sweep's students are left
    assert run("report").code == 0
    settings = json.loads((tmp_path / "workspace/report/manifest.json").read_text())["inputs"]
    compared = [each["name"] for each in settings if each["kind"] == "student"]
    assert compared == ["sweep/mlp-10-T4-alpha0.1-seed0", "sweep/mlp-10-hard-seed0"]
    assert run("report", "--student", "sweep/mlp-10-T4-alpha0.1-seed1").code == 0
    assert run("report").code == 0
    assert run("report", "--student", "nosuch").code == 1


@pytest.mark.slow
def test_commands_add_what_is_missing(run, workspace):
    """The command for the hard-label student trains one that the next report compares with."""
    assert run("report").code == 0
    missing = {
        one["text"].partition(": kdistill ")[2]
        for one in page_of(workspace.parent).find("p")
        if one.get("class") == "missing"
    }
    assert {line.split()[0] for line in missing} == {"export", "sweep", "train-student"}
    command = next(line for line in missing if line.startswith("train-student"))
    assert run(*shlex.split(command)).code == 0
    assert run("report").code == 0
    students = {one["text"] for one in page_of(workspace.parent).find("th") if "student" in one["text"]}
    assert {"student", "student-hard"} <= students
    shutil.rmtree(workspace / "students")
    shutil.rmtree(workspace / "soft-targets")
    assert run("report").code == 0
    lines = [one["text"] for one in page_of(workspace.parent).find("p") if one.get("class") == "missing"]
    assert any("kdistill soften" in line for line in lines)


def test_nothing_to_report(run):
    outcome = run("report")
    assert outcome.code == 1
    assert "kdistill train-teacher" in outcome.err


def test_elements_escape_texts_and_attributes():
    """Text is escaped unless it is HTML; None is left out, and control characters are made visible."""
    assert element("p", '<a>"', Html("<br>"), None, ["&", 1]) == "<p>&lt;a&gt;&quot;<br>&amp;1</p>"
    assert element("img", alt="\"'>", class_="x", aria_label=None) == '<img alt="&quot;&#x27;&gt;" class="x">'
    assert join("\u202e\0") == r"\u202e\x00"


def test_pictures():
    """Gray pictures have dark ink, color ones their colors, and large ones are reduced."""
    gray = np.zeros((300, 200, 1), np.float32)
    gray[0] = 2.0
    picture = Image.open(io.BytesIO(encode(gray)))
    assert max(picture.size) <= 96
    assert (picture.getpixel((0, 0)), picture.getpixel((0, 1))) == (0, 255)
    color = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(color)))), color)


def luminance(color):
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast():
    """Texts have a contrast of at least 4.5 (WCAG AA) on both backgrounds, in the light and in the dark."""
    style = files("kdistill.stages.report").joinpath("style.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(themes) == 2
    for colors in themes:
        for text in ("ink", "quiet", "link", "teacher", "hard", "distilled"):
            for background in ("page", "panel"):
                bright, dark = sorted((luminance(colors[text]), luminance(colors[background])), reverse=True)
                assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, background)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1200, "light")])
def test_in_a_browser(reported, tmp_path, width, scheme):
    """The page is not wider than a phone, has the background of the color scheme, and is not empty."""
    path = reported / "workspace/report/report.html"
    frame, picture = tmp_path / "frame.html", tmp_path / "picture.png"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{path.as_uri()}" style="border:0;width:{width}px;height:3000px"></iframe>'
        "<script>onload = () => document.body.append("
        "'width=' + document.querySelector('iframe').contentDocument.documentElement.scrollWidth)</script>"
    )
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"),
        *(f"--user-data-dir={tmp_path}/profile", f"--window-size={max(width, 500)},3000"),
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
    ]
    for action in (f"--screenshot={picture}", "--dump-dom"):
        shown = subprocess.run(
            [CHROMIUM, *options, action, frame.as_uri()], capture_output=True, text=True, check=True, timeout=60
        )
    assert f"width={width}" in shown.stdout
    pixels = np.asarray(Image.open(picture).convert("L"))[:, :width]
    assert (pixels[2, 2] < 40) == (scheme == "dark")
    assert pixels.std() > 5


@pytest.mark.slow
def test_hard_labels_of_the_same_rows(run, workspace):
    """A student is compared with hard labels on the rows of its soft targets, and not with those of all rows."""
    for command in (
        ["soften", "--omit-class", "3", "--name", "no3"],
        ["train-student", *QUICK, "--soft-targets", "no3", "--name", "distilled"],
        ["train-student", *QUICK, "--alpha", "1", "--name", "all-rows"],
        ["report", "--student", "distilled"],
    ):
        assert run(*command).code == 0
    page = workspace / "report/report.html"
    assert "from hard labels makes" not in page.read_text()
    assert "--omit-class 3" in page.read_text()
    assert run("train-student", *QUICK, "--alpha", "1", "--omit-class", "3", "--name", "same-rows").code == 0
    assert run("report", "--student", "distilled").code == 0
    assert "from hard labels makes" in page.read_text()
