"""TensorRT-LLM's PyTorch backend, which reads config.json through transformers 4."""

from __future__ import annotations

from ctx_export.inspection.runtimes._conditions import (
    at_top_level,
    attention_factor_shows,
    every,
    given,
    in_rope_parameters_only,
    kind,
    no,
    not_the_ratios_multiplier,
    original_is_not,
    partial_in_entries_only,
    per_kind,
    reaches_past_original,
    scaled,
    theta_in_entries_only,
    untruncated,
    word,
)
from ctx_export.inspection.runtimes.base import Rule, Runtime, Verdict

_PARAMETERS = "NVIDIA/TensorRT-LLM 51ea5c9, tensorrt_llm/_torch/attention_backend/interface.py"
_TABLES = "NVIDIA/TensorRT-LLM, tensorrt_llm/functional.py, RotaryScalingType, RopeEmbeddingUtils"
_READ = no(in_rope_parameters_only)

RUNTIME = Runtime(
    name="tensorrt-llm",
    version="commit 51ea5c9",
    honours=("default", "linear", "yarn", "longrope", "llama3"),
    source=_PARAMETERS,
    rules=(
        Rule(
            setting="rope_parameters",
            verdict=Verdict.DROPPED,
            when=every(in_rope_parameters_only, scaled),
            reason="only rope_scaling is read: the rotation is plain; spell it rope_scaling",
            source=_PARAMETERS,
        ),
        Rule(
            setting="rope_theta",
            verdict=Verdict.DROPPED,
            when=theta_in_entries_only,
            reason="read from the top level of config.json alone; state it there too",
            source=_PARAMETERS,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.DROPPED,
            when=partial_in_entries_only,
            reason="read from the top level of config.json alone; state it there too",
            source=_PARAMETERS,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(_READ, word("su", "proportional")),
            reason="not among its types (linear, dynamic, longrope, llama3, yarn, mrope)",
            source=_TABLES,
        ),
        Rule(
            setting="rope_scaling per kind of layer",
            verdict=Verdict.REFUSED,
            when=every(_READ, per_kind),
            reason="no type is found among nested settings",
            source=_PARAMETERS,
        ),
        Rule(
            setting="factor",
            verdict=Verdict.DROPPED,
            when=every(_READ, kind("dynamic")),
            reason="a dynamic table is made from HunYuan's key alpha alone, 1 where there is "
            "none: the rotation is plain",
            source=_TABLES,
        ),
        Rule(
            setting="original_max_position_embeddings",
            verdict=Verdict.MISREAD,
            when=every(
                _READ,
                kind("yarn", "llama3", "longrope"),
                no(given("original_max_position_embeddings")),
                no(at_top_level("original_max_position_embeddings")),
                original_is_not(1024),
            ),
            reason="1024 where nothing is stated, not max_position_embeddings",
            source=_PARAMETERS,
        ),
        Rule(
            setting="attention_factor",
            verdict=Verdict.DROPPED,
            when=every(_READ, kind("yarn"), attention_factor_shows),
            reason="not read; the multiplier follows from factor, mscale and mscale_all_dim",
            source=_PARAMETERS,
        ),
        Rule(
            setting="truncate",
            verdict=Verdict.DROPPED,
            when=every(_READ, untruncated),
            reason="not read; the ramp's ends are always rounded",
            source=_TABLES,
        ),
        Rule(
            setting="mscale, mscale_all_dim",
            verdict=Verdict.MISREAD,
            when=every(
                _READ,
                kind("yarn"),
                given("mscale", "mscale_all_dim"),
                no(every(given("mscale"), given("mscale_all_dim"))),
                lambda s: (
                    (s.entries.get("mscale", 1), s.entries.get("mscale_all_dim", 0)) != (1, 0)
                ),
            ),
            reason="one of the two alone takes effect here, elsewhere only both together do",
            source=_PARAMETERS,
        ),
        Rule(
            setting="attention_factor, factor, short_mscale, long_mscale",
            verdict=Verdict.DROPPED,
            when=every(_READ, kind("longrope"), not_the_ratios_multiplier),
            reason="not read; the multiplier follows from max_position_embeddings / L",
            source=_TABLES,
        ),
        Rule(
            setting="short_factor",
            verdict=Verdict.MISREAD,
            when=every(_READ, kind("longrope"), reaches_past_original),
            reason="one table serves a whole run, chosen by its maximum length: short texts "
            "rotate by the long one",
            source=_TABLES,
        ),
    ),
)
