"""Figures as they are shown."""

import pytest

from dpd.report.stats import Interval
from dpd.report.tables import format_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (1.0, "1"),
        (0.99996, "<1"),
        (1 - 2e-16, "1"),
        (0.9876, "0.988"),
        (0.01234, "0.012"),
        (-0.0000234, "-2e-05"),
        (1234.5, "1,234"),
        (Interval(0.5, 1.25), "0.5…1.25"),
    ],
)
def test_figures_are_short_and_nearly_all_is_not_all(
    value: float | Interval | None, text: str
) -> None:
    assert format_number(value) == text
