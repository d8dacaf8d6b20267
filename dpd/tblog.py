"""TensorBoard: one sub-run per seed, its settings, and charts that hold all peers."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dpd.csvlog import Point

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHARTS = {"train/return": "returns", "eval/return": "returns"}
CHART_PREFIXES = {"loss/": "losses", "distill/": "distillation"}
FLUSH_S = 30


def flattened(hparams: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Flatten nested settings to dotted names; what is no number becomes text."""
    flat: dict[str, float | str] = {}
    for name, value in hparams.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            flat[prefix + name] = value if number else str(value)
    return flat


def add(writer: "SummaryWriter", summary: Any, step: int | None = None) -> None:
    """Write a summary of several values as one event; the public methods take one value each."""
    writer._get_file_writer().add_summary(summary, step)


class TensorBoardLog:
    """Write one TensorBoard sub-run per seed, with charts that hold all peers."""

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        peers: int,
        hparams: Mapping[str, Any],
        start_step: int | None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if start_step is None else start_step + 1
        self._peers, self._charts = peers, dict.fromkeys(CHARTS)
        self._writers: dict[int, SummaryWriter] = {}
        with ExitStack() as opened:
            for seed in seeds:
                self._writers[seed] = SummaryWriter(
                    folder / f"seed{seed}", purge_step=purge, flush_secs=FLUSH_S
                )
                opened.callback(self._writers[seed].close)
            self._first = self._writers[seeds[0]]
            self._write_settings(flattened(hparams))
            self._write_layout()
            for writer in self._writers.values():
                writer.flush()  # a full disk is better told of now than after an hour
            self._opened = opened.pop_all()

    def tags(self, name: str) -> list[str]:
        """Name the tags of a metric, one per peer."""
        return [self._tag(name, peer) for peer in range(self._peers)]

    def write(self, step: int, points: Sequence[Point]) -> None:
        """Write a record as one event per seed: an event per number costs a file access each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summaries: dict[SummaryWriter, Summary] = {}
        for seed, peer, name, value in points:
            writer = self._first if seed is None else self._writers[seed]
            summary = summaries.setdefault(writer, Summary())
            summary.value.add(tag=self._tag(name, peer), simple_value=value)
        for writer, summary in summaries.items():
            add(writer, summary, step)
        self._extend_layout(points)

    def flush(self) -> None:
        """Bring all events to the files."""
        for writer in self._writers.values():
            writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(OSError):  # the first error is already on its way up
                self._opened.close()
            return
        with self._opened:
            for writer in self._writers.values():
                add(writer, self._session_end)

    def _tag(self, name: str, peer: int | None) -> str:
        return name if peer is None or self._peers == 1 else f"{name}/peer{peer}"

    def _write_settings(self, settings: Mapping[str, float | str]) -> None:
        """Write the settings as text and for the hparams tab.

        SummaryWriter.add_hparams would open a sub-run of its own for each.
        """
        from torch.utils.tensorboard.summary import hparams

        texts = {name: str(value).replace("|", "&#124;") for name, value in settings.items()}
        rows = [f"| {name} | {text} |" for name, text in texts.items()]
        self._first.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        final = dict.fromkeys(self.tags("eval/return"), 0.0)  # the tab shows a tag's last value
        for seed, writer in self._writers.items():
            experiment, start, self._session_end = hparams({**settings, "seed": seed}, final)
            add(writer, experiment)
            add(writer, start)

    def _extend_layout(self, points: Sequence[Point]) -> None:
        """Give new losses and distillation metrics their charts."""
        known = len(self._charts)
        for point in points:
            if point.name.startswith(tuple(CHART_PREFIXES)):
                self._charts.setdefault(point.name)
        if len(self._charts) > known:
            self._write_layout()

    def _write_layout(self) -> None:
        """Put the peers of each metric into one chart; TensorBoard shows the last layout."""
        layout: dict[str, dict[str, list[Any]]] = {}
        for name in self._charts:
            category = CHARTS.get(name) or CHART_PREFIXES[name.partition("/")[0] + "/"]
            # Tags are regular expressions matched from the start: peer1 would find peer10.
            lines = [f"{re.escape(tag)}$" for tag in self.tags(name)]
            layout.setdefault(category, {})[name] = ["Multiline", lines]
        self._first.add_custom_scalars(layout)
