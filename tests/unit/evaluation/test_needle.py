from dataclasses import replace

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.evaluation.needle import (
    Answer,
    Cell,
    CellResult,
    NeedleSetting,
    ask,
    questions,
)
from ctx_export.evaluation.scoring import Ints, Scores
from tests.unit.evaluation.fakes import Uniform, letters, text_of

# A text whose words are found nowhere in a needle.
TEXT = "zzz qqq xxx jjj " * 100
IDS = np.array([ord(letter) for letter in TEXT])
SETTING = NeedleSetting(lengths=(400,), depths=(0.0, 0.5, 1.0), keys=3)


def made(length: int, depth: float, setting: NeedleSetting = SETTING):
    return questions(letters(), IDS, Cell(length=length, depth=depth), setting)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("form", ["pass-key", "natural"])
def test_a_text_has_its_length_and_tells_the_answer_at_its_depth(depth, form):
    for question in made(400, depth, replace(SETTING, form=form)):
        assert len(question.tokens) == 400 and question.tokens[0] == 1
        answer = text_of(question.tokens[question.first :])
        text = text_of(question.tokens)
        assert answer[0] == " " and len(answer) > 3
        before = text.index("\n")
        told = text[before : text.index("\n", before + 1) + 1]
        assert answer.strip() in told
        filler = 399 - len(told) - (len(text) - text.rindex("\n"))
        assert before == round(depth * filler)
        assert text[:before] in TEXT * 2


def test_a_pass_key_is_told_as_the_papers_prompt_does():
    text = text_of(made(400, 0.5)[0].tokens)
    key = text[-5:]
    assert key.isdigit()
    assert f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n" in text
    assert text.endswith(f"\nWhat is the pass key? The pass key is {key}")


def test_questions_are_the_same_every_time_and_differ_by_number_and_seed():
    first = made(400, 0.5)
    assert len(first) == 3 and len({tuple(question.tokens) for question in first}) == 3
    again = made(400, 0.5)
    assert all((a.tokens == b.tokens).all() for a, b in zip(first, again, strict=True))
    other = made(400, 0.5, replace(SETTING, seed=1))
    assert not (first[0].tokens == other[0].tokens).all()


def test_a_cells_needle_is_the_same_at_every_depth_and_length():
    """So that a map's cells differ by place alone."""
    keys = {
        text_of(made(length, depth)[0].tokens)[-5:] for length in (300, 400) for depth in (0, 1)
    }
    assert len(keys) == 1


@pytest.mark.parametrize("form", ["pass-key", "natural"])
def test_of_several_needles_one_is_asked_for(form):
    setting = replace(SETTING, form=form, needles=4)
    question = made(800, 0.25, setting)[0]
    text, answer = text_of(question.tokens), text_of(question.tokens[question.first :]).strip()
    lines = [line for line in text.split("\n") if "pass key of" in line or " hid the " in line]
    told, asked = lines[:-1], lines[-1]
    assert len(question.tokens) == 800 and len(told) == 4
    right = [line for line in told if answer in line]
    assert len(right) == 1
    owner = asked.split(" of ")[1].split("?")[0] if form == "pass-key" else asked.split()[2]
    assert owner in right[0] and sum(owner in line for line in told) == 1
    # At depths 0.25, 0.5, 0.75 and 0: the one asked for is the second in the text.
    assert told.index(right[0]) == 1


def test_a_short_text_begins_again():
    question = questions(letters(), IDS[:16], Cell(length=400, depth=0.0), SETTING)[0]
    assert text_of(question.tokens).count("zzz qqq xxx jjj") > 10


def test_a_text_without_tokens_or_beyond_memory_is_refused():
    setting = NeedleSetting(lengths=(200,), depths=(0.5,), keys=1)
    with pytest.raises(UserError, match="no tokens"):
        questions(letters(), np.array([], np.int64), Cell(length=200, depth=0.5), setting)
    with pytest.raises(UserError, match="does not fit into memory"):
        questions(letters(), np.arange(9), Cell(length=1 << 60, depth=0.5), setting)


def test_a_length_that_the_question_alone_fills_is_refused():
    with pytest.raises(UserError, match=r"length 90 is too short: .* alone are \d+ tokens"):
        made(90, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": ()}, "no lengths"),
        ({"depths": (1.5,)}, "depth 150 is not within 0 to 100 percent"),
        ({"form": "poem"}, "form is 'poem': it must be one of pass-key, natural"),
        ({"needles": 0}, "needles is 0"),
        ({"keys": 0}, "keys is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(SETTING, **change)


class Missing(Uniform):
    """Knows every token but those at `wrong` places after `first`."""

    def __init__(self, wrong: tuple[int, ...]) -> None:
        super().__init__(4)
        self.wrong = wrong

    def score(self, tokens: Ints, first: int) -> Scores:
        count = len(tokens) - first
        right = np.array([place not in self.wrong for place in range(count)])
        return Scores(losses=np.where(right, 0.25, 3.0), likeliest=right)


def test_an_answer_counts_if_every_token_of_it_is_the_likeliest():
    question = made(400, 0.5)[0]  # six characters: a space and five digits
    assert ask(Missing(()), [question]) == (Answer(found=True, log_probability=-1.5),)
    for wrong in range(6):
        expected = Answer(found=False, log_probability=-(5 * 0.25 + 3.0))
        assert ask(Missing((wrong,)), [question]) == (expected,)


def test_a_cells_means_are_of_its_answers_and_survive_json():
    answers = (Answer(found=True, log_probability=-1.0), Answer(found=False, log_probability=-3.0))
    cell = CellResult(subject="s", length=400, depth=0.5, answers=answers)
    assert (cell.found, cell.log_probability) == (0.5, -2.0)
    assert CellResult.from_json(cell.to_json()) == cell
