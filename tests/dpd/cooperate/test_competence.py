"""Choice of teachers by score, with numbers worked out by hand."""

import numpy as np
import pytest

from dpd.cooperate.rounds import NO_TEACHER, find_teachers


def test_a_student_learns_where_its_gap_exceeds_the_margin() -> None:
    # std of (4, 0, 1, 0, 4, 0.1): mean 9.1 / 6 = 1.517, squares 33.01 / 6 - 2.300 = 3.201 -> 1.789
    found = find_teachers(np.array([[4, 0, 1.0], [0, 4, 0.9]]), 0.1)
    spread = np.array([4, 0, 1, 0, 4, 0.9]).std()
    assert found.threshold == pytest.approx(0.1 * spread)
    # at the third state the gap of 0.1 is below 0.17
    np.testing.assert_array_equal(
        found.teacher, [[NO_TEACHER, 1, NO_TEACHER], [0, NO_TEACHER, NO_TEACHER]]
    )
    np.testing.assert_array_equal(found.deficient(0, 1), [True, False, False])
    np.testing.assert_array_equal(found.gap(0, 1), found.score[0] - found.score[1])


def test_of_three_the_best_peer_teaches_and_each_state_has_one_teacher() -> None:
    found = find_teachers(np.array([[1.0, 0], [2, 0], [3, 0]]), 0.0)
    # at the first state both 1 and 2 are better than 0; 2 is the better one; ties teach nobody
    np.testing.assert_array_equal(
        found.teacher, [[2, NO_TEACHER], [2, NO_TEACHER], [NO_TEACHER, NO_TEACHER]]
    )
    assert not found.deficient(1, 0).any()


def test_equal_policies_have_nothing_to_teach() -> None:
    found = find_teachers(np.full((2, 5), 3.0), 0.1)
    assert found.threshold == 0 and (found.teacher == NO_TEACHER).all()
