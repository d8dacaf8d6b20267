"""Ranges of a randomised task: what a user writes."""

import pytest

from dpd.envs.randomization import NATIVE_IDS, QUANTITIES, BadRange, format_ranges, parse_ranges
from dpd.envs.tasks import TASKS


def test_ranges_are_read_in_one_order_however_they_are_written() -> None:
    ranges = parse_ranges("gear=0.9, mass=0.8:1.2")
    assert list(ranges.items()) == [("mass", (0.8, 1.2)), ("gear", (0.9, 0.9))]
    assert list(QUANTITIES).index("mass") < list(QUANTITIES).index("gear")
    assert format_ranges(ranges) == "mass=0.8:1.2,gear=0.9:0.9"
    assert parse_ranges(format_ranges(ranges)) == ranges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mas=1:2", "'mas=1:2' is no range: did you mean mass\\? write for example mass=0.8:1.2"),
        ("", "'' is no range: write for example mass=0.8:1.2, with one of mass, friction, gear"),
        ("mass", "'mass=' is no range; write for example mass=0.8:1.2"),
        ("mass=1:2:3", "'mass=1:2:3' is no range"),
        ("mass=heavy", "'mass=heavy' is no range"),
        ("mass=1.2:0.8", "the range of mass is 1.2:0.8, but a factor must be above 0, and the low"),
        ("mass=0:1", "the range of mass is 0:1, but a factor must be above 0"),
        ("mass=nan:1", "the range of mass is nan:1"),
        ("gear=1:inf", "the range of gear is 1:inf"),
        ("mass=1,mass=2", "mass has two ranges; give one"),
        ({"mass": 1}, "is no range"),
    ],
)
def test_other_texts_are_refused_by_their_part(text: str, message: str) -> None:
    with pytest.raises(BadRange, match=message):
        parse_ranges(text)


def test_the_ids_that_the_command_line_knows_are_the_native_tasks() -> None:
    assert tuple(TASKS) == NATIVE_IDS
