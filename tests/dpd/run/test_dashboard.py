"""The page of a run or of several: complete, without requests, and as a browser shows it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import dpd
import dpd.run.dashboard as dashboard
from dpd.cli import main
from dpd.errors import BadInput
from dpd.report.figures import COLOURS, RETURNS, read_curves
from dpd.report.panels import bin_means, seeds_line
from dpd.run.dashboard import run_report
from dpd.run.stored import StoredRun
from tests.toy.browser import BROWSER, WHY_NOT, screenshot
from tests.toy.html import Reader
from tests.toy.short import SHORT

VIDEO = b"\x00\x00\x00\x18ftypmp42"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of two peers and one without distillation, beside each other."""
    out = tmp_path_factory.mktemp("dashboard")
    dpd.train("Swimmer-v5", seeds=2, out=out / "Swimmer-v5" / "dpd", **SHORT)
    alone = SHORT | {"epochs": 1}
    dpd.train("Swimmer-v5", seeds=2, method="none", out=out / "Swimmer-v5" / "alone", **alone)
    return out


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text())
    return reader


def test_the_page_of_a_run_has_all_that_it_logged_and_refers_to_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "recorded", lambda policy, seconds: VIDEO)
    path = runs / "Swimmer-v5" / "dpd"
    assert main(["report", str(path), "--videos", "1"]) == 0
    assert capsys.readouterr().out == f"report  {path / 'report.html'}\n"
    seen = read(path / "report.html")
    curves, _ = read_curves(path / "metrics.csv")
    # two figures of the returns, for wide and narrow screens, and one for each other metric
    assert seen.tags.count("svg") == 2 + len(curves.keys() - set(RETURNS))
    assert seen.tags.count("video") == 1 and "script" not in seen.tags
    assert [ref[:22] for ref in seen.refers if not ref.startswith("#")] == [
        "data:video/mp4;base64,"
    ]
    for text in (
        "512 of 512",
        "2 peers × 2 seeds",
        "states where the gate is open",
        "gap: the peer's lead in value",
        "KL of an update",
        "seed1-peer1-best",
        "minibatch_size",
    ):
        assert text in seen.text, text
    # the table has the returns of the fresh episodes that the run ended with
    policies = dashboard.policies_table(dashboard.find_runs(path))
    assert "2 fresh episodes" in policies.title and len(policies.rows) == 8


def test_the_page_of_a_study_has_a_line_and_a_row_for_each_run(runs: Path) -> None:
    page = dpd.report(runs, videos=0, out=runs / "page.html").page
    assert page is not None
    seen = read(page)
    assert "Swimmer-v5/alone" in seen.text and "Swimmer-v5/dpd" in seen.text
    assert "Settings that differ between the runs" in seen.text
    report = run_report(runs)
    (differ,) = next(s.tables for s in report.sections if s.heading == "Settings")
    # epochs differ; settings that dpd has alone are at their defaults, and are with the others
    assert differ.columns == ["setting", "alone", "dpd"]
    assert ["epochs", "1", "2"] in differ.rows and "distill.alpha" not in str(differ.rows)
    assert [run["last_evaluation"] for run in report.data["runs"]] == [
        pytest.approx(run.last_evaluation) for run in dashboard.find_runs(runs)
    ]


def test_runs_of_one_name_have_the_names_of_their_folders_too(tmp_path: Path) -> None:
    a, b = (StoredRun(tmp_path, f"{folder}/run") for folder in "ab")
    assert dashboard.labels([a, b]) == ["a/run", "b/run"]
    assert dashboard.labels([a, StoredRun(tmp_path, "b/other")]) == ["run", "other"]


def test_the_speed_of_several_processes_is_their_sum(tmp_path: Path) -> None:
    head = "step,seed,peer,metric,value\n"
    for name, speeds in (("metrics.csv", (10, 30, 20)), ("metrics-1.csv", (5,))):
        rows = (f"{k},,,time/steps_per_s,{speed}\n" for k, speed in enumerate(speeds))
        (tmp_path / name).write_text(head + "".join(rows))
    settings = {"env": "Swimmer-v5", "total_steps": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    facts = dashboard.facts_of(StoredRun(tmp_path, "x"))
    assert facts["steps per second"] == "25"  # medians 20 and 5


def test_an_unfinished_run_has_a_page_that_says_so(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "half"
    shutil.copytree(runs / "Swimmer-v5" / "dpd", path)
    shutil.rmtree(path / "policies")
    rows = (path / "metrics.csv").read_text().splitlines()
    half = [row for row in rows if not row.startswith("512,")]
    (path / "metrics.csv").write_text("\n".join(half) + "\n")
    report = run_report(path, videos=2)
    assert list(report.notes) == ["half has 256 of 512 steps"]
    (path / "metrics.csv").write_text(rows[0] + "\n")  # nothing is recorded yet
    page = dpd.report(path).page
    assert page is not None and "No episode has ended yet." in page.read_text()


def test_without_a_renderer_the_page_says_why_there_are_no_videos(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise BadInput("no video: Swimmer-v5 can't be rendered: no EGL")

    monkeypatch.setattr(dashboard, "recorded", refuse)
    report = run_report(runs / "Swimmer-v5" / "dpd", videos=2)
    assert list(report.notes) == ["no videos: Swimmer-v5 can't be rendered: no EGL"]
    assert not any(section.videos for section in report.sections)


def test_a_video_is_that_of_the_best_policy(runs: Path) -> None:
    run = dashboard.find_runs(runs / "Swimmer-v5" / "dpd")[0]
    evaluations = [p.evaluation or 0.0 for p in run.best]
    assert evaluations == sorted(evaluations, reverse=True) and len(evaluations) == 4
    try:
        video = dashboard.recorded(run.best[0].policy, seconds=0.2)
    except BadInput as error:
        pytest.skip(str(error))
    assert video[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["/nowhere"], "does not exist"),
        (["."], "holds no run with a config.json"),
        ([".", "--out", "page.pdf"], "--out writes an .html file"),
        ([".", "--videos", "-1"], "--videos must not be negative"),
    ],
)
def test_bad_input_is_refused(
    argv: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *argv]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_bands_are_those_of_the_seeds() -> None:
    curve = {10: [1.0, 3.0], 20: [2.0, 6.0]}
    line = seeds_line("x", curve)
    assert (line.middle, line.band) == ([2.0, 4.0], [(1.0, 3.0), (2.0, 6.0)])
    assert bin_means(curve) == ([10, 20], [2, 4], [(1, 3), (2, 6)])
    # t interval of six values, 0 to 5: 2.5 ± 2.571 · s / √6 with s² = 3.5
    _, means, band = bin_means({10: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]})
    assert means == [2.5] and band[0] == pytest.approx((2.5 - 1.963, 2.5 + 1.963), abs=1e-3)
    assert bin_means({10: [1.0], 20: [2.0, 6.0]})[2] == []  # a seed is behind


@pytest.mark.skipif(BROWSER is None, reason=WHY_NOT)
@pytest.mark.parametrize(("width", "is_dark"), [(1280, False), (390, True)])
def test_a_browser_shows_the_page(width: int, is_dark: bool, runs: Path, tmp_path: Path) -> None:
    page = dpd.report(runs / "Swimmer-v5" / "dpd", videos=0, out=tmp_path / "page.html").page
    assert page is not None
    picture, console = screenshot(page, (width, 1600), is_dark)
    assert console == []
    assert picture.shape == (1600, width, 3)
    assert (picture[0, 0].mean() < 0.2) == is_dark  # the page has the colours that were asked for
    # lines of both peers are drawn, and text in the ink of the scheme, in the figures too
    for colour in COLOURS[:2]:
        red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
        assert (np.abs(picture - (red, green, blue)).max(-1) < 0.05).sum() > 50
    ink = picture.mean(-1) > 0.8 if is_dark else picture.mean(-1) < 0.2
    assert ink[:200].any() and ink[400:].mean() > 0.0003


@pytest.mark.skipif(BROWSER is None, reason=WHY_NOT)
def test_the_browser_test_notices_what_a_page_must_not_do(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<img src='https://example.org/x.png'>"
    )
    picture, console = screenshot(page, (500, 400))
    assert console and picture.std() < 0.02
