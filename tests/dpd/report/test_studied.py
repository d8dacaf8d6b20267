"""Rows of the commands that compare are those of their data."""

from pathlib import Path
from typing import Any

from dpd.report.report import Report
from dpd.report.studied import CooperationOutcome, StudyOutcome, SweepOutcome


def report(data: Any) -> Report:
    return Report(sections=[], data=data)


def test_a_sweep_has_a_row_for_each_student() -> None:
    student = {"states": 100, "augmentation": "none", "optimiser": "sgd", "length": 1}
    student |= {"capacity": 0.5, "weight": 0.0, "seed": 3, "parameters": 7, "retained": None}
    student |= {"train_error": 0.1, "heldout_error": 0.2, "student_error": 0.3, "return": -4.0}
    student |= {"train_kl": None, "heldout_kl": None, "heldout_agree_0.1": 0.5}
    data = {"students": [student], "correlation": {"error, held-out": -0.8}}
    outcome = SweepOutcome(report=report(data))
    (row,) = outcome.students
    assert (row.optimiser, row.capacity, row.seed, row.parameters) == ("sgd", 0.5, 3, 7)
    assert (row.mean, row.retained, row.heldout_error) == (-4.0, None, 0.2)
    assert outcome.correlations == {"error, held-out": -0.8}


def test_an_unfinished_cooperation_has_rows_without_gains(capsys: Any) -> None:
    data = {"policies": [{"name": "a", "return_before": 2.0}], "rounds": []}
    lines = ["stopped; the policies are those of round 0"]
    outcome = CooperationOutcome(report=report(data), status=130, lines=lines, out=Path("co"))
    (row,) = outcome.policies
    assert (row.before, row.after, row.gain, row.low) == (2.0, None, None, None)
    assert row.path == Path("co/policies/peer0.safetensors") and outcome.lessons == ()
    outcome.show()
    assert capsys.readouterr().out == lines[0] + "\n"


def test_a_stopped_study_prints_nothing_and_has_no_rows(capsys: Any) -> None:
    outcome = StudyOutcome(report=report({}), status=130, out=Path("study"))
    outcome.show(as_json=True)
    assert capsys.readouterr().out == ""
    assert outcome.arms == outcome.differences == outcome.plans == ()
