"""vLLM, which reads config.json through transformers 5."""

from __future__ import annotations

from ctx_export.inspection.runtimes._conditions import (
    every,
    factor_is_not,
    given,
    kind,
    no,
    not_the_ratios_multiplier,
    reaches_past_original,
)
from ctx_export.inspection.runtimes.base import Rule, Runtime, Verdict

_FOLDER = "vllm-project/vllm {commit}, vllm/model_executor/layers/rotary_embedding/{file}"
_CHOICE = _FOLDER.format(commit="0cd5784", file="__init__.py")
_LONGROPE = _FOLDER.format(commit="17d618b", file="phi3_long_rope_scaled_rope.py")

RUNTIME = Runtime(
    name="vllm",
    version="commit 0cd5784",
    honours=("default", "linear", "yarn", "longrope", "llama3", "proportional"),
    source=_CHOICE,
    rules=(
        Rule(
            setting="rope_type dynamic",
            verdict=Verdict.MISREAD,
            when=kind("dynamic"),
            reason="one table for every length, that of a text of factor · "
            "max_position_embeddings tokens: texts within the trained context change too",
            source=_FOLDER.format(commit="50feac9", file="dynamic_ntk_scaling_rope.py"),
        ),
        Rule(
            setting="short_factor",
            verdict=Verdict.MISREAD,
            when=every(kind("longrope"), reaches_past_original),
            reason="one table serves a server's whole life, chosen by its max_model_len: short "
            "texts rotate by the long one unless that is L or less",
            source=_LONGROPE,
        ),
        Rule(
            setting="attention_factor, factor",
            verdict=Verdict.DROPPED,
            when=every(
                kind("longrope"),
                no(given("short_mscale", "long_mscale")),
                not_the_ratios_multiplier,
            ),
            reason="not read; the multiplier follows from max_position_embeddings / L",
            source=_LONGROPE,
        ),
        Rule(
            setting="factor",
            verdict=Verdict.DROPPED,
            when=every(kind("proportional"), factor_is_not(1.0)),
            reason="not read by the table of proportional rotation",
            source=_FOLDER.format(commit="41c5903", file="gemma4_rope.py"),
        ),
    ),
)
