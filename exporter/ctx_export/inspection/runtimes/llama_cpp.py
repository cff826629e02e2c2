"""llama.cpp: its converter from Hugging Face checkpoints and what then reads the GGUF file."""

from __future__ import annotations

from ctx_export.inspection.runtimes._conditions import (
    at_top_level,
    attention_factor_shows,
    every,
    family,
    given,
    kind,
    no,
    not_the_ratios_multiplier,
    not_yarns_multiplier,
    original_is_not,
    other_kinds_scaled,
    partial,
    reaches_past_original,
    untruncated,
    windowed,
)
from ctx_export.inspection.runtimes.base import Rule, Runtime, Verdict

_BASE = "ggml-org/llama.cpp 2bbcf7f, conversion/base.py"
_LLAMA = "ggml-org/llama.cpp 0274f0f, conversion/llama.py"
_PHI = "ggml-org/llama.cpp 051139f, conversion/phi.py"
_CONTEXT = "ggml-org/llama.cpp 001d906, src/llama-context.cpp"
_MODEL = "ggml-org/llama.cpp, src/llama-model.cpp, get_rope_factors"
_OPS = "ggml-org/llama.cpp, ggml/src/ggml.c, ggml_rope_yarn_corr_dims"
# The families that conversion/llama.py converts.
_LLAMA_LIKE = family("llama", "mistral", "mixtral")
_PHI3 = family("phi3", "phimoe")

RUNTIME = Runtime(
    name="llama-cpp",
    version="commit 2bbcf7f",
    honours=("default", "linear", "yarn", "longrope", "llama3", "proportional"),
    source=_BASE,
    rules=(
        Rule(
            setting="rope_type dynamic",
            verdict=Verdict.DROPPED,
            when=kind("dynamic"),
            reason="passed over (HunYuan's own use of the word apart): the file says nothing of "
            "it and the rotation is plain",
            source=_BASE,
        ),
        Rule(
            setting="rope_type proportional",
            verdict=Verdict.DROPPED,
            when=every(kind("proportional"), no(family("gemma4", "gemma4_text"))),
            reason="named in a warning as unknown, then passed over: the rotation is plain",
            source=_BASE,
        ),
        Rule(
            setting="short_factor, long_factor",
            verdict=Verdict.DROPPED,
            when=every(kind("longrope"), _LLAMA_LIKE),
            reason="the lists are written for the Phi-3 family; here the file says longrope and "
            "holds none",
            source=_LLAMA,
        ),
        Rule(
            setting="original_max_position_embeddings",
            verdict=Verdict.MISREAD,
            when=every(
                kind("llama3"),
                _LLAMA_LIKE,
                no(at_top_level("original_max_position_embeddings")),
                original_is_not(8192),
            ),
            reason="llama3 takes L from the top level of config.json alone, else 8192",
            source=_LLAMA,
        ),
        Rule(
            setting="attention_factor",
            verdict=Verdict.DROPPED,
            when=every(kind("yarn"), attention_factor_shows),
            reason="written to the file, then replaced by 0.1 · ln s + 1 when a context is made",
            source=_CONTEXT,
        ),
        Rule(
            setting="mscale, mscale_all_dim",
            verdict=Verdict.DROPPED,
            when=every(
                kind("yarn"),
                given("mscale", "mscale_all_dim"),
                no(given("attention_factor")),
                not_yarns_multiplier,
                no(family("deepseek_v2", "deepseek_v3")),
            ),
            reason="written for DeepSeek's models alone; the multiplier is 0.1 · ln s + 1",
            source=_BASE,
        ),
        Rule(
            setting="truncate",
            verdict=Verdict.DROPPED,
            when=untruncated,
            reason="not written; the ramp's ends are always rounded",
            source=_OPS,
        ),
        Rule(
            setting="attention_factor, factor, short_mscale, long_mscale",
            verdict=Verdict.DROPPED,
            when=every(kind("longrope"), _PHI3, not_the_ratios_multiplier),
            reason="not read; the multiplier follows from max_position_embeddings / L",
            source=_PHI,
        ),
        Rule(
            setting="short_factor",
            verdict=Verdict.MISREAD,
            when=every(kind("longrope"), _PHI3, reaches_past_original),
            reason="the list is chosen by the size of the context that was opened, not by the "
            "length of the text: short texts rotate by the long one",
            source=_MODEL,
        ),
        Rule(
            setting="partial_rotary_factor",
            verdict=Verdict.DROPPED,
            when=every(partial, _LLAMA_LIKE),
            reason="the whole head is written as the rotated part",
            source=_LLAMA,
        ),
        Rule(
            setting="settings per kind of layer",
            verdict=Verdict.DROPPED,
            when=other_kinds_scaled,
            reason="of layers with a window the base alone is read, not their scaling",
            source=_BASE,
        ),
        Rule(
            setting="sliding_window",
            verdict=Verdict.DROPPED,
            when=every(windowed, family("mistral", "mixtral")),
            reason="not written for this family: every layer sees every token",
            source=_LLAMA,
        ),
    ),
)
