"""The C++ runtime: its unit tests, and its tokens beside those of the Python session.

The software engine computes in float32 what onnxruntime does, in another order of summation, so
tokens are compared where a logit leads by more than rounding could change.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export import demo
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source
from ctx_export.runtime.errors import ContextLimitError
from ctx_export.runtime.sampling import Sampler, Sampling
from ctx_export.runtime.session import open_session
from ctx_export.runtime.text import TextCodec
from tests.cpp.runtime_build import program
from tests.cpp.runtime_script import CLEAR, PythonSession, feed, generate, in_cpp

CHECKPOINT = Path(demo.__file__).parent
# max_batch is an engine's; sessions of the software engine and of onnxruntime take any.
PACKAGES = {
    "full": {"method": "yarn", "target": 1024, "max_chunk": 64},
    "streaming": {"method": "streaming", "sinks": 4, "window": 60, "max_chunk": 32},
    "dynamic": {"method": "dynamic-ntk", "target": 1024, "max_chunk": 64},
}
CASES = [
    *("growth_keeps_slots_and_zeroes_new_ones", "a_failed_growth_leaves_all_as_they_were"),
    *("rings_have_their_size_from_the_start", "rows_are_copied_and_zeroed_alone"),
    *("sizes_beyond_numbers_are_out_of_memory", "sha256_gives_the_published_digests"),
    *("a_session_is_used_from_c", "tokens_are_generated_from_c"),
    *("structs_of_other_sizes_are_understood", "failures_are_statuses_with_a_message"),
    *("tokens_are_streamed_as_they_are_made", "end_tokens_end_the_output"),
    *("requests_of_several_sequences_share_calls", "the_maximum_context_ends_the_output"),
    *("the_callback_ends_its_sequence", "cancelling_ends_all_sequences_with_what_they_have"),
    *("a_callback_that_throws_is_an_error", "requests_that_make_no_sense_are_refused"),
    *("a_request_has_one_rope_length", "a_manifest_is_read", "tables_and_rules_are_read"),
    *("another_format_version_is_refused", "truncated_manifests_are_refused"),
    *("no_value_of_any_type_does_more_than_be_refused", "what_is_missing_is_named"),
    *("wrong_values_are_shown_with_their_place", "sizes_that_do_not_go_together_are_refused"),
    "inputs_and_outputs_that_do_not_pair_up_are_refused",
    *("temperature_zero_takes_the_likeliest", "top_k_and_top_p_keep_the_likeliest"),
    *("many_tokens_are_cut_as_few_are", "tokens_come_as_often_as_their_probability"),
    *("a_seed_repeats_its_tokens", "settings_that_make_no_sense_are_refused"),
    *("logits_that_are_no_numbers_are_refused", "a_feed_is_cut_into_calls_of_the_chunk"),
    *("any_split_gives_the_same_logits", "places_without_a_token_are_zero"),
    *("a_full_cache_grows_in_place", "past_the_maximum_nothing_changes"),
    *("tokens_that_make_no_sense_change_nothing", "the_rope_length_is_fixed_for_a_feed"),
    *("a_call_that_fails_leaves_what_the_cache_still_serves", "a_feed_is_cancelled_between_calls"),
    *("memory_that_runs_out_changes_nothing", "sequences_are_forked_truncated_and_reset"),
    "a_ring_forgets_and_is_taken_back_by_its_spare_slots",
    "a_forked_ring_reaches_back_no_farther",
    *("an_engine_that_affords_less_gets_less", "a_second_thread_is_refused"),
    *("options_that_make_no_sense_are_refused", "tokens_lie_where_the_rules_say"),
    *("slots_in_use_stop_at_the_capacity", "a_ring_can_be_taken_back_by_its_spare_slots"),
    *("capacity_grows_by_a_quarter_in_steps_of_256", "feeds_are_cut_into_chunks_of_ragged_rows"),
    "landmark_tokens_are_fed_between_those_of_the_text",
    "a_full_cache_refuses_tokens_past_its_maximum",
    "sequences_are_lost_where_their_cache_lacks_what_is_seen",
    "truncation_goes_as_far_as_the_spare_slots",
]
Ask = Callable[..., list[str]]


@pytest.fixture(scope="module")
def unit_tests() -> Path:
    return program("ctx_runtime_test")


@pytest.mark.parametrize("case", CASES)
def test_units(unit_tests: Path, case: str) -> None:
    run = subprocess.run(
        [unit_tests, case], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr


def test_no_unit_test_is_left_out(unit_tests: Path) -> None:
    run = subprocess.run([unit_tests], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(run.stdout.split()) == sorted(CASES)


@pytest.fixture(scope="module")
def traced() -> Source:
    return load_source(Recipe(model="demo", precision="fp32"))


@pytest.fixture(scope="module", params=PACKAGES)
def package(
    request: pytest.FixtureRequest, traced: Source, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    options = PACKAGES[request.param]
    recipe = Recipe(
        model="demo",
        output=tmp_path_factory.mktemp("packages") / request.param,
        precision="fp32",
        engine="none",
        validate=False,
        **options,
    )
    return export_source(traced, recipe).output


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Tokens of a text that the demo model was not trained on."""
    codec = TextCodec.load(CHECKPOINT, 1)
    return codec.encode((CHECKPOINT / "heldout.txt").read_text(encoding="utf-8")[:6000])


@pytest.fixture(scope="module")
def script_program() -> Path:
    return program("ctx_runtime_script")


@pytest.fixture
def both(package: Path, script_program: Path) -> Ask:
    """What Python answers to commands, which C++ has to answer too at every chunk size."""

    def ask(*lines: str, batch: int = 1, chunks: tuple[int, ...] = (0,)) -> list[str]:
        with open_session(package, batch=batch, threads=1) as session:
            python = PythonSession(session)
            expected = [python.answer(line) for line in lines]
        assert python.closest > CLEAR
        for chunk in chunks:
            found = in_cpp(script_program, package, CHECKPOINT, lines, batch=batch, chunk=chunk)
            assert found == expected
        return expected

    return ask


def test_greedy_tokens_are_those_of_the_python_session(both: Ask, text: list[int]) -> None:
    """From a prompt past the trained 256 tokens on, 330 more: the ring of 91 wraps seven times,
    and the full caches grow twice."""
    (answer, lengths) = both(generate({0: text[:300]}, 330), "lengths", chunks=(0, 17, 1))
    assert len(answer.split(",")) == 330 and lengths == "ok 629"


def test_tokens_of_a_text_are_predicted_alike(both: Ask, text: list[int]) -> None:
    """Token by token, where the frequencies of the dynamic package follow the length."""
    lines = [feed({0: text[:250]}), *(feed({0: [token]}) for token in text[250:600])]
    both(*lines)


def test_one_rope_length_for_a_request(both: Ask, text: list[int]) -> None:
    both(feed({0: text[:100]}, 700), generate({0: text[100:130]}, 100, 700), chunks=(0, 7))


def test_two_sequences_side_by_side(both: Ask, text: list[int]) -> None:
    """Of different lengths, one of them joining later, and one left alone for a while."""
    both(
        feed({0: text[:200]}),
        generate({0: text[200:210], 1: text[400:531]}, 150),
        feed({1: text[600:620]}),
        "lengths",
        generate({0: text[210:240], 1: text[620:630]}, 20),
        batch=2,
        chunks=(0, 13),
    )


def test_sequences_are_cut_forked_and_reset_alike(both: Ask, text: list[int]) -> None:
    both(
        feed({0: text[:310]}),
        "truncate 0 295",
        feed({0: text[700:720]}),
        "fork 0 -",
        feed({0: text[720:725], 1: text[800:810]}),
        "reset 0",
        "capacity",
        generate({0: text[500:520], 1: text[810:815]}, 100),
        "fork 1 0",
        feed({0: text[900:901], 1: text[900:901]}),
        "lengths",
        batch=2,
        chunks=(0, 11),
    )


def test_the_maximum_is_refused_alike(
    both: Ask, package: Path, script_program: Path, text: list[int]
) -> None:
    """A full package takes 1024 tokens; the refused feed changes nothing on either side. A bounded
    one takes any number."""
    ids = (text * 4)[:1030]
    first, too_many, rest = feed({0: ids[:1020]}), feed({0: ids[1020:]}), feed({0: ids[1020:1024]})
    if package.name == "streaming":
        assert both(first, too_many, "lengths")[-1] == "ok 1030"
        return
    lines = [first, too_many, rest, "lengths"]
    found = in_cpp(script_program, package, CHECKPOINT, lines, batch=1, chunk=0)
    with open_session(package, threads=1) as session:
        python = PythonSession(session)
        expected = [python.answer(first)]
        with pytest.raises(ContextLimitError) as refused:
            python.answer(too_many)
        expected += [f"error 3 {refused.value}", python.answer(rest), "ok 1024"]
    assert found == expected


@pytest.mark.parametrize(
    "options",
    [
        {"method": "dynamic-yarn"},
        {"method": "proportional", "factor": 4.0},
        {"cache": "lm-infinite"},
        {"cache": "sliding-window"},
        {"cache": "memory"},
        {"cache": "landmark"},
        {"cache": "self-extend"},
        {"cache": "dual-chunk"},
    ],
    ids=str,
)
def test_packages_of_every_policy_are_understood(
    traced: Source, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Their manifests pass the checks that refuse sizes which do not go together."""
    recipe = Recipe(
        model="demo",
        output=tmp_path / "package",
        target=1024,
        precision="fp32",
        engine="none",
        validate=False,
        **options,
    )
    package = export_source(traced, recipe).output
    command = [program("ctx_runtime_check"), package, "tensorrt", "10", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "the package has no engine: export it with --engine tensorrt\n"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=1),
        Sampling(temperature=1.0, top_k=50),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=0.4, top_p=0.05),
        Sampling(temperature=2.0, top_k=70, top_p=0.8),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_python_sampler_s_distribution(
    package: Path, script_program: Path, sampling: Sampling
) -> None:
    """The same tokens with the same probabilities; what a seed draws of them is each language's
    own."""
    logits = np.random.default_rng(3).normal(0, 3, 300).astype(np.float32)
    logits[100:120] = logits[50]  # ties, which go to the lower id
    sampler, drawn = Sampler(sampling), Drawn()
    sampler._random = drawn  # type: ignore[assignment]
    sampler.choose(logits)
    numbers = ",".join(f"{logit:.9g}" for logit in logits)
    line = f"candidates {sampling.temperature} {sampling.top_k} {sampling.top_p} {numbers}"
    (answer,) = in_cpp(script_program, package, CHECKPOINT, [line], batch=1, chunk=0)
    found = {int(token): float(p) for token, p in (w.split(":") for w in answer.split(" ")[1:])}
    assert set(found) == set(drawn.probabilities)
    for token, probability in drawn.probabilities.items():
        assert found[token] == pytest.approx(probability, rel=1e-9)


class Drawn:
    """Stands for numpy's generator and keeps what was to be drawn from."""

    probabilities: dict[int, float]

    def choice(self, tokens: Any, p: Any) -> int:
        self.probabilities = dict(zip(map(int, tokens), map(float, p), strict=True))
        return int(tokens[0])
