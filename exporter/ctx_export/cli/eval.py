"""`ctx-eval`: perplexity, needles in a haystack, and the smallest factor that holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctx_export.cli.common import (
    Size,
    echo_json,
    group,
    json_option,
    terminal_progress,
)
from ctx_export.cli.options import apply_options
from ctx_export.cli.run import BACKENDS
from ctx_export.core.errors import UserError, ValidationFailed
from ctx_export.core.sizes import parse_size

if TYPE_CHECKING:
    from ctx_export.evaluation.subject import Opening

_TEXT = click.Path(path_type=Path)
_MOST_DEPTHS = 1000  # of one number: far more than a picture shows


def _sizes(_: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    what = max(param.opts, key=len)
    return tuple(parse_size(part, what=what) for part in (value or "").split(",") if part.strip())


def _shares(_: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """Percentages as shares; one whole number without % is how many, evenly spread from 0 to
    100."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    try:
        numbers = [float(part.removesuffix("%")) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(
            f"--depths is {value!r}: give percentages such as 0,25,50,75,100 or 50%, or one "
            "number of depths"
        )
    if len(numbers) == 1 and numbers[0] >= 2 and numbers[0].is_integer() and parts[0][-1] != "%":
        count = int(numbers[0])
        if count > _MOST_DEPTHS:
            raise UserError(f"--depths is {value!r}: give at most {_MOST_DEPTHS}")
        return tuple(index / (count - 1) for index in range(count))
    return tuple(number / 100 for number in numbers)


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


def _numbers(_: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    parts = _names(_, param, value)
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = (0.0,)
    if not all(1 < number < math.inf for number in numbers):
        raise UserError(f"{param.opts[0]} is {value!r}: give numbers above 1 such as 2,4,8")
    return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where packages run and where the report goes."""

    folder: Path | None
    backend: str
    providers: tuple[str, ...]
    threads: int | None
    as_json: bool

    @property
    def opening(self) -> Opening:
        from ctx_export.evaluation.subject import Opening

        return Opening(backend=self.backend, threads=self.threads, providers=self.providers)

    def check(self) -> None:
        """Raises UserError, before any long work, where the report's files cannot be made."""
        if self.folder is not None:
            from ctx_export.evaluation.report_files import check_drawing, make_folder

            check_drawing()
            make_folder(self.folder)

    def finish(self, name: str, report: Any, chart: str, page: str) -> None:
        """Write the report's files where they are wanted, and print it; `chart` and `page` name
        functions of evaluation.charts and evaluation.pages."""
        places = []
        if self.folder is not None:
            from ctx_export.evaluation import charts, pages
            from ctx_export.evaluation.report_files import save

            places = save(
                self.folder,
                name,
                report.to_json(),
                lambda: getattr(charts, chart)(report),
                lambda: getattr(pages, page)(report),
            )
        self.tell(report, places)

    def tell(self, report: Any, places: list[Path]) -> None:
        """Print the report, and where its files are."""
        if self.as_json:
            echo_json(report.to_json())
            return
        click.echo("\n".join(report.lines()))
        for place in places:
            click.echo(f"wrote {place}")


def _running_options(function: Callable[..., None]) -> Callable[..., None]:
    """Where packages run and where the report goes, as one argument `running`."""

    @functools.wraps(function)
    def collected(**given: Any) -> None:
        own = {field.name: given.pop(field.name) for field in fields(Running)}
        function(running=Running(**own), **given)

    options: tuple[Callable[[Any], Any], ...] = (
        click.option(
            "-o",
            "--output",
            "folder",
            type=click.Path(path_type=Path, file_okay=False),
            help="Directory for the report: JSON, a picture (PNG) and a page (HTML).",
        ),
        click.option(
            "--backend",
            metavar="NAME",
            default="ort",
            show_default=True,
            help=", ".join(BACKENDS) + ".",
        ),
        click.option(
            "--provider",
            "providers",
            multiple=True,
            metavar="NAME",
            help="onnxruntime's execution provider, such as CUDAExecutionProvider; may be "
            "repeated. [default: what there is]",
        ),
        click.option("--threads", type=int, help="onnxruntime's threads. [default: all cores]"),
        json_option,
    )
    return apply_options(options, collected)


_transformers = click.option(
    "--transformers",
    "checkpoint",
    metavar="MODEL",
    help="Also measure transformers' own model with each package's method: the checkpoint that "
    "the packages were made from (directory, hub id, or demo).",
)


@group("ctx-eval")
def main() -> None:
    """What a package is worth on text, before it is shipped."""


@main.command("perplexity")
@click.argument(
    "packages", metavar="PACKAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--text", required=True, type=_TEXT, help="UTF-8 file to read.")
@click.option(
    "--lengths",
    required=True,
    callback=_sizes,
    help="Tokens of a window, such as 1k,4k,16k.",
)
@click.option(
    "--stride",
    type=Size(),
    help="Tokens at a window's end that count, and from one window to the next. [default: a "
    "quarter of the shortest length, at most 256]",
)
@click.option(
    "--windows",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Windows per length, spread over the text where it has more.",
)
@_transformers
@_running_options
def perplexity(
    packages: tuple[Path, ...],
    text: Path,
    lengths: tuple[int, ...],
    stride: int | None,
    windows: int,
    checkpoint: str | None,
    running: Running,
) -> None:
    """Perplexity of each PACKAGE on a text, by length and by position.

    The text is read in windows of each length, every one from scratch. The perplexity at a length
    is that of the windows' last tokens; the page and the JSON tell it by position too, all with
    one standard error over windows; by position it is too small where windows end closer together
    than the positions span, for they share tokens then. Methods whose frequencies follow the
    length take each window at its own length.
    """
    from ctx_export.evaluation.perplexity import PerplexitySetting
    from ctx_export.evaluation.perplexity_run import run

    setting = PerplexitySetting(lengths=lengths, stride=stride, windows=windows)
    running.check()
    with terminal_progress() as progress:
        report = run(packages, text, setting, running.opening, _located(checkpoint), progress)
    running.finish("perplexity", report, "perplexity_chart", "perplexity_page")


@main.command("needle")
@click.argument(
    "packages", metavar="PACKAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--lengths", required=True, callback=_sizes, help="Tokens of a text, such as 1k,4k,16k."
)
@click.option(
    "--depths",
    default="5",
    show_default=True,
    callback=_shares,
    help="Where the fact lies, in percent, such as 0,50,100 or 50%; or how many such places.",
)
@click.option(
    "--text", type=_TEXT, help="UTF-8 file to hide facts in. [default: the demo's held-out text]"
)
@click.option(
    "--form",
    metavar="NAME",
    default="pass-key",
    show_default=True,
    help="pass-key: five digits; natural: where somebody hid something.",
)
@click.option(
    "--needles",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Facts in a text, of which one is asked for.",
)
@click.option(
    "--keys",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Questions per cell of the grid.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--dask",
    metavar="ADDRESS",
    help="Spread the cells over a Dask cluster (tcp://host:8786), or local:N processes. "
    "[default: this process]",
)
@_transformers
@_running_options
def needle(
    packages: tuple[Path, ...],
    lengths: tuple[int, ...],
    depths: tuple[float, ...],
    text: Path | None,
    form: str,
    needles: int,
    keys: int,
    seed: int,
    dask: str | None,
    checkpoint: str | None,
    running: Running,
) -> None:
    """Whether each PACKAGE finds facts again, by the text's length and the fact's depth.

    A question counts as found if greedy decoding gives the whole answer; the answer's
    log-probability is told too. With -o, finished cells are kept in the directory as they come:
    a run that was interrupted goes on where it stopped, and another grid measures only its own
    cells.
    """
    import tempfile

    from ctx_export import demo
    from ctx_export.evaluation.needle import NeedleSetting
    from ctx_export.evaluation.needle_run import NeedleRun, run
    from ctx_export.evaluation.sweep import Spread

    asked = NeedleRun(
        packages=packages,
        text=text or demo.path() / "heldout.txt",
        setting=NeedleSetting(
            lengths=lengths, depths=depths, form=form, needles=needles, keys=keys, seed=seed
        ),
        opening=running.opening,
        checkpoint=_located(checkpoint),
    )
    running.check()
    how = None if dask is None else Spread(dask=dask)
    with tempfile.TemporaryDirectory() as scratch, terminal_progress() as progress:
        report = run(asked, running.folder or Path(scratch), how, progress)
    running.finish("needle", report, "needle_chart", "needle_page")


@main.command("advise")
@click.argument("model", required=False, default="demo")
@click.option("--target", type=Size(), required=True, help="Tokens that are wanted, such as 128k.")
@click.option("--text", required=True, type=_TEXT, help="UTF-8 file like what will be read.")
@click.option(
    "--methods",
    callback=_names,
    help="Methods and cache policies to try, separated by commas. [default: the usual ones]",
)
@click.option(
    "--factors",
    callback=_numbers,
    help="Factors to try, such as 2,4,8. [default: five around target / trained length]",
)
@click.option(
    "--worse",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Percent by which perplexity may lie above the model's own, short and long.",
)
@click.option(
    "--keys-found",
    type=click.FloatRange(0, 100),
    default=90.0,
    show_default=True,
    help="Percent of the pass keys that the model itself finds, which must be found.",
)
@click.option(
    "--windows",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Windows of text per length.",
)
@click.option(
    "--keys",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Pass keys per depth, at five depths.",
)
@_running_options
def advise(
    model: str,
    target: int,
    text: Path,
    methods: tuple[str, ...],
    factors: tuple[float, ...],
    worse: float,
    keys_found: float,
    windows: int,
    keys: int,
    running: Running,
) -> None:
    """Which method and factor make MODEL hold at a target, measured on text and pass keys.

    Every candidate is exported, measured at the trained length and at the target, and removed.
    Of each scaling method factors are tried from the smallest on until one holds; the smallest
    factor of all that hold is advised. -o also writes recipe.yaml for ctx-export, or nearest.yaml
    and exit status 1 where nothing holds.
    """
    import tempfile

    from ctx_export.evaluation.advise import POLICIES, SCALING, AdviseSetting, Limits
    from ctx_export.evaluation.advise_run import advise as run
    from ctx_export.evaluation.report_files import make_folder

    setting = AdviseSetting(
        target=target,
        factors=factors,
        windows=windows,
        keys=keys,
        limits=Limits(perplexity=worse / 100, keys=keys_found / 100),
        methods=methods or SCALING + POLICIES,
    )
    folder = running.folder
    if folder is not None:
        make_folder(folder)
    with (
        tempfile.TemporaryDirectory(prefix=".advise.", dir=folder) as scratch,
        terminal_progress() as progress,
    ):
        found = run(model, text, Path(scratch), setting, running.opening, progress)
    places = [] if folder is None else found.save(folder)
    running.tell(found, places)
    if found.best is None:
        raise ValidationFailed(f"nothing holds at {target} tokens")


def _located(model: str | None) -> Path | None:
    from ctx_export.frontends.checkpoint import locate

    return None if model is None else locate(model)


if __name__ == "__main__":
    main()
