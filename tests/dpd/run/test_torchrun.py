"""Processes that torchrun started share a run's seeds as those of --workers do."""

import os
import subprocess
import sys

from dpd.cli import main
from tests.dpd.run.test_resume import QUICK, command
from tests.dpd.run.test_workers import assert_same_policies, policies

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, "-m", "dpd", *argv],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_every_process_learns_what_a_worker_learns(tmp_path) -> None:
    argv = ("--seeds", "2", *QUICK)
    ranks = torchrun(*command(tmp_path / "ranks", *argv, iterations=3))
    assert ranks.returncode == 0, ranks.stderr
    assert "seed1-peer1" in ranks.stdout  # the table at the end holds every seed
    assert main(command(tmp_path / "workers", *argv, "--workers", "2", iterations=3)) == 0
    assert_same_policies(policies(tmp_path / "ranks"), policies(tmp_path / "workers"))


def test_what_the_first_process_refuses_ends_all(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused = torchrun(*command(tmp_path, "--seeds", "2", *QUICK, iterations=3))
    assert refused.returncode != 0
    assert "already contains a run" in refused.stderr
    assert "the first process refused the run" in refused.stderr


def test_without_a_gpu_a_run_on_one_is_refused_and_leaves_nothing(tmp_path) -> None:
    out = tmp_path / "run"
    refused = torchrun(*command(out, "--seeds", "2", "--device", "cuda", iterations=3))
    assert refused.returncode != 0 and not out.exists()
    assert "finds no CUDA device" in refused.stderr and "ZeroDivisionError" not in refused.stderr
