"""Report of a search: its trials by return, their curves, and the return by each flag."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dpd import __version__
from dpd.report.figures import GREY, line_style, new_figure, style_axes
from dpd.report.report import Report, Section, Table, format_number
from dpd.tune.config import TuneConfig
from dpd.tune.search import COMPLETE, FAILED, PRUNED, TRIAL_STATES, values_in
from dpd.tune.space import Choices, Space, Value, space_words, text_of

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 10
PANEL_COLUMNS = 3
TUNE_TERMS = {
    "return": "mean over all seeds and peers in the last evaluation, without noise. A trial that "
    "was stopped has that of its last evaluation",
    "pruned": "stopped at an evaluation because it was behind the others there",
    "best": "the highest of many noisy numbers is too high. Its settings must be reported on other "
    "seeds, which had no part in the choice",
}


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """A trial of a search."""

    number: int
    state: str
    values: Mapping[str, Value]
    scores: Sequence[float]
    """Returns of its evaluations."""
    reason: str = ""
    """Last line of its log, if it failed."""

    @property
    def is_complete(self) -> bool:
        """True if it trained to its end."""
        return self.state == COMPLETE

    @property
    def score(self) -> float | None:
        """Return of its last evaluation."""
        return self.scores[-1] if self.scores else None


def read_trials(study: optuna.Study, space: Space) -> list[SearchTrial]:
    """Return the trials of a search: the complete ones by return, the others behind them."""
    trials = [
        SearchTrial(
            number=t.number,
            state=TRIAL_STATES[t.state.name],
            values=values_in(space, t.params),
            scores=[t.intermediate_values[k] for k in sorted(t.intermediate_values)],
            reason=t.user_attrs.get("reason", ""),
        )
        for t in study.trials
        if t.state.name in TRIAL_STATES
    ]
    worst = -math.inf
    return sorted(
        trials, key=lambda t: (t.is_complete, worst if t.score is None else t.score), reverse=True
    )


def tune_report(config: TuneConfig, space: Space, trials: Sequence[SearchTrial]) -> Report:
    """Report on a search; the data include all evaluations."""
    failed = [trial for trial in trials if trial.state == FAILED]
    notes = [
        "the best of many noisy returns is too high; report these settings on other seeds, with "
        "dpd study"
    ]
    notes += [f"trial {trial.number} failed: {trial.reason}" for trial in failed]
    if config.evals == 1 and config.pruner != "none":
        notes.append("no trial could be stopped early, because each had one evaluation")
    best = trials[0]
    figures = [partial(draw_trial_curves, config, trials), partial(draw_flags, space, trials)]
    first = Section(
        terms=[("best trial", f"{best.number}: `{' '.join(space_words(best.values))}`")],
        figures=figures,
        tables=[search_table(config, trials[:SHOWN], "The best trials")],
    )
    rest = Section(
        heading="All trials",
        tables=[search_table(config, trials, "All trials")._replace(detail=True)],
    )
    about = [(name, str(entry)) for name, entry in space.items()]
    sections = [
        first,
        rest,
        Section(heading="Ranges", terms=about),
        Section(heading="What the numbers mean", terms=TUNE_TERMS.items()),
    ]
    return Report(
        title=f"Settings for {config.env}",
        sections=sections,
        data=tune_json(config, trials, notes),
        notes=notes,
    )


def search_table(config: TuneConfig, trials: Sequence[SearchTrial], title: str) -> Table:
    """Return a table of trials with their flags."""
    names = list(trials[0].values)
    rows = [
        [
            str(trial.number),
            format_number(trial.score),
            trial.state,
            f"{len(trial.scores)}/{config.evals}",
            *(text_of(trial.values[name]) for name in names),
        ]
        for trial in trials
    ]
    seeds = f"{config.seeds} seed{'s' * (config.seeds > 1)} from {config.seed}"
    title = f"{title}: {config.env}, {config.total_steps:,} steps, {seeds}"
    return Table(title, ["trial", "return", "state", "evaluations", *names], rows)


def tune_json(
    config: TuneConfig, trials: Sequence[SearchTrial], notes: Sequence[str]
) -> dict[str, Any]:
    """Return all settings and results of a search."""
    return {
        "dpd": __version__,
        **config.as_saved(),
        "best": trials[0].number,
        "trials": [
            {
                "trial": trial.number,
                "state": trial.state,
                "return": trial.score,
                "evaluations": list(trial.scores),
                "values": dict(trial.values),
                "reason": trial.reason,
            }
            for trial in trials
        ],
        "notes": list(notes),
    }


def draw_trial_curves(config: TuneConfig, trials: Sequence[SearchTrial]) -> Figure:
    """Draw the evaluations of all trials, the best one in colour."""
    figure = new_figure(7, 3.2)
    axes = figure.subplots()
    style_axes(axes, "return by evaluation")
    for trial in reversed(trials):
        steps = range(1, len(trial.scores) + 1)
        style: dict[str, Any] = {"color": GREY, "alpha": 0.5, "linewidth": 1}
        if trial is trials[0]:
            style = line_style(0) | {"label": f"trial {trial.number}"}
        mark = "x" if trial.state == PRUNED else "."
        axes.plot(steps, trial.scores, marker=mark, markersize=4, **style)
    axes.set_xlabel("evaluation; a cross ends a trial that was stopped")
    axes.set_xlim(0.5, config.evals + 0.5)
    return figure


def draw_flags(space: Space, trials: Sequence[SearchTrial]) -> Figure:
    """Draw the return of the complete trials by each flag."""
    columns = min(PANEL_COLUMNS, len(space))
    rows = -(-len(space) // columns)
    figure = new_figure(2.6 * columns, 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(panels, space, strict=False):
        draw_flag(axes, space, name, [trial for trial in trials if trial.is_complete])
    for axes in list(panels)[len(space) :]:
        axes.set_axis_off()
    return figure


def draw_flag(axes: Axes, space: Space, name: str, trials: Sequence[SearchTrial]) -> None:
    """Draw the return of trials by one flag."""
    style_axes(axes, name)
    entry, values = space[name], [trial.values[name] for trial in trials]
    scores = [trial.scores[-1] for trial in trials]
    if isinstance(entry, Choices):
        places = [list(entry.values).index(value) for value in values]
        axes.set_xticks(range(len(entry.values)), [str(value) for value in entry.values])
        axes.plot(places, scores, "o", color=line_style(0)["color"], alpha=0.6, markersize=4)
        return
    if entry.log:
        axes.set_xscale("log")
    axes.plot(values, scores, "o", color=line_style(0)["color"], alpha=0.6, markersize=4)
