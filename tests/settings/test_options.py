"""Options are declared once; checks, command lines and manifests follow from the declarations."""

from __future__ import annotations

import json
import shlex

import pytest
from typer.main import get_command

from kdistill.cli import READ_ONLY, Session, app
from kdistill.errors import UsageError
from kdistill.settings import (
    COMMANDS,
    Objective,
    ReadOptions,
    Selection,
    Soften,
    Sweep,
    Training,
    TrainStudent,
    build,
    command_words,
    format_value,
    options_of,
)

REQUIRED = {"promote": {"student": "sweep/one"}}
CHANGED = {  # a value per command and option that is not the default
    "epochs": 3,
    "learning_rate": 0.25,
    "seed": 7,
    "optimizer": "sgd",
    "label_smoothing": 0.1,
    "dropout": "0.1,0.2",
    "fraction": 0.5,
    "rows_seed": 4,
    "network": ("one", "two"),
    "format": ("svg", "pdf"),
    "temperature": 2.5,
    "alpha": 0.75,
    "standardize_logits": True,
    "frequencies": "0.5,0.5",
}


def changed(settings):
    names = {each.name: each for each in options_of(settings)}
    values = {name: value for name, value in CHANGED.items() if name in names}
    for name, value in values.items():
        if names[name].many and not isinstance(value, tuple):
            values[name] = (value,)
        elif not names[name].many and isinstance(value, tuple):
            values[name] = {"network": "one", "format": "onnx"}[name]
    if settings is Soften:
        values |= {"augment": "flip", "views": 3}
    return values


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_command_line(name):
    """A command has the options that its settings declare, those of every command, and no others."""
    declared = {f"--{each.flag}" for each in (*options_of(COMMANDS[name]), *options_of(Session))}
    declared -= {"--force", "--dry-run"} if name in READ_ONLY else set()
    command = get_command(app).commands[name]
    assert {flag for each in command.params for flag in each.opts if flag.startswith("--")} == declared
    assert all(each.option.help and each.option.group for each in options_of(COMMANDS[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_words_reproduce_the_settings(name):
    """The options that are written for settings, when parsed, give the same settings."""
    settings = COMMANDS[name]
    values = REQUIRED.get(name, {}) | changed(settings)
    original = build(settings, values)
    words = shlex.split(" ".join(command_words(settings, values)))
    context = get_command(app).commands[name].make_context(name, words)
    parsed = {}
    for each in options_of(settings):
        if (value := context.params[each.name]) is not None:
            parsed[each.name] = value if each.type is bool else each.parse(value)
    assert build(settings, parsed) == original
    assert build(settings, REQUIRED.get(name, {})) != original or not changed(settings)


@pytest.mark.parametrize("name", COMMANDS)
def test_recorded_settings_are_json_and_rebuild_the_settings(name):
    """What a manifest records has JSON's types and gives the same recorded settings back."""
    settings = COMMANDS[name]
    original = build(settings, REQUIRED.get(name, {}) | changed(settings))
    recorded = json.loads(json.dumps(original.recorded()))
    assert recorded == original.recorded()
    assert build(settings, REQUIRED.get(name, {}) | recorded).recorded() == recorded


@pytest.mark.parametrize(
    ("settings", "values", "expected"),
    [
        (Training, {"epochs": 0}, ("--epochs", "'0'", "1")),
        (Training, {"epochs": True}, ("--epochs",)),
        (Training, {"learning_rate": float("nan")}, ("--learning-rate", "nan")),
        (Training, {"schedule": "linear"}, ("--schedule", "linear", "cosine", "step:")),
        *(
            (Training, {"schedule": schedule}, ("--schedule", schedule, "step:"))
            for schedule in (
                "step",
                "step:",
                "step:0",
                "step:1",
                "step:0.7,0.5",
                "step:0.5,0.5",
                "step:x",
                "step:nan",
                "cosine:",
            )
        ),
        (Training, {"l2": 0.0}, ("--l2", "0")),
        (Training, {"dropout": "0.2"}, ("--dropout", "0.2")),
        (Training, {"augment": "shift:2,crop:2"}, ("--augment", "shift:2,crop:2")),
        (Training, {"early_stopping": 3}, ("--early-stopping", "--validation-fraction")),
        (Objective, {"alpha": 1.5}, ("--alpha", "1.5")),
        (Objective, {"alpha": 1.0, "loss": "dkd"}, ("--loss", "--alpha")),
        (Objective, {"alpha": 1.0, "temperature": 2.0}, ("--temperature", "--alpha")),
        (Objective, {"loss": "mse", "temperature": 2.0}, ("--temperature", "mse")),
        (Objective, {"alpha": 0.0, "label_smoothing": 0.1}, ("--label-smoothing", "--alpha")),
        (Selection, {"omit_class": "3", "only_classes": "4"}, ("--omit-class", "--only-classes")),
        (Selection, {"omit_class": "3,,4"}, ("--omit-class", "3,,4")),
        (Selection, {"rows_seed": 4}, ("--rows-seed", "--fraction")),
        (Soften, {"views": 3}, ("--augment", "--views")),
        (Soften, {"seed": 1}, ("--seed", "--augment")),
        (Soften, {"teachers": ("a", "a")}, ("--teacher", "'a'")),
        (Soften, {"logits": "a.npy", "teachers": ("a",)}, ("--logits", "--teacher")),
        (TrainStudent, {"name": "../x"}, ("--name", "../x")),
        (TrainStudent, {"read": ReadOptions(labels="y")}, ("--labels", "--dataset")),
        (Sweep, {"temperatures": ()}, ("--temperature",)),
        (Sweep, {"alphas": (0.1, 1.0)}, ("--alpha", "1")),
        (Sweep, {"other_soft_targets": "other"}, ("--other-soft-targets", "--controls")),
    ],
)
def test_wrong_values_are_refused(settings, values, expected):
    """The message names the option and the value."""
    with pytest.raises(UsageError) as error:
        settings(**values)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in expected), message


def test_read_options_are_part_of_a_name():
    """A dataset's name with its read options gives both back."""
    options = ReadOptions(labels="a b", test_fraction=0.2, image_size="8x9")
    name = options.named("some/where.csv")
    assert ReadOptions.of(name) == ("some/where.csv", options)
    assert ReadOptions(labels="c").named(name) == ReadOptions(labels="c", test_fraction=0.2, image_size="8x9").named(
        "some/where.csv"
    )
    assert ReadOptions.of("plain?") == ("plain?", ReadOptions())
    with pytest.raises(UsageError, match="colour"):
        ReadOptions.of("a.csv?colour=1")


def test_format_value():
    """Values are written as short as they can be read back."""
    assert [format_value(value) for value in (2.0, 0.1, 1e-5, "a", 3, (1.0, 2.5))] == [
        "2",
        "0.1",
        "1e-05",
        "a",
        "3",
        "1,2.5",
    ]
