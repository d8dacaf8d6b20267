import csv
import math
import resource
import shutil
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing import data_provider, event_accumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

from dpd.log.csv import metrics_name
from dpd.log.log import RunLog, to_host
from dpd.log.terminal import make_console

SEEDS, PEERS = (3, 8), ("peer0", "peer1")
HPARAMS = {"algo": "ppo", "ppo": {"lr": 3e-4, "anneal": True}, "note": "a|b"}
# Rows are group * peers + peer: seed 3 has 10 and 11, seed 8 has 20 and 21.
RETURNS = torch.tensor([10.0, 11.0, 20.0, 21.0])


def open_log(run_dir: Path, **changes: Any) -> RunLog:
    settings: dict[str, Any] = dict(
        seeds=SEEDS, peers=PEERS, total_steps=1000, hparams=HPARAMS, title="a run"
    )
    return RunLog(run_dir, **(settings | {"console": make_console(quiet=True)} | changes))


def events(run_dir: Path, run: str) -> event_accumulator.EventAccumulator:
    return event_accumulator.EventAccumulator(str(run_dir / "tb" / run)).Reload()


def scalars(run_dir: Path, run: str, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run_dir, run).Scalars(tag)]


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def shown_tags(run_dir: Path) -> dict[str, list[str]]:
    """Ask TensorBoard's scalars plug-in: what its page asks as data/plugin/scalars/tags."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(run_dir / "tb")).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(run_dir))
    context = SimpleNamespace(data_provider=provider, sampling_hints={})
    index = ScalarsPlugin(context).index_impl(RequestContext(), "")
    return {run: sorted(tags) for run, tags in index.items()}


def session(run_dir: Path, run: str) -> dict[str, HParamsPluginData]:
    """Read the hparams plug-in's records of one sub-run."""
    contents = events(run_dir, run).PluginTagToContent("hparams")
    return {
        tag.rpartition("/")[2]: HParamsPluginData.FromString(text) for tag, text in contents.items()
    }


def test_each_learner_is_a_run_of_its_own_and_all_have_the_same_tags(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.record(100, {"eval/return": RETURNS})
        log.record(200, {"eval/return": RETURNS + 5})
    for seed, peer, value in ((3, 0, 10.0), (3, 1, 11.0), (8, 0, 20.0), (8, 1, 21.0)):
        expected = [(100, value), (200, value + 5)]
        assert scalars(tmp_path, f"seed{seed}-peer{peer}", "eval/return") == expected
    learners = [f"seed{seed}-peer{peer}" for seed in SEEDS for peer in (0, 1)]
    assert shown_tags(tmp_path) == {run: ["eval/return"] for run in learners}


def test_peers_with_names_have_runs_by_them(tmp_path: Path) -> None:
    with open_log(tmp_path, peers=("8x8", "64x64")) as log:
        log.record(100, {"eval/return": RETURNS})
    assert scalars(tmp_path, "seed8-64x64", "eval/return") == [(100, 21.0)]


def test_the_csv_has_one_row_per_learner_and_metric(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.record(100, {"any/name at all": RETURNS / 3})
    read = [(r["step"], r["seed"], r["peer"], r["metric"]) for r in rows(tmp_path)]
    name = "any/name at all"
    assert read == [("100", s, p, name) for s in ("3", "8") for p in ("0", "1")]
    values = torch.tensor([float(row["value"]) for row in rows(tmp_path)])
    assert torch.equal(values, RETURNS / 3)


def test_the_csv_is_on_disk_after_every_record(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.record(100, {"eval/return": RETURNS})
        assert len(rows(tmp_path)) == 4


def test_a_shared_metric_is_written_once_in_a_run_of_its_own(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.record(100, {"time/steps_per_s": 123.5, "time/eval": torch.tensor(2.0)})
    assert scalars(tmp_path, "run", "time/steps_per_s") == [(100, 123.5)]
    assert shown_tags(tmp_path) == {"run": ["time/eval", "time/steps_per_s"]}
    assert [tuple(r.values()) for r in rows(tmp_path)] == [
        ("100", "", "", "time/steps_per_s", "123.5"),
        ("100", "", "", "time/eval", "2"),
    ]


def test_a_return_is_left_out_while_no_episode_has_ended_but_a_nan_loss_is_kept(
    tmp_path: Path,
) -> None:
    partly = torch.tensor([math.nan, 11.0, math.nan, 21.0])
    with open_log(tmp_path) as log:
        log.record(100, {"train/return": partly, "loss/policy": partly})
    read = [(row["metric"], row["value"]) for row in rows(tmp_path)]
    assert [value for name, value in read if name == "train/return"] == ["11", "21"]
    assert [value for name, value in read if name == "loss/policy"] == ["nan", "11", "nan", "21"]
    assert shown_tags(tmp_path)["seed3-peer0"] == ["loss/policy"]


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    with open_log(tmp_path) as log, pytest.raises(ValueError, match=r"loss/x has shape \(3,\)"):
        log.record(100, {"loss/x": torch.zeros(3)})


def test_numbers_of_unlike_dtypes_arrive_exactly() -> None:
    metrics: dict[str, torch.Tensor | float] = {"single": torch.tensor([0.5, 0.25]), "plain": 0.3}
    # A float32 would not hold the count: it must not be stacked with one.
    metrics |= {"count": torch.tensor(2**40 + 1), "flag": torch.tensor([True, False])}
    host = to_host(metrics, 2)
    expected = {"single": [0.5, 0.25], "plain": 0.3, "count": 2**40 + 1, "flag": [1.0, 0.0]}
    assert host == expected and list(host) == list(metrics)


def test_forty_metrics_cost_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.Tensor.tolist
    calls: list[torch.Size] = []

    def counted(tensor: torch.Tensor) -> Any:
        calls.append(tensor.shape)
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    to_host({f"m{k}": torch.ones(4, requires_grad=True) for k in range(40)}, 4)
    assert calls == [(160,)]


def test_hyperparameters_share_the_learners_run_and_name_the_final_return(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.record(100, {"eval/return": RETURNS})
    assert sorted(path.name for path in (tmp_path / "tb").rglob("*") if path.is_dir()) == [
        "run",
        *(f"seed{seed}-peer{peer}" for seed in SEEDS for peer in (0, 1)),
    ]
    records = session(tmp_path, "seed8-peer1")
    settings = records["session_start_info"].session_start_info.hparams
    assert settings["ppo.lr"].number_value == 3e-4
    assert settings["algo"].string_value == "ppo"
    assert settings["ppo.anneal"].string_value == "True"
    assert (settings["seed"].number_value, settings["peer"].number_value) == (8, 1)
    metrics = [info.name.tag for info in records["experiment"].experiment.metric_infos]
    assert metrics == ["eval/return"]


def test_hyperparameters_are_a_table_with_bars_escaped(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    text = events(tmp_path, "run").Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    lines = text.decode().splitlines()
    assert "| ppo.lr | 0.0003 |" in lines and "| note | a&#124;b |" in lines


def test_an_exception_passes_and_leaves_complete_files_and_a_visible_cursor(tmp_path: Path) -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, force_interactive=True)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        open_log(tmp_path, console=console) as log,
    ):
        log.record(100, {"eval/return": RETURNS})
        raise RuntimeError("out of memory")
    assert len(rows(tmp_path)) == 4
    assert scalars(tmp_path, "seed8-peer1", "eval/return") == [(100, 21.0)]
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert screen.getvalue().count(hide) == 1 and screen.getvalue().rfind(show) > 0
    assert "session_end_info" not in session(tmp_path, "seed3-peer0")


def test_only_a_run_that_ended_well_is_marked_finished(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    assert "session_end_info" in session(tmp_path, "seed3-peer0")


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(OSError, match="cannot write the run's log") as caught,
        open_log(tmp_path) as log,
    ):
        size = (tmp_path / "metrics.csv").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))
        try:
            log.record(100, {"eval/return": RETURNS})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.filename == str(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_write_in_tensorboards_thread_is_told_at_the_latest_on_closing(
    tmp_path: Path,
) -> None:
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="cannot write the run's log"), open_log(tmp_path) as log:
        log.record(100, {"eval/return": RETURNS})
        log.flush()  # the threads are idle, and write no file while the folder is removed
        shutil.rmtree(tmp_path / "tb")
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # or its complaint would be laid at the next test's door


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write the run's log"):
        open_log(tmp_path / "file" / "run")


def test_a_new_run_does_not_mix_with_an_older_one(tmp_path: Path) -> None:
    with open_log(tmp_path):
        pass
    with pytest.raises(FileExistsError, match="already contains a run"):
        open_log(tmp_path)


def test_a_resumed_run_replaces_what_was_recorded_after_its_checkpoint(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (100, 200, 300):
            log.record(step, {"eval/return": RETURNS + step})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")  # the run was killed here, one digit into 1000
    time.sleep(1.1)  # event files are read by name, which begins with the second
    with open_log(tmp_path, start_step=200) as log:
        log.record(300, {"eval/return": RETURNS})
    assert [row["step"] for row in rows(tmp_path)] == ["100"] * 4 + ["200"] * 4 + ["300"] * 4
    assert [float(row["value"]) for row in rows(tmp_path)[-4:]] == RETURNS.tolist()
    expected = [(100, 110.0), (200, 210.0), (300, 10.0)]
    assert scalars(tmp_path, "seed3-peer0", "eval/return") == expected


def test_processes_of_one_run_keep_apart_what_belongs_to_no_learner(tmp_path: Path) -> None:
    for part, seed in enumerate(SEEDS):
        with open_log(tmp_path, seeds=(seed,), metrics=metrics_name(part)) as log:
            log.record(100, {"eval/return": RETURNS[:2], "time/eval": float(part)})
    assert scalars(tmp_path, "run", "time/eval") == [(100, 0.0)]
    assert scalars(tmp_path, "run-1", "time/eval") == [(100, 1.0)]


def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log(tmp_path) as log:
        log.show_start({"environment": "Hopper-v5"})
        log.record(100, {"eval/return": RETURNS})
    assert capsys.readouterr().out == ""


def test_a_records_line_reaches_the_console(tmp_path: Path) -> None:
    screen = StringIO()
    with open_log(tmp_path, console=Console(file=screen)) as log:
        log.show_start({"environment": "Hopper-v5"})
        log.record(100, {"eval/return": RETURNS})
        log.notice("saved [best]")
    # Medians over seeds: (10 + 20) / 2 and (11 + 21) / 2.
    assert screen.getvalue().splitlines() == [
        "a run",
        "  environment  Hopper-v5",
        " 10.0 %  100/1,000 steps  eval 15.0/16.0",
        "saved [best]",
    ]


def test_importing_the_log_waits_for_neither_matplotlib_nor_tensorboard() -> None:
    program = "import sys, dpd.log.log; print({'matplotlib', 'tensorboard'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
