"""transformers 4, which knows the spelling rope_scaling."""

from __future__ import annotations

from ctx_export.inspection.runtimes._conditions import (
    at_top_level,
    every,
    family,
    given,
    in_rope_parameters_only,
    kind,
    no,
    not_the_ratios_multiplier,
    partial,
    partial_in_entries_only,
    per_kind,
    reaches_past_original,
    scaled,
    theta_in_entries_only,
    word,
)
from ctx_export.inspection.runtimes.base import Rule, Runtime, Verdict
from ctx_export.inspection.runtimes.transformers import WHOLE_HEAD
from ctx_export.inspection.scaling_settings import ScalingSettings

_TABLES = "transformers 4.57.6, modeling_rope_utils.py"
_LLAMA = "transformers 4.57.6, models/llama/modeling_llama.py"
_PHI3 = "transformers 4.57.6, models/phi3/configuration_phi3.py"
_READ = no(in_rope_parameters_only)
_PHI3_KEYS = {"type", "short_factor", "long_factor"}


def _other_keys_than_phi3s(settings: ScalingSettings) -> bool:
    return set(settings.entries) != _PHI3_KEYS


RUNTIME = Runtime(
    name="transformers-4",
    version="4.57.6",
    honours=("default", "linear", "dynamic", "yarn", "longrope", "llama3"),
    source=_TABLES,
    rules=(
        Rule(
            setting="rope_parameters",
            verdict=Verdict.DROPPED,
            when=every(in_rope_parameters_only, scaled),
            reason="the spelling of transformers 5 is kept and never read: the rotation is plain; "
            "spell it rope_scaling",
            source=_LLAMA,
        ),
        Rule(
            setting="rope_theta",
            verdict=Verdict.DROPPED,
            when=theta_in_entries_only,
            reason="read from the top level of config.json alone: the base is the family's "
            "default; state rope_theta there too",
            source=_TABLES,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.DROPPED,
            when=partial_in_entries_only,
            reason="read from the top level of config.json alone; state it there too",
            source=_TABLES,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(_READ, kind("proportional")),
            reason="the type came with transformers 5: building the model fails on it",
            source=_TABLES,
        ),
        Rule(
            setting="rope_type su",
            verdict=Verdict.REFUSED,
            when=every(_READ, word("su"), no(family("phi3", "phi4_multimodal"))),
            reason="the older word for longrope is known to the Phi-3 family alone; elsewhere "
            "building the model fails on it",
            source=_TABLES,
        ),
        Rule(
            setting="rope_scaling",
            verdict=Verdict.REFUSED,
            when=every(_READ, scaled, family("phi3"), _other_keys_than_phi3s),
            reason="a Phi-3 config takes exactly the keys type, short_factor and long_factor; L "
            "belongs at the top level",
            source=_PHI3,
        ),
        Rule(
            setting="rope_scaling per kind of layer",
            verdict=Verdict.REFUSED,
            when=every(_READ, per_kind),
            reason="no type is found among nested settings: building the model fails",
            source=_LLAMA,
        ),
        Rule(
            setting="original_max_position_embeddings",
            verdict=Verdict.REFUSED,
            when=every(
                _READ,
                kind("longrope"),
                no(given("factor")),
                no(at_top_level("original_max_position_embeddings")),
            ),
            reason="longrope takes L from the top level of config.json alone, and without it and "
            "a factor fails to compute its multiplier",
            source=_TABLES,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.REFUSED,
            when=every(partial, no(partial_in_entries_only), family(*WHOLE_HEAD)),
            reason="the table covers a share of the head and this family rotates all of it: the "
            "shapes do not fit when the model runs",
            source=_LLAMA,
        ),
        Rule(
            setting="original_max_position_embeddings",
            verdict=Verdict.MISREAD,
            when=every(
                _READ,
                kind("longrope"),
                given("factor"),
                reaches_past_original,
                no(at_top_level("original_max_position_embeddings")),
            ),
            reason="longrope takes L from the top level of config.json alone, else "
            "max_position_embeddings: the long table is never used",
            source=_TABLES,
        ),
        Rule(
            setting="short_mscale, long_mscale",
            verdict=Verdict.DROPPED,
            when=every(
                _READ,
                kind("longrope"),
                given("short_mscale", "long_mscale"),
                no(given("attention_factor")),
                not_the_ratios_multiplier,
            ),
            reason="not read; the multiplier follows from max_position_embeddings / L",
            source=_TABLES,
        ),
        Rule(
            setting="cached keys",
            verdict=Verdict.MISREAD,
            when=every(_READ, kind("dynamic")),
            reason="past max_position_embeddings the table grows with the text, while keys in the "
            "cache stay rotated by the table of their own time: decoding differs from a forward "
            "of the whole text",
            source=_TABLES,
        ),
        Rule(
            setting="cached keys",
            verdict=Verdict.MISREAD,
            when=every(
                _READ,
                kind("longrope"),
                reaches_past_original,
                at_top_level("original_max_position_embeddings"),
                no(family("phi3")),
            ),
            reason="where the text passes L the long table replaces the short one, while keys in "
            "the cache stay rotated by the short one: decoding differs from a forward of the "
            "whole text",
            source=_TABLES,
        ),
    ),
)
