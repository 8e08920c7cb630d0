"""The command line: one command per settings class, derived from its options. The only module that exits."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import json
import os
import sys
from collections import UserDict
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from kdistill import __version__, settings
from kdistill.console import Reporter, interrupts, printable, printable_lines
from kdistill.console.native_stderr import keep_log, log_hint, report_death, silence_native_stderr
from kdistill.errors import KdistillError, UsageError, first_line
from kdistill.settings import COMMANDS, Field, Settings, build, option, options_of
from kdistill.stages.dry_run import result_of
from kdistill.workspace import Workspace

READ_ONLY = ("evaluate", "status", "verify")
OF_WRITERS = ("force", "dry_run")  # options that read-only commands do not have


@dataclass(frozen=True, kw_only=True)
class Session(Settings):
    """The options of every command."""

    workspace: Annotated[
        str, option("Workspace directory.", group="General", short="-w", variable="KDISTILL_WORKSPACE", metavar="DIR")
    ] = "workspace"
    force: Annotated[bool, option("Re-run even if the result is up to date.", group="General")] = False
    dry_run: Annotated[bool, option("Print what would be done and why, and write nothing.", group="General")] = False
    quiet: Annotated[bool, option("Print only results, warnings and errors.", group="General", short="-q")] = False
    json: Annotated[bool, option("Print the result as JSON, and nothing else.", group="General")] = False
    debug: Annotated[bool, option("Show tracebacks and the messages of TensorFlow.", group="General")] = False


class Commands(UserDict[str, Any]):
    """Commands by name. Each is made from its settings class when it is first needed, because making all of them is slow."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(kind := self.data[name], type):
            self.data[name] = make_command(name, kind)
        return self.data[name]

    def help(self, name: str) -> str:
        """Return what a command does, in a sentence."""
        text = inspect.getdoc(COMMANDS[name]) if name in COMMANDS else self[name].help
        return str(text).partition("\n")[0].partition(". ")[0].removesuffix(".") + "."


class Group(TyperGroup):
    """The commands. Errors about wrong usage are reported like all others: in one line, made printable."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Commands = Commands(COMMANDS | self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands.help(name)) for name in self.list_commands(ctx)])

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _one_line_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        with _one_line_usage_errors():
            return super().invoke(*args, **kwargs)


class Command(TyperCommand):
    """A command whose help lists the options under the headings that they declare."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                headings.setdefault(getattr(parameter, "rich_help_panel", None) or "General", []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@contextlib.contextmanager
def _one_line_usage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":  # not Click's, or help
            raise
        _fail(_usage_error(error), 2, debug=False)


def _usage_error(error: Any) -> str:
    """Return an error of the parser in the form of all other errors, e.g. "invalid value for '--epochs': ..."."""
    context = getattr(error, "ctx", None)
    message = str(error.format_message()).rstrip(".")
    return message[:1].lower() + message[1:] + (f" (help: {context.command_path} -h)" if context else "")


app = typer.Typer(
    name="kdistill",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes a third of the time and leaves more room for options
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distill a trained network (the teacher) into another (the student), offline. The stages are train-teacher, "
    "soften, train-student and plot. Each reads what the previous one left in the workspace. `kdistill run` runs all four.",
)


def parameter(field: Field) -> inspect.Parameter:
    """Return the parameter that Typer makes a command-line option of. Its value is text, which the field parses."""
    declared, default = field.option, field.default
    choices = declared.check.choices if declared.check else ()
    kind: Any = bool if field.type is bool else list[str] if field.many and not declared.commas else str
    if default in (None, ()):
        kind, default = kind | None, None
    elif default is MISSING:
        default = inspect.Parameter.empty
    elif kind is not bool:
        default = (
            list(default) if isinstance(default, tuple) and not declared.commas else settings.format_value(default)
        )
    names = [] if declared.positional else [f"--{field.flag}", *filter(None, [declared.short])]
    info = (typer.Argument if declared.positional else typer.Option)(
        *names,
        help=declared.help,
        metavar=field.metavar if kind is not bool else None,
        envvar=declared.variable,
        rich_help_panel=declared.group,
        autocompletion=(lambda: list(choices)) if choices else None,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def make_command(name: str, kind: type[Settings]) -> Any:
    """Return the command of a settings class."""
    fields = [
        *options_of(kind),
        *(field for field in options_of(Session) if not (name in READ_ONLY and field.name in OF_WRITERS)),
    ]

    def command(**values: Any) -> None:
        with _one_line_errors(values):
            given = {field: values[field.name] for field in fields if values[field.name] is not None}
            parsed = {
                field.name: field.parse(text) if field.type is not bool else text for field, text in given.items()
            }
            execute(name, kind, parsed)

    parameters = [parameter(field) for field in fields]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    single = typer.Typer(add_completion=False, rich_markup_mode=None)  # with one command, it is that command
    single.command(name, cls=Command, help=inspect.getdoc(kind))(command)
    return get_command(single)


def execute(name: str, kind: type[Settings], values: Mapping[str, Any]) -> None:
    """Run a command and print its result."""
    session: Session = build(Session, values)
    workspace, chosen = Workspace(session.workspace, dry_run=session.dry_run), build(kind, values)
    reporter = Reporter(quiet=session.quiet or session.json or session.dry_run)
    result = result_of(name, workspace, chosen, reporter, **({} if name in READ_ONLY else {"force": session.force}))
    if session.json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        result.show(Reporter())
    if result.exit_status:
        raise SystemExit(result.exit_status)


@app.command()
def guide(
    topic: Annotated[str | None, typer.Argument(help="Topic. Without one, the topics are listed.")] = None,
) -> None:
    """Show a guide, such as `kdistill guide data`."""
    from kdistill import guides

    with _one_line_errors({"workspace": Session.workspace, "debug": False}):
        guides.show(topic)


@contextlib.contextmanager
def _one_line_errors(values: Mapping[str, Any]) -> Iterator[None]:
    workspace, debug = Path(values["workspace"]), values["debug"]
    if not debug:
        silence_native_stderr()
    try:
        with interrupts.raised(), report_death(workspace):
            yield
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted; the workspace is unchanged, and the same command resumes the work", 130, debug)
    except UsageError as error:
        _fail(str(error), 2, debug)
    except KdistillError as error:
        _fail(str(error), 1, debug)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = None
        raise SystemExit(1) from None
    except Exception as error:  # noqa: BLE001 - every error is reported in one line
        _fail(_unexpected(error, workspace, values), 1, debug)


def _unexpected(error: Exception, workspace: Path, values: Mapping[str, Any]) -> str:
    """Return the line for an error that no stage handles, and keep what libraries wrote before it."""
    disk_full = os.strerror(errno.ENOSPC)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
        inside = error.filename and Path(os.fsdecode(error.filename)).absolute().is_relative_to(workspace.absolute())
        fix = "; use a --workspace that you can read and write" if refused and inside else ""
        return f"{place}{os.strerror(error.errno) if error.errno else first_line(error)}{fix}"
    if disk_full in str(error):  # TensorFlow reports it as an exhausted resource, like a lack of memory
        return f"{workspace}: {disk_full}"
    log = log_hint(keep_log(workspace))
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        smaller = " or ".join(f"--{name.replace('_', '-')}" for name in ("batch_size", "model") if name in values)
        return f"out of memory: {f'use a smaller {smaller}' if smaller else 'use a machine with more'}{log}"
    return f"{type(error).__name__}: {first_line(error)} (--debug shows where{log})"


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        print(printable_lines(traceback.format_exc()), file=sys.stderr, end="")
    print(printable(message if code == 130 else f"error: {message}"), file=sys.stderr)
    raise SystemExit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kdistill {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may have characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # before or after a command's own work
        raise SystemExit(130) from None
