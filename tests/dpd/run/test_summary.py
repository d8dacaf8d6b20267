"""What a run says at its beginning and at its end."""

from pathlib import Path

import pytest
from rich.console import Console

from dpd.cli import parse_run
from dpd.run.summary import preset_facts, print_paths, time_shares


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


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], {"preset": "modern"}),
        (["--lr", "1e-4"], {"preset": "modern"}),  # of which it says nothing
        (
            ["--epochs", "5", "--distill.coef", "0.2"],
            {"preset": "modern, with other --epochs --distill.coef"},
        ),
        (["--preset", "large", "--total-steps", "9999999"], {"preset": "modern,large"}),
        (["--preset", "paper"], {"preset": "paper"}),
        (["--algo", "sac,sac", "--preset", "modern"], {"preset": "modern"}),
        (["--algo", "td3"], {}),
        (["--method", "none"], {}),
    ],
)
def test_a_run_says_which_preset_it_has_and_what_is_changed_in_it(
    argv: list[str], said: dict[str, str]
) -> None:
    assert preset_facts(parse_run(argv, "train")) == said


def test_without_a_record_nothing_is_said_of_the_time(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,seed,peer,metric,value\n")
    assert time_shares(tmp_path) == {}


def test_a_run_whose_processes_were_stopped_before_their_first_record_says_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_run(["--seeds", "2", "--workers", "2"], "train")
    print_paths(config, tmp_path, Console())
    assert capsys.readouterr().out == f"TensorBoard  tensorboard --logdir {tmp_path / 'tb'}\n"
