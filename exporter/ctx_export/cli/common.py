"""What the commands share: error boundary, option types, common options, progress, JSON output.

A command is a function decorated with `@command("ctx-name")`; it parses, calls one library
function and prints. Importing this module imports click and nothing heavy: `--help` must
answer at once.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ctx_export.core.errors import UserError, ValidationFailed
from ctx_export.core.progress import Progress, SilentProgress, TerminalProgress
from ctx_export.core.sizes import parse_size

DISTRIBUTION = "ctx-export"
EXIT_VALIDATION_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
# Failures of the machine that the user can mend; any other OSError is a bug with a traceback.
_MENDABLE = {
    errno.ENOSPC: "free some space or choose another directory with -o",
    errno.EDQUOT: "free some of the quota or choose another directory with -o",
    errno.EACCES: "change the permissions or choose another path",
    errno.EROFS: "choose a directory that can be written",
}

if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType  # generic in recent versions of click only

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class _Boundary(click.Command):
    """A click command whose `main` is the error boundary of DESIGN.md.

    UserError and wrong usage print one line and exit 2, ValidationFailed exits 1, Ctrl-C exits
    130, and anything else is a bug that shows its traceback.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        _log_to_stderr()
        try:
            result = super().main(
                args, prog_name or self.name, complete_var, standalone_mode=False, **extra
            )
        except UserError as error:
            _fail(str(error), EXIT_USER_ERROR)
        except ValidationFailed as error:
            _fail(str(error), EXIT_VALIDATION_FAILED)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            where = self.name if context is None else context.command_path
            _fail(f"{error.format_message().rstrip('.')} (see {where} --help)", EXIT_USER_ERROR)
        except click.Abort:
            _fail("interrupted", EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno not in _MENDABLE:
                raise
            name = error.filename2 or error.filename  # of a copy, where it was going
            place = f" ({name})" if name else ""
            _fail(f"{error.strerror}{place}: {_MENDABLE[error.errno]}", EXIT_USER_ERROR)
        # Not standalone, click returns the code of ctx.exit(), which --help and --version call.
        sys.exit(result if isinstance(result, int) else 0)


class Command(_Boundary):
    """A command of its own."""


class Group(_Boundary, click.Group):
    """A command of several, `ctx-name what …`."""


class Size(_IntType):
    """A number of tokens such as 131072, 128k or 1m; `zero=True` also takes 0."""

    name = "size"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if self._zero and str(value).strip() == "0":
            return 0
        what = max(param.opts, key=len) if param is not None else "size"
        return parse_size(value, what=what)


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Decorator: the function becomes the command `name` with `--version` and `--help`."""

    def decorate(function: Callable[..., Any]) -> Command:
        made = click.command(
            name, cls=Command, context_settings={"help_option_names": ["-h", "--help"]}
        )(_version_option(function))
        assert isinstance(made, Command)
        return made

    return decorate


def group(name: str) -> Callable[[Callable[..., Any]], Group]:
    """Decorator: the function becomes the group `name` with `--version` and `--help`; its commands
    are added with `@NAME.command(...)`."""

    def decorate(function: Callable[..., Any]) -> Group:
        made = click.group(
            name, cls=Group, context_settings={"help_option_names": ["-h", "--help"]}
        )(_version_option(function))
        assert isinstance(made, Group)
        return made

    return decorate


def json_option(function: Decorated) -> Decorated:
    """`--json`: print one JSON document on stdout and nothing else there (argument `as_json`)."""
    option = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
    )
    return option(function)


def echo_json(value: Any) -> None:
    """Print `value` as one JSON document; NaN and infinities are refused, JSON has none."""
    click.echo(json.dumps(value, indent=1, allow_nan=False, default=str))


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Progress on stderr where that is a terminal, silence in a pipe."""
    if not sys.stderr.isatty():
        yield SilentProgress()
        return
    progress = TerminalProgress(sys.stderr)
    try:
        yield progress
    except BaseException:
        progress.close(failed=True)
        raise
    progress.close()


def version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(DISTRIBUTION)
    except PackageNotFoundError:
        return "0 (not installed)"


def _version_option(function: Decorated) -> Decorated:
    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            click.echo(f"{ctx.info_name} {version()}")
            ctx.exit()

    option = click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version and exit.",
    )
    return option(function)


def _fail(message: str, code: int) -> NoReturn:
    click.echo("error: " + " ".join(message.splitlines()), err=True)
    sys.exit(code)


def _log_to_stderr() -> None:
    """Warnings of the library as `warning: …` lines on stderr; other loggers stay as they are."""
    logger = logging.getLogger("ctx_export")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines())
        handler.addFilter(_Once())
        logger.addHandler(handler)
        logger.propagate = False


class _Once(logging.Filter):
    """Lets every message through once: a command that opens many packages says it for all."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self._told
        self._told.add(text)
        return new


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"
