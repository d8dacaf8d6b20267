"""A device that is not there is refused in one line, and nothing falls back to another."""

from types import SimpleNamespace

import pytest
import torch

from dpd.cli import main, parse_train
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.run.processes import n_devices, nth_device
from dpd.run.training import gpu_memory_bytes, require_device


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
    assert require_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadInput, match="there are 2 CUDA devices, counted from 0"):
        require_device("cuda:2")


def test_processes_take_the_gpus_of_a_host_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [nth_device("cuda", n) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert nth_device("cuda", 1) == "cuda"  # which require_device refuses, in one line
    assert nth_device("cuda:1", 0) == "cuda:1" and nth_device("cpu", 3) == "cpu"


def test_processes_have_the_memory_of_all_gpus_that_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    counts = [n_devices("cuda", 3), n_devices("cuda", 8), n_devices("cuda:1", 8)]
    assert counts == [3, 4, 1]  # one each; two each of four; all on the one that is named
    assert gpu_memory_bytes(torch.device("cuda", 0), 3) == 240_000_000_000


def test_a_gpu_holds_a_whole_replay_from_the_beginning() -> None:
    flags = ["--algo", "td3", "--method", "none", "--learning-starts", "100"]
    config = parse_train(["HalfCheetah-v5", *flags, "--total-steps", "20000"])
    spec = check("HalfCheetah-v5", "native")
    # two peers' million transitions of 4 x (2 x 17 + 6 + 4) + 8 = 184 bytes; of their 10,000 steps
    assert config.replay_bytes(spec, 80_000_000_000) == 2 * 1_000_000 * 184
    assert config.replay_bytes(spec) == 2 * 10_000 * 184
    with pytest.raises(BadInput, match=r"replay buffers would take 0\.4 GB, and cpu has 0\.4"):
        config.replay_bytes(spec, 400_000_000)


def test_on_the_cpu_the_memory_is_the_machines() -> None:
    assert gpu_memory_bytes(require_device("cpu")) is None
