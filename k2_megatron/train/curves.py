# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""curves.png: the run at a glance, drawn from metrics.jsonl.

`render_curves(run_folder)`, or `python -m k2_megatron.train.curves RUN_FOLDER`. While training,
CurvesWriter starts that command as a process of its own: the loop does not wait for matplotlib,
and nothing matplotlib does can end a run.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from k2_megatron.errors import UserError
from k2_megatron.train import jsonl
from k2_megatron.train.callbacks import Callback
from k2_megatron.train.metrics import StepRecord

FILE_NAME = "curves.png"
LAST_SECONDS = 60.0
"""How long the end of a run waits for its picture: the other ranks wait meanwhile."""
SMOOTHED_FROM = 100
"""Number of logged steps from which curves are drawn as a running mean over the faint values."""

Array = npt.NDArray[np.float64]

_INK, _FAINT = "#1f2933", "#8795a1"
_BLUE, _ORANGE, _RED = "#2563a8", "#d9730d", "#c0392b"


class CurvesWriter(Callback):
    """Redraws curves.png every so many steps, after a validation, and when training ends."""

    def __init__(
        self, run_folder: Path, every_steps: int = 100, say: Callable[[str], None] = print
    ) -> None:
        """Set up the writer; it belongs after JsonlWriter in the list.

        Args:
            run_folder: has metrics.jsonl; curves.png goes there.
            every_steps: steps between two drawings; one that is still being drawn is let finish.
            say: takes the message when the picture could not be drawn, once a run.
        """
        self._run_folder = run_folder
        self._every_steps = every_steps
        self._say = say
        self._drawn_step = 0
        self._due = False
        self._process: subprocess.Popen[str] | None = None
        self._complained = False

    def on_train_start(self, resumed_step: int) -> None:
        """Count the steps to the next picture from here."""
        self._drawn_step = resumed_step

    def on_rollback(self, step: int) -> None:
        """Count the steps to the next picture from here."""
        self._drawn_step = min(self._drawn_step, step)

    def on_valid(self, step: int, valid_loss: float) -> None:
        """Draw once this step's line is in the file."""
        self._due = True

    def on_step_end(self, record: StepRecord) -> None:
        """Start a drawing where one is due and none is under way."""
        if not self._due and record.step - self._drawn_step < self._every_steps:
            return
        if self._process is not None and self._process.poll() is None:
            return
        self._finish()
        self._start()
        self._due, self._drawn_step = False, record.step

    def on_train_end(self) -> None:
        """Draw the whole run and wait LAST_SECONDS; a run without a logged step has no picture.

        A picture that is still being drawn shows less: it is not waited for.
        """
        self.close()
        metrics = self._run_folder / jsonl.FILE_NAME
        if metrics.is_file() and metrics.stat().st_size > 0:
            self._start()
            self._finish()

    def close(self) -> None:
        """End a drawing under way, and leave nothing of it."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()
            _unfinished(self._run_folder, process.pid).unlink(missing_ok=True)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "k2_megatron.train.curves", str(self._run_folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _finish(self) -> None:
        """Wait for the drawing under way, if any, and say once if it failed."""
        if self._process is None:
            return
        try:
            _, errors = self._process.communicate(timeout=LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            self._complain(
                f"the run ends and does not wait longer than {LAST_SECONDS:g} s; "
                f"python -m k2_megatron.train.curves {self._run_folder} draws it"
            )
            return
        process, self._process = self._process, None
        if process.returncode != 0:
            reason = errors.strip() or f"exit code {process.returncode}"
            self._complain(reason.splitlines()[-1])

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._say(f"{self._run_folder / FILE_NAME} could not be drawn: {reason}")


def render_curves(run_folder: Path) -> Path:
    """Draw curves.png from metrics.jsonl and return its path; the old picture is replaced whole.

    Raises:
        MetricsFileError: metrics.jsonl is missing, damaged, or has no finished line.
    """
    # Imported here, and without pyplot: no display, no global state, nothing on other ranks.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    metrics = run_folder / jsonl.FILE_NAME
    lines = jsonl.read_metrics(metrics)
    if not lines:
        raise jsonl.MetricsFileError(f"{metrics}: no logged step in it yet")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(12, 10), facecolor="white", layout=layout)
    canvas = FigureCanvasAgg(figure)
    panels: dict[str, Any] = figure.subplot_mosaic(
        [["loss", "loss"], ["lr", "grad_norm"], ["speed", "imbalance"]], height_ratios=[1.6, 1, 1]
    )
    steps = _column(lines, "step")
    _draw_loss(panels["loss"], steps, lines)
    _draw_lr(panels["lr"], steps, _column(lines, "lr"))
    _draw_grad_norm(panels["grad_norm"], steps, _column(lines, "grad_norm"))
    _draw_speed(panels["speed"], steps, lines)
    _draw_imbalance(panels["imbalance"], steps, lines)
    for panel in panels.values():
        _style(panel, steps)
    figure.suptitle(_headline(run_folder, lines), x=0.012, ha="left", fontsize=15, color=_INK)

    target = run_folder / FILE_NAME
    unfinished = _unfinished(run_folder, os.getpid())
    try:
        with unfinished.open("wb") as file:
            canvas.print_png(file)
        os.replace(unfinished, target)
    except OSError:
        unfinished.unlink(missing_ok=True)  # on a full disk each picture would take some more
        raise
    return target


def _unfinished(run_folder: Path, process: int) -> Path:
    """Where a process draws before the picture takes its name."""
    return run_folder / f".{FILE_NAME}.{process}"


def _headline(run_folder: Path, lines: list[dict[str, Any]]) -> str:
    last = lines[-1]
    name, step = run_folder.resolve().name, f"step {last['step']:,}"
    return f"{name}   ·   {step}   ·   {last['consumed_tokens']:,} tokens"


def _draw_loss(panel: Any, steps: Array, lines: list[dict[str, Any]]) -> None:
    """Training loss, its running mean, validation points, and a mark for each skipped step."""
    loss, valid = _column(lines, "loss"), _column(lines, "valid_loss")
    _draw_values(panel, steps, loss, label=f"training, last {loss[-1]:.4f}")
    measured = ~np.isnan(valid)
    if measured.any():
        label = f"validation, last {valid[measured][-1]:.4f}"
        style = {"color": _ORANGE, "markersize": 5.5, "markeredgecolor": "white", "zorder": 4}
        panel.plot(steps[measured], valid[measured], "o", label=label, **style)
    skipped = np.array([bool(line["skipped"]) for line in lines])
    if skipped.any():
        panel.plot(
            steps[skipped],
            np.full(int(skipped.sum()), 0.02),
            "^",
            color=_RED,
            markersize=6,
            transform=panel.get_xaxis_transform(),
            label=f"skipped steps: {int(skipped.sum())}",
            zorder=5,
        )
    both = np.concatenate([loss, valid])
    both = both[np.isfinite(both)]
    # One wild spike must not flatten the curve: the frame ends well above the other values.
    top = 1.5 * float(np.quantile(both, 0.995)) if both.size else 1.0
    outside = int((both > top).sum())
    note = f"; {outside} values above the frame" if outside else ""
    if outside:
        panel.set_ylim(top=top)
    _title(panel, f"loss, nats per token{note}")
    panel.legend(loc="upper right", frameon=False, labelcolor=_INK)


def _draw_lr(panel: Any, steps: Array, lr: Array) -> None:
    _title(panel, "learning rate", f"{lr[-1]:.2e}")
    panel.plot(steps, lr, color=_BLUE, linewidth=1.6, marker=_marker(steps))
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")


def _draw_grad_norm(panel: Any, steps: Array, norm: Array) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    _title(panel, "gradient norm before clipping", f"{norm[-1]:.3g}")
    _draw_values(panel, steps, norm)
    positive = norm[np.isfinite(norm) & (norm > 0)]
    if not positive.size:
        return  # nothing a logarithmic axis could show
    panel.set_yscale("log")
    decades = np.log10(positive.max() / positive.min())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_speed(panel: Any, steps: Array, lines: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter

    last = lines[-1]["tflops_per_device"]
    _title(panel, "tokens per second, whole job", f"{last:.3g} TFLOP/s per device")
    _draw_values(panel, steps, _column(lines, "tokens_per_second"))
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(EngFormatter(sep=" "))


def _draw_imbalance(panel: Any, steps: Array, lines: list[dict[str, Any]]) -> None:
    """Median over the layers, and the band from the evenest to the worst layer."""
    _title(panel, "expert load: busiest over mean expert")
    layers = [list(line.get("expert_imbalance", {}).values()) or [np.nan] for line in lines]
    if not np.isfinite(np.concatenate(layers)).any():
        place = {"ha": "center", "va": "center", "transform": panel.transAxes}
        panel.text(0.5, 0.5, "no MoE layers in this run", color=_FAINT, **place)
        panel.set_yticks([])
        return
    columns = np.array([np.quantile(values, [0, 0.5, 1]) for values in layers]).T
    lowest, median, highest = (running_mean(column) for column in columns)
    _title(panel, "expert load: busiest over mean expert", f"worst {columns[2][-1]:.2f}")
    panel.fill_between(steps, lowest, highest, color=_BLUE, alpha=0.13, linewidth=0)
    marker = _marker(steps)
    panel.plot(steps, highest, color=_ORANGE, linewidth=1.2, marker=marker, label="worst layer")
    panel.plot(steps, median, color=_BLUE, linewidth=1.6, marker=marker, label="median layer")
    panel.axhline(1, color=_FAINT, linewidth=1, linestyle=(0, (2, 2)), label="even load")
    worst = float(np.nanmax(highest))
    panel.set_ylim(0.95, worst + 0.3 * (worst - 0.95))  # room for the legend
    panel.legend(loc="upper right", frameon=False, ncols=3, fontsize=9, labelcolor=_INK)


def _draw_values(panel: Any, steps: Array, values: Array, label: str | None = None) -> None:
    """Draw the values, faint under their running mean once there are many."""
    smooth = running_mean(values)
    if len(steps) >= SMOOTHED_FROM:
        panel.plot(steps, values, color=_BLUE, alpha=0.3, linewidth=0.8)
    panel.plot(steps, smooth, color=_BLUE, linewidth=1.6, marker=_marker(steps), label=label)


def _marker(steps: Array) -> str | None:
    """Few points are shown as points: a line through one of them could not be seen."""
    return "." if len(steps) < 20 else None


def _title(panel: Any, left: str, right: str = "") -> None:
    panel.set_title(left, loc="left", fontsize=10.5, color=_INK)
    panel.set_title(right, loc="right", fontsize=10.5, color=_BLUE)


def _style(panel: Any, steps: Array) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = 0.01 * (steps[-1] - steps[0]) or 0.5
    panel.set_xlim(steps[0] - margin, steps[-1] + margin)
    panel.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.set_xlabel("step", fontsize=9, color=_FAINT)
    panel.grid(True, axis="y", color="#e4e7eb", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=_INK, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(_FAINT)


def running_mean(values: Array) -> Array:
    """Return the centred mean over a fiftieth of the points, without those that are not finite.

    Fewer than SMOOTHED_FROM points are returned as they are, with NaN for what is not finite.
    """
    half = len(values) // SMOOTHED_FROM
    known = np.isfinite(values)
    padded = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counted = np.concatenate([[0], np.cumsum(known)])
    # At the ends the window shrinks on both sides, so that the curve starts and ends on its values.
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, len(values) - 1 - place))
    low, high = place - reach, place + reach + 1
    number = counted[high] - counted[low]
    total = padded[high] - padded[low]
    return np.where(known & (number > 0), total / np.maximum(number, 1), np.nan)


def _column(lines: list[dict[str, Any]], key: str) -> Array:
    """Return one value a line, NaN where the line has none."""
    return np.array([line.get(key, np.nan) for line in lines], dtype=np.float64)


def main() -> None:
    """Draw the picture of the run folder named on the command line."""
    parser = argparse.ArgumentParser(description="Draw curves.png from a run's metrics.jsonl.")
    parser.add_argument("run_folder", type=Path)
    try:
        print(render_curves(parser.parse_args().run_folder))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
