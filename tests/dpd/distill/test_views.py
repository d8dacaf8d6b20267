"""Settings of views: words of the command line become columns, noise and frames."""

import numpy as np
import pytest

from dpd.distill.views import ViewConfig, parse_histories, parse_noise
from dpd.envs.base import EnvSpec
from dpd.envs.groups import consecutive
from dpd.errors import BadInput

ONE = np.ones(2, np.float32)
FACTS = ("Some-v0", "native", 5, 2, -ONE, ONE, True, 100)
SPEC = EnvSpec(*FACTS, groups=consecutive({"q": 2, "v": 3}))


def test_words_choose_columns_in_the_order_of_the_observation() -> None:
    view = ViewConfig(student_obs="4, q,prev_action").resolve(SPEC, 3)
    assert (view.columns, view.prev_action, view.history) == ((0, 1, 4), True, 3)
    assert view.groups == ("4", "q", "prev_action")
    assert (view.frame_dim, view.dim, view.reach) == (5, 15, 3)  # 3 columns and 2 actions


def test_without_words_everything_is_seen() -> None:
    view = ViewConfig(student_delay=2).resolve(SPEC, 1)
    assert view.columns == (0, 1, 2, 3, 4) and not view.prev_action
    assert (view.delay, view.reach, view.noise) == (2, 3, ())


def test_noise_is_that_of_the_columns_that_are_seen() -> None:
    config = ViewConfig(student_obs="q,3:", student_noise="q=0.5,4=2")
    assert config.resolve(SPEC, 1).noise == (0.5, 0.5, 0.0, 2.0)


def test_a_group_that_is_called_prev_action_is_a_group() -> None:
    groups = consecutive({"prev_action": 2, "v": 3})
    spec = EnvSpec(*FACTS, groups=groups)
    view = ViewConfig(student_obs="prev_action").resolve(spec, 1)
    assert view.columns == (0, 1) and not view.prev_action


def test_a_history_may_be_as_long_as_an_episode() -> None:
    assert ViewConfig(student_delay=40).resolve(SPEC, 60).reach == 100
    with pytest.raises(BadInput, match="goes back further than an episode of Some-v0, which has"):
        ViewConfig(student_delay=41).resolve(SPEC, 60)


def test_numbers_are_read() -> None:
    assert parse_histories(None) == () and parse_histories("1,2,8") == (1, 2, 8)
    assert parse_noise("") == {} and parse_noise("q=0.1, v=2") == {"q": 0.1, "v": 2.0}


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1.5", "0,1", "٣"])
def test_other_histories_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--history must be numbers of frames"):
        parse_histories(text)


@pytest.mark.parametrize("text", ["q", "q=", "=1", "q=0", "q=-1", "q=inf", "q=nan", "q=1=2"])
def test_other_noise_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="give a positive standard deviation to each group"):
        parse_noise(text)
