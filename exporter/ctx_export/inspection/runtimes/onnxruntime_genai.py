"""onnxruntime-genai's model builder, which reads config.json through transformers 5."""

from __future__ import annotations

from ctx_export.inspection.runtimes._conditions import (
    attention_factor_shows,
    every,
    factor_is_not,
    family,
    given,
    kind,
    no,
    not_the_ratios_multiplier,
    partial,
    per_kind,
    some,
    truncated,
    word,
)
from ctx_export.inspection.runtimes.base import Rule, Runtime, Verdict
from ctx_export.inspection.scaling_settings import ScalingSettings

_BASE = "onnxruntime-genai 0.18.0, models/builders/base.py"
_PHI = "onnxruntime-genai 0.18.0, models/builders/phi.py"
_LLAMA = "onnxruntime-genai 0.18.0, models/builders/llama.py"
_GEMMA = "onnxruntime-genai 0.18.0, models/builders/gemma.py"
_PHI3 = family("phi3", "phimoe", "phi3small")
_LLAMA3 = family("llama", "nemotron", "smollm3")


def _ramp_not_inside(settings: ScalingSettings) -> bool:
    """Its assertion 0 < low < high < head_dim / 2 − 1 on the ramp's ends, over the whole head."""
    low, high = settings.yarn_ramp(settings.head_dim)
    return not 0 < low < high < settings.head_dim / 2 - 1


RUNTIME = Runtime(
    name="onnxruntime-genai",
    version="0.18.0",
    honours=("default", "linear", "yarn", "longrope", "llama3", "proportional"),
    source=_BASE,
    rules=(
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=kind("dynamic"),
            reason="the builder has no dynamic tables (HunYuan's own use of the word apart)",
            source=_BASE,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(kind("proportional"), no(family("gemma4", "gemma4_text"))),
            reason="proportional tables are built for Gemma 4 alone",
            source=_GEMMA,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(kind("llama3"), no(_LLAMA3)),
            reason="llama3 tables are built for LlamaForCausalLM and its derivatives alone",
            source=_LLAMA,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(kind("longrope"), no(_PHI3)),
            reason="longrope tables are built for the Phi-3 family alone",
            source=_PHI,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(kind("longrope"), _PHI3, no(lambda s: "type" in s.type_keys)),
            reason="longrope is looked up under the older key type, and there is none",
            source=_PHI,
        ),
        Rule(
            setting="settings per kind of layer",
            verdict=Verdict.REFUSED,
            when=every(per_kind, no(family("gemma4", "gemma4_text"))),
            reason="no rope_type is found among nested settings",
            source=_BASE,
        ),
        Rule(
            setting="beta_fast, beta_slow",
            verdict=Verdict.REFUSED,
            when=every(kind("yarn"), some(no(given("beta_fast")), no(given("beta_slow")))),
            reason="a beta that is not stated counts as 0, and the builder divides by it; state "
            "beta_fast 32 and beta_slow 1",
            source=_BASE,
        ),
        Rule(
            setting="beta_fast, beta_slow",
            verdict=Verdict.REFUSED,
            when=every(kind("yarn"), given("beta_fast"), given("beta_slow"), _ramp_not_inside),
            reason="an assertion wants the whole ramp inside the head and fails",
            source=_BASE,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.REFUSED,
            when=every(kind("yarn"), partial),
            reason="YaRN's ramp is made for the whole head and does not fit the shorter table",
            source=_BASE,
        ),
        Rule(
            setting="truncate",
            verdict=Verdict.MISREAD,
            when=every(kind("yarn"), truncated),
            reason="the ramp's ends are never rounded, as if truncate were false: frequencies on "
            "the ramp differ",
            source=_BASE,
        ),
        Rule(
            setting="attention_factor",
            verdict=Verdict.DROPPED,
            when=every(kind("yarn"), attention_factor_shows),
            reason="not read; the multiplier follows from factor or from mscale and "
            "mscale_all_dim",
            source=_BASE,
        ),
        Rule(
            setting="mscale",
            verdict=Verdict.MISREAD,
            when=every(
                kind("yarn"),
                given("mscale"),
                no(given("mscale_all_dim")),
                lambda s: s.entries["mscale"] != s.multiplier,
            ),
            reason="without mscale_all_dim it is taken for the multiplier itself",
            source=_BASE,
        ),
        Rule(
            setting="attention_factor, factor",
            verdict=Verdict.DROPPED,
            when=every(
                kind("longrope"),
                _PHI3,
                no(given("short_mscale", "long_mscale")),
                not_the_ratios_multiplier,
            ),
            reason="not read; the multiplier follows from max_position_embeddings / L",
            source=_PHI,
        ),
        Rule(
            setting="factor",
            verdict=Verdict.DROPPED,
            when=every(kind("proportional"), factor_is_not(1.0)),
            reason="Gemma 4's tables are made without it",
            source=_GEMMA,
        ),
        Rule(
            setting="rope_type su",
            verdict=Verdict.REFUSED,
            when=every(word("su"), no(_PHI3)),
            reason="transformers, which reads the checkpoint, fails on the word",
            source=_BASE,
        ),
    ),
)
