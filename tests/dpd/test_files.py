"""Run directories are found by their settings."""

from __future__ import annotations

from pathlib import Path

from dpd.files import run_folders


def test_runs_are_found_down_to_the_shares_of_a_study_and_not_inside_a_run(tmp_path: Path) -> None:
    # STUDY/ENV/ARM/SHARE is three folders deep
    deep = [f"study/Hopper-v5/dpd/seeds{k}-{k}" for k in (1, 0)]
    for name in [*deep, "run", "run/copy"]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    assert run_folders(tmp_path / "study") == [tmp_path / name for name in reversed(deep)]
    assert run_folders(tmp_path / "run") == [tmp_path / "run"]
    assert run_folders(tmp_path / "nothing") == []
