"""`ctx-run`: generate text with a package."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ctx_export.cli.common import Size, command, echo_json, json_option
from ctx_export.core.errors import UserError

BACKENDS = ("ort", "tensorrt", "tensorrt-rtx")


@command("ctx-run")
@click.argument("package", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue.")
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="File with the text to continue, - for standard input.",
)
@click.option(
    "--max-new-tokens", type=Size(), default=128, show_default=True, help="Tokens to generate."
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option("--top-k", type=int, default=0, help="Draw from this many likeliest. [default: all]")
@click.option("--top-p", type=float, default=1.0, help="Draw from this probability. [default: 1]")
@click.option("--seed", type=int, help="Makes drawing repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT; can be repeated.")
@click.option(
    "--planned-length",
    type=Size(),
    help="Length that fixes the frequencies of dynamic methods. [default: prompt + new tokens]",
)
@click.option(
    "--backend", metavar="NAME", default="ort", show_default=True, help=", ".join(BACKENDS) + "."
)
@click.option("--threads", type=int, help="onnxruntime's threads. [default: all cores]")
@json_option
def main(
    package: Path,
    prompt: str | None,
    prompt_file: Path | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    planned_length: int | None,
    backend: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Continue a prompt with the package OUT, streaming the text; --json prints figures."""
    from ctx_export.runtime.generate import Request, generate
    from ctx_export.runtime.sampling import Sampling
    from ctx_export.runtime.session import open_session

    request = Request(
        prompt=_prompt(prompt, prompt_file),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        stop=stop,
        planned_length=planned_length,
    )
    with open_session(package, backend, threads=threads) as session:
        generation = generate(session, package, request)
        for piece in generation:
            if not as_json:
                click.echo(piece, nl=False)
        if as_json:
            echo_json(generation.figures.as_json())
        else:
            click.echo()


def _prompt(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        given = "neither" if text is None else "both"
        raise UserError(f"{given} of --prompt and --prompt-file given: give one of them")
    if text is not None:
        return text
    assert file is not None
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-file {file} cannot be read: {error}") from None


if __name__ == "__main__":
    main()
