"""Options that several commands take, by the recipe's fields; every default is "not given"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ctx_export import cache as cache_policies
from ctx_export.cli.common import Size
from ctx_export.core.cache_type import KV_CACHE_DTYPES
from ctx_export.core.io_contract import IO_CONTRACTS
from ctx_export.core.model_spec import PRECISIONS
from ctx_export.core.recipe import ENGINES
from ctx_export.scaling import names

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def apply_options(options: tuple[Callable[[Any], Any], ...], function: Decorated) -> Decorated:
    """Decorate with several options so that `--help` lists them in the order written."""
    for option in reversed(options):
        function = option(function)
    return function


METHODS = (
    f"Scaling method: {', '.join(names())}; or cache policy: {', '.join(cache_policies.names())}"
)


def scaling_options(function: Decorated) -> Decorated:
    """What to extend, how and how far."""
    method = click.option(
        "--method", metavar="NAME", help=f"{METHODS}. [default: the checkpoint's own]"
    )
    return method(extent_options(function))


def extent_options(function: Decorated) -> Decorated:
    """How far to extend, and the options of methods and cache policies."""
    options = (
        click.option(
            "--target",
            type=Size(),
            help="Longest context, such as 128k, baked in. [default: the checkpoint's]",
        ),
        click.option("--factor", type=float, help="Scaling factor. [default: target / original]"),
        click.option(
            "--original-context",
            type=Size(),
            help="Tokens the model was trained on. [default: the checkpoint's]",
        ),
        click.option(
            "--sinks",
            type=Size(zero=True),
            help="First tokens that every token sees. [default: the policy's]",
        ),
        click.option(
            "--window",
            type=Size(zero=True),
            help="Tokens a token sees back, itself included, in a cache of fixed size; 0: all. "
            "[default: the policy's, else all]",
        ),
        *_policy_options(),
    )
    return apply_options(options, function)


def _policy_options() -> tuple[Callable[[Any], Any], ...]:
    """A cache policy beside a scaling method, and what belongs to one policy each."""
    sizes = {
        "--memory-tokens": "memory: averages of evicted blocks that a token sees. "
        "[default: a sixteenth of the positions]",
        "--memory-block": "memory: tokens that are averaged. [default: 16]",
        "--landmark-block": "landmark: tokens that are chosen together. [default: 64; 8 below 2k "
        "positions]",
        "--landmark-topk": "landmark: blocks that a token chooses. [default: half of the "
        "positions]",
        "--group": "self-extend: far tokens that share a position. [default: what the target "
        "needs]",
        "--neighbor": "self-extend: distances below it are met as they are. [default: a quarter "
        "of the positions]",
        "--chunk": "dual-chunk: tokens whose positions count up. [default: three quarters of the "
        "positions]",
    }
    made = {name: click.option(name, type=Size(), help=text) for name, text in sizes.items()}
    return (
        click.option(
            "--cache",
            metavar="NAME",
            help=f"Cache policy beside a scaling method: {', '.join(cache_policies.names())}. "
            "[default: what its options ask for]",
        ),
        made["--memory-tokens"],
        made["--memory-block"],
        made["--landmark-block"],
        made["--landmark-topk"],
        click.option(
            "--landmark-token",
            type=click.IntRange(min=0),
            metavar="ID",
            help="landmark: id of the token that ends a block, for a checkpoint trained with "
            "landmark tokens; sessions insert it. [default: the mean of a block's keys stands "
            "for it]",
        ),
        click.option(
            "--landmark-shared/--landmark-per-head",
            default=None,
            help="landmark: whether the query heads of a KV head choose together. "
            "[default: per head]",
        ),
        made["--group"],
        made["--neighbor"],
        made["--chunk"],
    )


def type_options(function: Decorated) -> Decorated:
    """Element types of weights, activations and caches."""
    options = (
        click.option(
            "--precision",
            metavar="NAME",
            help=f"{', '.join(PRECISIONS)}. [default: the checkpoint's]",
        ),
        click.option(
            "--kv-cache-dtype",
            metavar="NAME",
            help=f"{', '.join(KV_CACHE_DTYPES)}: as the precision, or one byte an element with "
            f"scales per head. [default: {KV_CACHE_DTYPES[0]}]",
        ),
    )
    return apply_options(options, function)


def limit_options(function: Decorated) -> Decorated:
    """How much one call takes."""
    options = (
        click.option("--max-batch", type=Size(), help="Sequences at once. [default: 1]"),
        click.option("--max-chunk", type=Size(), help="New tokens of one call. [default: 1k]"),
    )
    return apply_options(options, function)


def package_options(function: Decorated) -> Decorated:
    """How the package is built and checked."""
    options = (
        type_options,
        click.option(
            "--calibration",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Text that the scales of a quantised cache are chosen from. [default: a built-in "
            "one]",
        ),
        click.option(
            "--engine", metavar="NAME", help=f"{', '.join(ENGINES)}. [default: {ENGINES[0]}]"
        ),
        click.option(
            "--io",
            metavar="NAME",
            help=f"Inputs and outputs of the graph, {' or '.join(IO_CONTRACTS)}: genai are those "
            f"of onnxruntime-genai, which then runs the package. [default: {IO_CONTRACTS[0]}]",
        ),
        limit_options,
        click.option(
            "--copy-weights",
            is_flag=True,
            default=None,
            help="Give the package weight files of its own, where they would else be hard links "
            "to the checkpoint's: onnx.load refuses those.",
        ),
        click.option(
            "--no-validate",
            is_flag=True,
            help="Do not compare with PyTorch, nor with the .onnx file.",
        ),
        click.option(
            "--tolerance", type=float, help="Largest error, relative to the logit scale."
        ),
    )
    return apply_options(options, function)


def recipe_options(function: Decorated) -> Decorated:
    """Other sources of the same values."""
    options = (
        click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(path_type=Path),
            help="YAML file of options.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="One value of the recipe, such as scaling.beta_fast=16; may be repeated.",
        ),
    )
    return apply_options(options, function)
