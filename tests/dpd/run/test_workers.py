"""Several processes share a run's seeds, and none knows of another."""

import signal
import time
from pathlib import Path

from safetensors.torch import load_file

from dpd.cli import main, parse_train
from dpd.log.csv import read_rows
from dpd.log.terminal import Board
from dpd.run.checkpoint import Checkpoints, read
from dpd.run.processes import WorkerProgress, share
from tests.dpd.run.test_resume import (
    ENDLESS,
    LONG,
    PER_ITERATION,
    QUICK,
    assert_same_tensors,
    command,
    start,
)

THREE = ("--seeds", "3", "--seed", "4", *QUICK)


def policies(run_dir: Path) -> dict[str, dict]:
    return {f.name: load_file(f) for f in sorted((run_dir / "policies").iterdir())}


def assert_same_policies(ours: dict[str, dict], theirs: dict[str, dict]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        assert_same_tensors(tensors, theirs[name])


def logged(run_dir: Path) -> list[dict[str, str]]:
    """Return the log of all parts without times, in an order of its own."""
    rows = [r for r in read_rows(run_dir / "metrics.csv") if not r["metric"].startswith("time/")]
    return sorted(rows, key=lambda r: (int(r["step"]), r["seed"], r["peer"], r["metric"]))


def wait_for_parts(process, run_dir: Path, parts: int) -> None:
    """Wait until every part has a checkpoint behind the first iteration."""
    deadline = time.monotonic() + 90
    folders = [Checkpoints(run_dir, 1, k) for k in range(parts)]
    while not all(c.files() and int(c.files()[0].stem[5:]) > 0 for c in folders):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def test_seeds_and_cores_are_shared_out_evenly():
    config = parse_train(["Swimmer-v5", "--seeds", "5", "--seed", "10", "--workers", "3"])
    parts = [share(config, k).run for k in range(3)]
    # 5 seeds over 3: two, two, one
    assert [(p.seed, p.seeds) for p in parts] == [(10, 2), (12, 2), (14, 1)]
    assert all(p.workers == 1 and p.threads for p in parts)


def test_more_workers_than_seeds_are_refused(capsys):
    assert main(["train", "--workers", "2"]) == 2
    assert "--workers 2 for 1 seeds" in capsys.readouterr().err


def test_every_part_learns_what_its_seeds_would_learn_alone(tmp_path, capfd):
    shared = tmp_path / "shared"
    assert main(command(shared, *THREE, "--workers", "2", iterations=3)) == 0
    said = capfd.readouterr().out
    assert "6 in 2 processes, seeds 4 to 6" in said and "seed6-peer1" in said
    alone: dict[str, dict] = {}
    for out, flags in (
        ("a", ("--seed", "4", "--seeds", "2", *QUICK)),
        ("b", ("--seed", "6", *QUICK)),
    ):
        assert main(command(tmp_path / out, *flags, "--threads", "1", iterations=3)) == 0
        alone |= policies(tmp_path / out)
    assert_same_policies(policies(shared), alone)
    assert {r["seed"] for r in logged(shared)} == {"4", "5", "6"}
    assert (shared / "curves.png").exists()
    runs = {f"seed{seed}-peer{peer}" for seed in (4, 5, 6) for peer in (0, 1)}
    assert {f.name for f in (shared / "tb").iterdir()} == runs | {"run", "run-1"}


def test_groups_that_pool_critics_learn_in_a_part_what_they_would_learn_alone(tmp_path):
    small = ["--n-steps", "16", "--hidden", "8", "8", "--learning-starts", "64", "--algo", "sac"]
    pool = [*small, "--minibatch-size", "16", "--capacity", "1000", "--share-experience"]
    ends = ["--evals", "1", "--eval-episodes", "1", "--final-episodes", "1", "--total-steps", "256"]
    found = {}
    for seeds, flags in (("both", ["--seeds", "2", "--workers", "2"]), ("0", []), ("1", [])):
        own = [] if seeds == "both" else ["--seed", seeds, "--threads", "1"]
        out = ["--out", str(tmp_path / seeds)]
        assert main(["train", "Swimmer-v5", *pool, *ends, *flags, *own, *out]) == 0
        found[seeds] = policies(tmp_path / seeds)
    assert_same_policies(found["both"], found["0"] | found["1"])


def test_a_stopped_shared_run_goes_on_exactly(tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shared = ("--seeds", "3", "--seed", "4", *ENDLESS, "--workers", "2")
    with start(command(parts, *shared, iterations=LONG)) as process:
        wait_for_parts(process, parts, 2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and f"dpd train --resume {parts}" in said
    done = max(int(Checkpoints(parts, 1, k).files()[0].stem[5:]) for k in range(2))
    iterations = done // PER_ITERATION + 4
    more = ["--total-steps", str(iterations * PER_ITERATION)]
    assert main(["train", "--resume", str(parts), *more]) == 0
    assert main(command(whole, *shared, iterations=iterations)) == 0
    assert_same_policies(policies(whole), policies(parts))
    assert logged(whole) == logged(parts)
    for k in range(2):
        ends = [read(Checkpoints(d, 1, k).files()[0])[0] for d in (whole, parts)]
        assert_same_tensors(*ends)


def test_parts_do_not_outlive_the_process_that_started_them(tmp_path):
    with start(command(tmp_path, *THREE, "--workers", "2", iterations=4000)) as process:
        wait_for_parts(process, tmp_path, 2)
        process.kill()
    deadline = time.monotonic() + 60
    while not all("stopped at" in (tmp_path / f"part{k}.log").read_text() for k in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_part_that_fails_is_named_with_what_it_said(tmp_path, capfd):
    flags = (*THREE, "--workers", "2", "--lr", "1e30")
    assert main(command(tmp_path, *flags, iterations=3)) == 3
    said = capfd.readouterr().out
    assert "worker 0 exited with status 3" in said and "worker 1 exited with status 3" in said


def test_progress_is_read_as_it_is_written(tmp_path):
    config = parse_train(["Swimmer-v5", *THREE, "--workers", "2"])
    progress = WorkerProgress(config, tmp_path)
    assert not progress.read_new()
    first, second = tmp_path / "metrics.csv", tmp_path / "metrics-1.csv"
    first.write_text("step,seed,peer,metric,value\n100,5,1,train/return,2.5\n200,4,0,train/re")
    assert progress.read_new() and progress.step == 0
    second.write_text("step,seed,peer,metric,value\n100,6,0,train/return,7\n100,,,time/x,3\n")
    assert progress.read_new() and progress.step == 100
    with first.open("a") as file:
        file.write("turn,1\n")
    assert progress.read_new() and not progress.read_new()
    board = Board([4, 5, 6], 2)
    board.update(progress.values)
    # rows: seed 4 peers 0 1, seed 5 peers 0 1, seed 6 peers 0 1
    assert str(board.latest["train/return"]) == "[1.0, None, None, 2.5, 7.0, None]"
    assert board.latest["time/x"] == 3
    first.write_text("step,seed,peer,metric,value\n50,4,0,train/return,9\n")  # cut back
    assert progress.read_new() and progress.step == 50


def test_an_environment_that_cannot_be_made_leaves_nothing_behind(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "Nix-v0", "--seeds", "2", "--workers", "2", "--out", str(out)]) == 2
    assert not out.exists() and "Nix-v0" in capsys.readouterr().err
