import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.evaluation.perplexity import (
    PerplexityReport,
    PerplexitySetting,
    bucket_edges,
    measure,
    point,
    windows,
)
from tests.unit.evaluation.fakes import Uniform, letters

IDS = np.arange(1000) % 200 + 20


def test_windows_of_all_lengths_end_at_the_same_tokens_a_stride_apart():
    setting = PerplexitySetting(lengths=(16, 64), stride=10, windows=1000)
    cut = windows(IDS, letters(), setting)
    # 63 tokens after BOS, then every 10th end up to 1000.
    ends = list(range(63, 1001, 10))
    assert {length: len(made) for length, made in cut.items()} == {16: len(ends), 64: len(ends)}
    for length, made in cut.items():
        for end, window in zip(ends, made, strict=True):
            assert window.tolist() == [1, *IDS[end - length + 1 : end]]


def test_fewer_windows_are_spread_from_the_beginning_to_the_end():
    setting = PerplexitySetting(lengths=(10,), stride=9, windows=3)
    cut = windows(IDS, letters(()), setting)[10]
    assert [int(np.flatnonzero(w[0] == IDS)[0]) % 200 for w in cut] == [0, 95 % 200, 990 % 200]
    assert cut[0].tolist() == IDS[:10].tolist() and cut[2].tolist() == IDS[990:1000].tolist()


@pytest.mark.parametrize(
    ("length", "edges"),
    [
        (2, [(1, 2)]),
        (64, [(1, 64)]),
        (65, [(1, 64), (64, 65)]),
        (300, [(1, 64), (64, 128), (128, 256), (256, 300)]),
    ],
)
def test_buckets_double_and_cover_every_position_once(length, edges):
    assert bucket_edges(length) == edges


def test_a_point_is_of_the_last_tokens_and_its_buckets_of_all():
    """Losses by hand: two windows of 130 tokens, their last two tokens at 1 and 3, others 2."""
    found = np.full((2, 129), 2.0)
    found[0, -2:], found[1, -2:] = 1.0, 3.0
    made = point("s", found, 2)
    assert (made.length, made.windows) == (130, 2)
    # Means 1 and 3: 2 ± 1 in nats.
    assert made.perplexity == pytest.approx(np.exp(2)) and made.error == pytest.approx(np.exp(2))
    assert [(b.first, b.end) for b in made.buckets] == [(1, 64), (64, 128), (128, 130)]
    assert [b.error for b in made.buckets[:2]] == [0, 0]
    assert made.buckets[2].error == pytest.approx(np.exp(2))


def test_a_uniform_model_has_its_vocabulary_as_perplexity_everywhere():
    subject = Uniform(256)
    setting = PerplexitySetting(lengths=(64, 16), windows=4)
    points = measure([subject], letters(), IDS, setting)
    assert [made.length for made in points] == [16, 64]
    for made in points:
        assert made.perplexity == pytest.approx(256) and made.error == pytest.approx(0, abs=1e-9)
        assert all(bucket.perplexity == pytest.approx(256) for bucket in made.buckets)
    assert all(tokens[0] == 1 for tokens in subject.read)


@pytest.mark.parametrize("length", [10**12, 10**30])
def test_a_length_beyond_every_text_is_refused(length):
    with pytest.raises(UserError, match="give a longer text"):
        windows(np.arange(50), letters(), PerplexitySetting(lengths=(8, length)))


def test_what_cannot_be_measured_is_refused_with_the_fix():
    def refused(pattern, **options):
        return pytest.raises(UserError, match=pattern)

    with refused("no length given"):
        PerplexitySetting(lengths=())
    with refused("length 3 is too short"):
        PerplexitySetting(lengths=(3,))
    with refused("stride is 64: give 1 to 63"):
        PerplexitySetting(lengths=(64,), stride=64)
    with refused("windows is 1"):
        PerplexitySetting(lengths=(64,), windows=1)
    with refused(r"the text has 50 tokens, and two windows of 64 need 79"):
        windows(IDS[:50], letters(), PerplexitySetting(lengths=(64,)))
    with refused("length 64 is over the 32 tokens that short was made for"):
        measure([Uniform(256, "short", 32)], letters(), IDS, PerplexitySetting(lengths=(64,)))


def test_the_table_has_a_row_per_subject_and_a_column_per_length():
    setting = PerplexitySetting(lengths=(16, 64), windows=4)
    points = measure([Uniform(256, "a"), Uniform(16, "b")], letters(), IDS % 16, setting)
    text = {"name": "t", "sha256": "", "tokens": 1000}
    lines = PerplexityReport(setting=setting, text=text, points=points).lines()
    assert lines[0].split() == ["perplexity", "16", "64"]
    assert lines[2].split() == ["b", "16.000", "±", "0.000", "16.000", "±", "0.000"]
