import math
from dataclasses import replace

import pytest
import yaml

from ctx_export import demo
from ctx_export.core.errors import UserError
from ctx_export.core.recipe import build_recipe
from ctx_export.evaluation.advise import (
    Advice,
    AdviseSetting,
    Limits,
    Measured,
    Trial,
    candidates,
    choose,
    lacking,
    nearest_trial,
)
from ctx_export.frontends.checkpoint import read_checkpoint

LIMITS = Limits(perplexity=0.1, keys=0.9)


def measured(perplexity: float, keys: float, length: int = 256) -> Measured:
    means = tuple(math.log(perplexity) + offset for offset in (-0.5, 0.0, 0.5))
    return Measured(length=length, perplexity=perplexity, error=0.1, keys=keys, means=means)


OWN = measured(10.0, 1.0)


def trial(method, factor, perplexity, keys=1.0):
    short, long = measured(10.0, 1.0), measured(perplexity, keys, 1024)
    options = {"method": method, "target": 1024}
    if factor is not None:
        options["factor"] = factor
    return Trial(
        method=method,
        factor=factor,
        options=options,
        short=short,
        long=long,
        lacks=lacking(OWN, short, long, LIMITS),
    )


@pytest.mark.parametrize(
    ("short", "long", "lacks"),
    [
        (measured(11.0, 1.0), measured(11.0, 0.9), None),
        (measured(11.1, 1.0), measured(10.0, 1.0), "short perplexity 11.100 over 11.000"),
        (measured(10.0, 0.8), measured(10.0, 1.0), "short keys 80 % under 90 %"),
        (measured(10.0, 1.0), measured(11.1, 1.0), "long perplexity 11.100 over 11.000"),
        (measured(10.0, 1.0), measured(10.0, 0.5), "long keys 50 % under 90 %"),
    ],
)
def test_holding_means_perplexity_and_keys_short_and_long(short, long, lacks):
    assert lacking(OWN, short, long, LIMITS) == lacks


def test_keys_that_the_model_itself_does_not_find_are_not_asked_for():
    own = measured(10.0, 0.0)
    assert lacking(own, measured(10.0, 0.0), measured(10.0, 0.0), LIMITS) is None


def test_the_smallest_factor_that_holds_wins_then_the_lower_perplexity():
    trials = [
        trial("yarn", 4.0, 9.0),
        trial("ntk", 2.0, 10.5),
        trial("linear", 2.0, 10.4),
        trial("dynamic-ntk", 1.5, 12.0),
    ]
    best = choose(trials)
    assert best is not None and (best.method, best.factor) == ("linear", 2.0)


def test_a_cache_policy_wins_only_where_no_factor_holds():
    policy = trial("landmark", None, 9.0)
    chosen = choose([policy, trial("yarn", 8.0, 10.9)])
    assert chosen is not None and chosen.method == "yarn"
    assert choose([policy, trial("yarn", 8.0, 20.0)]) == policy
    assert choose([trial("yarn", 8.0, 20.0)]) is None


def test_the_nearest_trial_finds_most_keys():
    trials = [trial("yarn", 4.0, 20.0, 0.4), trial("ntk", 4.0, 30.0, 0.6)]
    assert nearest_trial(trials) == trials[1]
    refused = Trial(method="x", factor=None, options={}, lacks="no such thing")
    assert nearest_trial([refused]) is None and choose([refused]) is None


def test_factors_are_tried_around_the_stretch_from_the_smallest_on():
    spec = read_checkpoint(demo.path()).spec
    setting = AdviseSetting(target=1024)
    found = candidates("yarn", spec, setting)
    assert [c.factor for c in found] == pytest.approx([2, 2.8284, 4, 5.6569, 8])
    assert found[0].options == {"method": "yarn", "target": 1024, "factor": 2.0}
    # A factor of 1 is no scaling.
    half = candidates("yarn", spec, AdviseSetting(target=400))
    assert [c.factor for c in half] == pytest.approx([1.1049, 1.5625, 2.2097, 3.125], abs=1e-4)
    given = candidates("yarn", spec, AdviseSetting(target=1024, factors=(8.0, 2.0, 8.0)))
    assert [c.factor for c in given] == [2.0, 8.0]
    assert [c.factor for c in candidates("landmark", spec, setting)] == [None]
    assert [c.factor for c in candidates("theta", spec, setting)] == [None]


def advice(*trials: Trial) -> Advice:
    return Advice(
        model="demo",
        setting=AdviseSetting(target=1024),
        own=OWN,
        trials=trials,
        best=choose(trials),
        text={"name": "t", "sha256": "", "tokens": 9},
    )


def test_the_recipe_is_one_that_ctx_export_takes(tmp_path):
    found = advice(trial("ntk", 8.0, 20.0), trial("yarn", 4.0, 10.0))
    places = found.save(tmp_path)
    assert [place.name for place in places] == ["advise.json", "recipe.yaml"]
    recipe = build_recipe({}, file=places[1])
    assert (recipe.model, recipe.method, recipe.target, recipe.factor) == ("demo", "yarn", 1024, 4)
    assert "yarn 4 holds" in places[1].read_text()
    assert found.lines()[-1].startswith("use yarn 4: the smallest factor that holds")


def test_a_cache_policy_is_not_called_the_smallest_factor():
    last = advice(trial("landmark", None, 10.0)).lines()[-1]
    assert last.startswith("use landmark: no scaling factor holds")


def test_a_model_without_any_pass_key_is_told_of():
    own = measured(10.0, 0.0)
    found = replace(advice(trial("yarn", 4.0, 10.0, keys=0.0)), own=own)
    assert "finds no pass key at 256" in found.lines()[-2]
    assert not any("no pass key" in line for line in advice(trial("yarn", 4.0, 10.0)).lines())


def test_where_nothing_holds_the_nearest_is_named_with_what_it_lacks(tmp_path):
    found = advice(trial("yarn", 4.0, 20.0))
    assert (
        "nothing holds" in found.lines()[-1]
        and "nearest is yarn 4, which lacks long" in (found.lines()[-1])
    )
    text = found.recipe()
    assert "does not hold, it lacks long perplexity 20.000 over 11.000" in text
    assert yaml.safe_load(text)["method"] == "yarn"
    # A script that looks for recipe.yaml does not ship it.
    assert [place.name for place in found.save(tmp_path)] == ["advise.json", "nearest.yaml"]
    assert "--recipe nearest.yaml" in (tmp_path / "nearest.yaml").read_text()


def test_a_run_that_measured_nothing_leaves_no_earlier_recipe(tmp_path):
    advice(trial("yarn", 4.0, 10.0)).save(tmp_path)
    places = advice().save(tmp_path)
    assert [place.name for place in places] == ["advise.json"]
    assert not (tmp_path / "recipe.yaml").exists()


def test_limits_out_of_range_are_refused():
    with pytest.raises(UserError, match="worse is -1"):
        Limits(perplexity=-1)
    with pytest.raises(UserError, match="keys-found is 2"):
        Limits(keys=2)


def test_a_change_is_of_the_same_windows_whose_texts_cancel():
    """Windows of very different texts, each 0.1 ± 0.02 nats worse."""
    own = Measured(length=64, perplexity=9.0, error=5.0, keys=1.0, means=(1.0, 3.0, 5.0))
    other = Measured(length=64, perplexity=9.9, error=5.0, keys=1.0, means=(1.08, 3.1, 5.12))
    share, error = other.above(own)
    assert share == pytest.approx(math.exp(0.1) - 1)
    assert error == pytest.approx(math.exp(0.1) * 0.02 / math.sqrt(3))
    assert own.above(own) == (0.0, 0.0)
