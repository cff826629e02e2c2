"""transformers 5."""

from __future__ import annotations

from ctx_export.inspection.runtimes._conditions import (
    every,
    family,
    given,
    kind,
    no,
    not_the_ratios_multiplier,
    partial,
    per_kind,
    reaches_past_original,
    scaled,
    untruncated,
    word,
)
from ctx_export.inspection.runtimes.base import Rule, Runtime, Verdict

_TABLES = "transformers 5.23.0, modeling_rope_utils.py"
_LLAMA = "transformers 5.23.0, models/llama/modeling_llama.py"
_PHI3 = "transformers 5.23.0, models/phi3/configuration_phi3.py"
# Families without a word on partial_rotary_factor in their modeling file.
WHOLE_HEAD = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "olmo2", "cohere")

RUNTIME = Runtime(
    name="transformers",
    version="5.23.0",
    honours=("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"),
    source=_TABLES,
    rules=(
        Rule(
            setting="rope_type su",
            verdict=Verdict.REFUSED,
            when=every(word("su"), no(family("phi3", "phi4_multimodal"))),
            reason="the older word for longrope is known to the Phi-3 family alone; elsewhere "
            "building the model fails on it",
            source=_TABLES,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(family("phi3"), no(kind("default", "longrope"))),
            reason="a Phi-3 config takes no rope type but longrope",
            source=_PHI3,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.REFUSED,
            when=every(partial, scaled, family(*WHOLE_HEAD)),
            reason="the table covers a share of the head and this family rotates all of it: the "
            "shapes do not fit when the model runs",
            source=_LLAMA,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.DROPPED,
            when=every(partial, no(scaled), family(*WHOLE_HEAD)),
            reason="this family's plain table covers the whole head whatever the factor says",
            source=_LLAMA,
        ),
        Rule(
            setting="truncate",
            verdict=Verdict.DROPPED,
            when=every(per_kind, untruncated),
            reason="looked up beside the settings of each kind of layer, not inside them: the "
            "ramp's ends are rounded all the same",
            source=_TABLES,
        ),
        Rule(
            setting="short_mscale, long_mscale",
            verdict=Verdict.DROPPED,
            when=every(
                kind("longrope"),
                given("short_mscale", "long_mscale"),
                no(given("attention_factor")),
                not_the_ratios_multiplier,
            ),
            reason="named in a warning as unrecognised; the multiplier follows from "
            "max_position_embeddings / L",
            source=_TABLES,
        ),
        Rule(
            setting="cached keys",
            verdict=Verdict.MISREAD,
            when=kind("dynamic"),
            reason="past max_position_embeddings the table grows with the text, while keys in the "
            "cache stay rotated by the table of their own time: decoding differs from a forward "
            "of the whole text",
            source=_TABLES,
        ),
        Rule(
            setting="cached keys",
            verdict=Verdict.MISREAD,
            when=every(kind("longrope"), reaches_past_original, no(family("phi3"))),
            reason="where the text passes L the long table replaces the short one, while keys in "
            "the cache stay rotated by the short one: decoding differs from a forward of the "
            "whole text",
            source=_TABLES,
        ),
    ),
)
