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
_GEMMA4 = family("gemma4", "gemma4_text")
_PHI3 = family("phi3", "phimoe", "phi3small")
# The families whose builder derives from LlamaModel, which reads no rope type but llama3.
_LLAMA_LIKE = family("llama", "nemotron", "smollm3")

_YARN = every(kind("yarn"), no(_LLAMA_LIKE))


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
            verdict=Verdict.DROPPED,
            when=every(_LLAMA_LIKE, no(kind("default", "llama3"))),
            reason="the builder of LlamaForCausalLM and its derivatives reads llama3 alone and "
            "passes over every other type: the rotation is plain",
            source=_LLAMA,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(kind("dynamic", "llama3"), no(_LLAMA_LIKE)),
            reason="the common builder has default, linear and yarn tables",
            source=_BASE,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(kind("proportional"), no(_LLAMA_LIKE), no(_GEMMA4)),
            reason="proportional tables are built for Gemma 4 alone",
            source=_GEMMA,
        ),
        Rule(
            setting="rope_type",
            verdict=Verdict.REFUSED,
            when=every(kind("longrope"), no(_LLAMA_LIKE), no(_PHI3)),
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
            when=every(per_kind, no(_GEMMA4)),
            reason="no rope_type is found among nested settings",
            source=_BASE,
        ),
        Rule(
            setting="beta_fast, beta_slow",
            verdict=Verdict.REFUSED,
            when=every(_YARN, some(no(given("beta_fast")), no(given("beta_slow")))),
            reason="a beta that is not stated counts as 0, and the builder divides by it; state "
            "beta_fast 32 and beta_slow 1",
            source=_BASE,
        ),
        Rule(
            setting="beta_fast, beta_slow",
            verdict=Verdict.REFUSED,
            when=every(_YARN, given("beta_fast"), given("beta_slow"), _ramp_not_inside),
            reason="an assertion wants the whole ramp inside the head and fails",
            source=_BASE,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.REFUSED,
            when=every(_YARN, partial),
            reason="YaRN's ramp is made for the whole head and does not fit the shorter table",
            source=_BASE,
        ),
        Rule(
            setting="truncate",
            verdict=Verdict.MISREAD,
            when=every(_YARN, truncated),
            reason="the ramp's ends are never rounded, as if truncate were false: frequencies on "
            "the ramp differ",
            source=_BASE,
        ),
        Rule(
            setting="attention_factor",
            verdict=Verdict.DROPPED,
            when=every(_YARN, attention_factor_shows),
            reason="not read; the multiplier follows from factor or from mscale and "
            "mscale_all_dim",
            source=_BASE,
        ),
        Rule(
            setting="mscale",
            verdict=Verdict.MISREAD,
            when=every(
                _YARN,
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
