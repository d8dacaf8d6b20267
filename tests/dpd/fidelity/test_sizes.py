"""Comparison of a run's students by size: figures, table, picture, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpd.distill.teacher import Returns
from dpd.fidelity.policies import Cost
from dpd.fidelity.sizes import (
    SizeComparison,
    SizeGroup,
    StudentResult,
    draw_sizes,
    size_notes,
    sizes_json,
    sizes_table,
)


def student(size: str, seed: int, got: float, parameters: int = 100) -> StudentResult:
    """Return a student that agrees nowhere and takes 5 microseconds."""
    figures = {"return": got, "retained": got / 100, "agree": 0.0, "own_error": None}
    return StudentResult(
        name=f"seed{seed}",
        size=size,
        seed=seed,
        cost=Cost(parameters, 900, 5.0, 2e5, {"C": 0.5}),
        figures=figures | {"latency_us": 5.0, "c_latency_us": 0.5},
    )


def found(*sizes: SizeGroup, teacher: float = 100.0) -> SizeComparison:
    """Return a comparison whose teacher of 400 parameters is much better than random."""
    return SizeComparison(
        env_id="Swimmer-v5",
        n_states=9,
        returns=Returns([[teacher - 1, teacher + 1]], [0.0, 0.0]),
        costs=[Cost(400, None, 20.0, 1e5, {"C": 2.0})],
        sizes=list(sizes),
    )


def test_students_of_one_seed_count_once() -> None:
    size = SizeGroup("8", [student("8", 0, 10), student("8", 0, 30), student("8", 1, 60)], 400)
    assert size.per_seed("return") == [20, 60] and size.mean("return") == 40
    assert (size.parameters, size.compression) == (100, 4.0)
    # mean 40, standard error 20, t(1, 97.5 %) = 12.706
    assert size.interval("return") == pytest.approx((40 - 254.124, 40 + 254.124), abs=1e-2)
    assert size.mean("own_error") is None and size.interval("own_error") is None


def test_the_table_has_a_row_for_each_size_below_the_teachers() -> None:
    small = SizeGroup("8x8", [student("8x8", k, 50 + k) for k in range(2)], 400)
    large = SizeGroup("64x64", [student("64x64", k, 90, 4000) for k in range(2)], 400)
    rows = sizes_table(found(small, large)).rows
    assert [row[0] for row in rows] == ["teacher", "8x8", "64x64"]
    teacher, first, second = rows
    assert teacher == ["teacher", "400", "1", "20", "2", "100", "1", "-", "1", "0"]
    assert first == ["8x8", "100", "4", "5", "0.5", "50.5", "0.505", "0.441…0.569", "0", "-"]
    assert second[1:3] == ["4,000", "0.1"]
    alone = sizes_table(found(SizeGroup("8", [student("8", 0, 50)], 400)))
    assert "95 %" not in alone.columns and "means of" not in alone.title


def test_what_weakens_the_numbers_is_said() -> None:
    two = SizeGroup("8", [student("8", k, 50) for k in range(2)], 400)
    assert size_notes(found(two)) == []
    assert size_notes(found(SizeGroup("8", [student("8", 0, 50)], 400), teacher=-1.0)) == [
        "the teacher is no better than random actions: there is no return to retain"
    ]


def test_the_json_holds_every_students_figures() -> None:
    size = SizeGroup("8", [student("8", k, 10 * k) for k in range(3)], 400)
    said = json.loads(json.dumps(sizes_json(found(size)), allow_nan=False))
    (row,) = said["sizes"]
    assert row["return"] == 10 and row["intervals"]["own_error"] is None
    assert [each["return"] for each in row["students"]] == [0, 10, 20]
    assert said["teachers"][0]["returns"] == [99, 101] and said["random"]["return"] == 0


def test_every_size_is_drawn_over_its_parameters_and_its_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def noting(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", noting)
    sizes = [
        SizeGroup(str(n), [student(str(n), k, n + k, n * 10) for k in range(3)], 400)
        for n in (8, 16)
    ]
    draw_sizes(found(*sizes), tmp_path / "students.png", "a run")
    assert (tmp_path / "students.png").stat().st_size > 10_000
    by_parameters, by_latency, agree, _ = drawn[0].axes
    assert [text.get_text() for text in by_parameters.texts if text.get_text().isdigit()] == [
        "8",
        "16",
    ]
    dots = [np.asarray(each.get_offsets()) for each in by_parameters.collections]
    # of 8, 9, 10 and 16, 17, 18
    assert [tuple(xy[0]) for xy in dots if len(xy) == 1] == [(80, 9), (160, 17)]
    for each in by_latency.collections:
        assert (np.asarray(each.get_offsets())[:, 0] == 0.5).all()
    labels = [t.get_text() for t in agree.get_xticklabels(which="both") if t.get_text()]
    assert len(labels) == len(set(labels)) <= 8 and "100" in labels
