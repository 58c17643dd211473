"""Multiple choice by likelihood: what answers well is seen, and what says the same everywhere answers nothing."""

import numpy as np
import pytest

from tfopt.measure.choices import questions_of, right_choices

TEXT = np.random.default_rng(0).integers(0, 50, 2000).astype(np.int32)


def test_questions_are_the_texts_own():
    questions = questions_of(TEXT, 64)
    assert len(questions) == len(TEXT) // 64 and {q.answer for q in questions} == {0, 1, 2, 3}
    for question in questions:
        assert question.passage.shape == (48,) and question.choices.shape == (4, 16)
        assert len(np.unique(question.choices, axis=0)) == 4
        own = np.concatenate([question.passage, question.choices[question.answer]])
        assert any((TEXT[start : start + 64] == own).all() for start in range(len(TEXT) - 63))
    again = questions_of(TEXT, 64)
    assert all(
        (a.choices == b.choices).all() and a.answer == b.answer for a, b in zip(questions, again, strict=True)
    )


@pytest.mark.parametrize(("text", "window"), [(TEXT[:100], 64), (np.zeros(2000, np.int32), 64), (TEXT, 3)])
def test_texts_that_are_too_short_or_all_the_same_give_none(text, window):
    assert questions_of(text, window) == []


def test_a_model_that_knows_the_text_is_right_and_one_that_knows_nothing_is_not():
    follows = {tuple(TEXT[i : i + 3]): TEXT[i + 3] for i in range(len(TEXT) - 3)}

    def knows(ids):
        logits = np.zeros((*ids.shape, 50))
        for row, text in enumerate(ids):
            for place in range(2, len(text)):
                after = follows.get(tuple(text[place - 2 : place + 1]))
                if after is not None:
                    logits[row, place, after] = 5
        return logits

    questions = questions_of(TEXT, 64)
    assert right_choices(knows, questions) == 1
    assert right_choices(lambda ids: -knows(ids), questions) < 0.1
    assert right_choices(lambda ids: np.zeros((*ids.shape, 50)), questions) == 0, "ties answer nothing"
    rng = np.random.default_rng(1)
    assert 0.05 < right_choices(lambda ids: rng.standard_normal((*ids.shape, 50)), questions) < 0.5
