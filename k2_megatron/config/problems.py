# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a configuration, where it stands, and the one text that tells all of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from k2_megatron.errors import ConfigError


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written: a line of a file, or an override on the command line.

    Attributes:
        source: 0 for the file, 1 for the command line; the file's problems are told first.
        position: line number from 1, or the override's index.
        text: the place in words, `file:line` or `--set section.key=value`.
    """

    source: int
    position: float
    text: str

    @staticmethod
    def in_file(path: str, line: int | None = None) -> Place:
        """A line of a file; without a line, the file as a whole, told after its lines."""
        if line is None:
            return Place(0, math.inf, path)
        return Place(0, line, f"{path}:{line}")

    @staticmethod
    def on_command_line(index: int, override: str) -> Place:
        """The override number `index` of the command line."""
        return Place(1, index, f"--set {override}")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        place: where to look.
        key: dotted key, for example `data.corpora[0].path`; empty if there is none.
        message: what was given and what is allowed.
    """

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.place.text}: {key}{self.message}"


def as_error(problems: Iterable[Problem]) -> ConfigError:
    """The one error that lists all problems in the order of their places."""
    lines = [str(problem) for problem in sorted(problems, key=lambda problem: problem.place)]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return ConfigError("\n  ".join([f"{count} in the configuration:", *lines]))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like the given one, None if none is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None
