"""A run as a task of a cluster, without a cluster: shared storage, and files that travel."""

import io
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest

from dpd import __version__
from dpd.study import task as module
from dpd.study.task import (
    Order,
    Tail,
    TaskReport,
    pack,
    replace_directory,
    train_order,
    unpack,
    write_changes,
)

SMALL = ["Hopper-v5", "--n-envs", "2", "--n-steps", "64", "--evals", "1", "--eval-episodes", "1"]
SMALL += ["--final-episodes", "1", "--hidden", "8", "--kernels", "torch"]
HARDWARE = ["--threads", "1"]


def order(path: Path, steps: int, **changed: Any) -> Order:
    """Return an order for a small run whose study shares no storage with the task."""
    words = [*SMALL, "--total-steps", str(steps)]
    made = Order(0, words, HARDWARE, str(path), "/no/such/file", "/", None, False, __version__)
    return made._replace(**changed)


def names(path: Path) -> set[str]:
    """Return the names of a directory's files and folders."""
    return {file.name for file in path.iterdir()}


def test_a_run_comes_home_with_its_metrics_and_its_log_on_the_way(tmp_path: Path) -> None:
    home, reports = tmp_path / "run", list[TaskReport]()
    outcome = train_order(order(home, 512), lambda r: reports.append(r))
    assert outcome.status == 0 and outcome.files is not None and not home.exists()
    for report in reports:
        write_changes(home, report.changes)
    sent = {name: (home / name).read_bytes() for name in ("metrics.csv", "train.log")}
    replace_directory(outcome.files, home)
    assert {"policies", "checkpoints", "config.json", "tb"} < names(home)
    assert ".lock" not in names(home) and names(tmp_path) == {"run"}
    # all that was sent on the way is what came home at the end
    assert sent == {name: (home / name).read_bytes() for name in sent}


def test_a_stopped_run_travels_there_and_back_and_goes_on(tmp_path: Path) -> None:
    home, steps = tmp_path / "run", 1_024_000  # 4,000 iterations: more than it will do

    def stop(report: TaskReport) -> int | None:
        write_changes(home, report.changes)
        # the first report precedes the child; stop it once it has logged something
        metrics = home / "metrics.csv"
        return signal.SIGTERM if metrics.exists() and metrics.stat().st_size > 1000 else None

    endless = order(home, steps)
    endless = endless._replace(words=[*endless.words, "--records", "4000"])  # each iteration
    stopped = train_order(endless, stop)
    assert stopped.status == 128 + signal.SIGTERM and stopped.files is not None
    replace_directory(stopped.files, home)
    done = max(int(f.stem.removeprefix("step-")) for f in home.rglob("checkpoints/step-*"))
    assert done > 0
    # without its files the task asks for them; with them it resumes
    again = endless._replace(has_begun=True)
    assert train_order(again, lambda _: None).wants_run
    resumed = again._replace(
        kept=pack(home), hardware=[*HARDWARE, "--total-steps", str(done + 256)]
    )
    finished = train_order(resumed, lambda r: write_changes(home, r.changes))
    assert finished.status == 0 and finished.files is not None
    replace_directory(finished.files, home)
    assert f"resumed at {done:,} steps" in (home / "train.log").read_text()
    assert f"\n{done + 256}," in (home / "metrics.csv").read_text()


def test_on_shared_storage_nothing_travels(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    home = tmp_path / "run"
    outcome = train_order(
        order(home, 256, token=str(tmp_path / "token"), has_begun=True), lambda _: None
    )
    assert outcome == module.TaskOutcome(0) and (home / "policies").is_dir()


def test_a_task_that_is_stopped_before_it_begins_trains_nothing(tmp_path: Path) -> None:
    outcome = train_order(order(tmp_path / "run", 256), lambda _: signal.SIGINT)
    assert outcome.status == 128 + signal.SIGINT


def test_another_version_of_dpd_is_named() -> None:
    outcome = train_order(order(Path("run"), 256, version="0.0.1"), lambda _: None)
    assert outcome.status == 2 and f"found dpd {__version__} there, and 0.0.1" in outcome.complaint


def test_a_file_that_grows_is_sent_in_parts_and_one_that_shrinks_anew(tmp_path: Path) -> None:
    there, home = tmp_path / "there", tmp_path / "home"
    there.mkdir()
    tail = Tail(there)
    for text in ("abc", "abcdef", "xy"):
        (there / "metrics.csv").write_text(text)
        changes = tail.new()
        write_changes(home, changes)
        assert (home / "metrics.csv").read_text() == text
    assert changes == {"metrics.csv": (0, b"xy")} and tail.new() == {}


def test_a_packed_directory_cannot_write_elsewhere(tmp_path: Path) -> None:
    box = io.BytesIO()
    with tarfile.open(fileobj=box, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(box.getvalue(), tmp_path / "inside")
