"""Packages for benchmarks, exported in a process of their own from one traced source."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def export_packages(
    model: str, folder: Path, wanted: Mapping[str, Mapping[str, Any]]
) -> dict[str, Path]:
    """Write a float32 package of `model` for every name in `wanted`; returns where each one is.

    The values are options by the keys of a recipe file. No engine is built and nothing is
    validated. The tracer's memory and threads are gone when this returns.
    """
    places = {name: folder / name for name in wanted}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        options = {name: dict(values) for name, values in wanted.items()}
        pool.submit(_export, model, places, options).result()
    return places


def _export(model: str, places: dict[str, Path], wanted: dict[str, dict[str, Any]]) -> None:
    from ctx_export.core.recipe import build_recipe
    from ctx_export.pipeline import export_source, load_source

    common = {"precision": "fp32", "engine": "none", "validate": {"enabled": False}}
    recipes = [
        build_recipe({"model": model, "output": places[name]}, options={**common, **options})
        for name, options in wanted.items()
    ]
    source = load_source(recipes[0])
    for recipe in recipes:
        export_source(source, recipe)
