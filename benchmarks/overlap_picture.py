# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Draw traces of `layouts.py`: computation, communication, and what of it nothing hides.

    python3 benchmarks/overlap_picture.py TRACE.json.gz... --out docs/images/overlap.png

Each trace is of one rank and one step; file names are titles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from exposed import Interval, communication, kernels_of_trace, length, sides_of

COMPUTED, HIDDEN, EXPOSED = "#4c78a8", "#9aa0a6", "#e45756"


def without(intervals: list[Interval], others: list[Interval]) -> list[Interval]:
    """The parts of joined intervals in which none of the others lies; both in order."""
    found = []
    for begin, end in intervals:
        for other_begin, other_end in others:
            if other_end <= begin or other_begin >= end:
                continue
            if other_begin > begin:
                found.append((begin, other_begin))
            begin = max(begin, other_end)
        if begin < end:
            found.append((begin, end))
    return found


def main() -> None:
    """Draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, every = pyplot.subplots(
        len(args.traces), figsize=(11, 1.9 * len(args.traces)), sharex=True, squeeze=False
    )
    for path, axes in zip(args.traces, every[:, 0], strict=True):
        kernels = [(name, begin / 1e3, end / 1e3) for name, begin, end in kernels_of_trace(path)]
        computing, communicating = sides_of(kernels)
        lanes = (
            (1.0, computing, COMPUTED),
            (0.0, communicating, HIDDEN),
            (0.0, without(communicating, computing), EXPOSED),
        )
        for row, intervals, colour in lanes:
            bars = [(begin, end - begin) for begin, end in intervals]
            axes.broken_barh(bars, (row, 0.8), color=colour, linewidth=0)
        found = communication(kernels)
        title = path.name.removesuffix(".json.gz").replace("_", " ")
        axes.set_title(
            f"{title}: step {max(end for *_, end in kernels):.0f} ms, communication "
            f"{found['communication']:.0f} ms, exposed (red) {found['exposed']:.0f} ms",
            loc="left",
            fontsize=10,
        )
        assert abs(length(lanes[2][1]) - found["exposed"]) < 0.01
        axes.set_yticks([0.4, 1.4], ["communication", "computation"])
        axes.spines[["top", "right", "left"]].set_visible(False)
    every[-1, 0].set_xlabel("milliseconds")
    figure.tight_layout()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
