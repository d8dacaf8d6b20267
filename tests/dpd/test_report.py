"""What a run says at its beginning and at its end."""

from pathlib import Path

import pytest

from dpd.report import time_shares


def test_shares_of_the_time_are_those_of_all_records_and_processes(tmp_path: Path) -> None:
    head = "step,seed,peer,metric,value\n"
    (tmp_path / "metrics.csv").write_text(
        head + "1,,,time/collect,2.0\n1,,,time/distill,1.0\n1,0,0,eval/return,5\n"
        "2,,,time/collect,3.0\n2,,,time/steps_per_s,9000\n"
    )
    (tmp_path / "metrics-1.csv").write_text(head + "1,,,time/eval,4.0\n")
    # of 5 + 1 + 4 seconds
    expected = {"collecting": 0.5, "distilling": 0.1, "evaluating": 0.4}
    assert time_shares(tmp_path) == pytest.approx(expected)


def test_without_a_record_nothing_is_said_of_the_time(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,seed,peer,metric,value\n")
    assert time_shares(tmp_path) == {}
