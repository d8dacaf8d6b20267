"""A device that is not there is refused in one line, and nothing falls back to another."""

import pytest
import torch

from dpd.cli import main
from dpd.device import find_device, memory_of, nth_device
from dpd.run_config import BadInput


def test_without_cuda_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "finds no CUDA device; install the CUDA build" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_gpu_beyond_those_that_are_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadInput, match="there are 2 CUDA devices, counted from 0"):
        find_device("cuda:2")


def test_processes_take_the_gpus_of_a_host_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [nth_device("cuda", n) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert nth_device("cuda", 1) == "cuda"  # which find_device refuses, in one line
    assert nth_device("cuda:1", 0) == "cuda:1" and nth_device("cpu", 3) == "cpu"


def test_on_the_cpu_the_memory_is_the_machines() -> None:
    assert memory_of(find_device("cpu")) is None
