# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From YAML and overrides to a checked `Config`, or one error that lists everything wrong.

Strict: an unknown, repeated, missing, mistyped, out-of-range or ineffective key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from k2_megatron.config.config import Config, sections
from k2_megatron.config.document import (
    Given,
    PlaceOf,
    entries,
    is_null,
    kind_of_node,
    read_document,
    read_override,
)
from k2_megatron.config.option import Changes, Key, keys_of
from k2_megatron.config.phases import with_total_steps
from k2_megatron.config.presets import MODEL_PRESETS
from k2_megatron.config.problems import Place, Problem, as_error, nearest
from k2_megatron.config.resolve import resolve
from k2_megatron.config.rules import Origins, check
from k2_megatron.config.values import read_scalar

_WRONG = object()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's configuration.

    Args:
        path: the YAML file.
        overrides: texts `section.key=value` that replace the file's values; the value is YAML.

    Returns:
        The checked configuration, automatic values filled in.

    Raises:
        ConfigError: anything is wrong; the text lists every problem with its place, key, what was
            given and what is allowed.
    """
    loading = _Loading(path=str(path))
    root, place_of = read_document(Path(path))
    loading.collect(root, place_of)
    for index, override in enumerate(overrides):
        loading.override(index, override)
    loading.read()
    config = with_total_steps(resolve(loading.assemble()))
    loading.problems += check(config, loading.origins())
    if loading.problems:
        raise as_error(loading.problems)
    return config


@dataclass
class _Loading:
    """One load in progress: what was given, what it means, and what is wrong with it."""

    path: str
    given: dict[str, Given] = field(default_factory=dict)
    section_places: dict[str, Place] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    places_in_lists: dict[str, Place] = field(default_factory=dict)

    def collect(self, root: yaml.MappingNode, place_of: PlaceOf) -> None:
        """Find the given keys of the file; refuse unknown and repeated ones."""
        for name, node in self._unique(root, "", sections(), place_of).items():
            self.section_places[name] = node.place
            if is_null(node.node):
                continue
            if not isinstance(node.node, yaml.MappingNode):
                message = f"given {kind_of_node(node.node)}; allowed: a mapping of keys"
                self.problems.append(Problem(node.place, name, message))
                continue
            keys = keys_of(sections()[name])
            for key, value in self._unique(node.node, f"{name}.", keys, place_of).items():
                self.given[f"{name}.{key}"] = value

    def _unique(
        self, node: yaml.MappingNode, prefix: str, known: Mapping[str, object], place_of: PlaceOf
    ) -> dict[str, Given]:
        """The entries of a mapping with known names, each once."""
        seen: dict[str, Given] = {}
        for name, key_node, value in entries(node):
            place = place_of(key_node)
            if name in seen:
                first = seen[name].place.text
                message = f"given twice, first at {first}; allowed: once"
                self.problems.append(Problem(place, prefix + name, message))
            elif name not in known:
                message = _unknown(name, prefix, known)
                self.problems.append(Problem(place, prefix + name, message))
            else:
                seen[name] = Given(value, place, place_of)
        return seen

    def override(self, index: int, override: str) -> None:
        """Replace a value of the file by one of the command line."""
        place = Place.on_command_line(index, override)
        try:
            key, given = read_override(override, place)
        except ValueError as error:
            self.problems.append(Problem(place, "", str(error)))
            return
        section, _, name = key.partition(".")
        if section not in sections():
            message = _unknown(section, "", sections())
            self.problems.append(Problem(place, section, message))
        elif name not in (keys := keys_of(sections()[section])):
            self.problems.append(Problem(place, key, _unknown(name, f"{section}.", keys)))
        elif key in self.given and self.given[key].place.source == place.source:
            message = f"given twice, first by {self.given[key].place.text}; allowed: once"
            self.problems.append(Problem(place, key, message))
        else:
            self.given[key] = given

    def read(self) -> None:
        """Read every given value; refuse wrong ones and tell missing ones."""
        for section, kind in sections().items():
            for name, key in keys_of(kind).items():
                dotted = f"{section}.{name}"
                if dotted in self.given:
                    value = self._value(dotted, key, self.given[dotted])
                    if value is not _WRONG:
                        self.values[dotted] = value
                elif key.required and not self._is_said_by_phases(dotted):
                    self.problems.append(_missing(self.section_place(dotted), dotted, key))

    def _is_said_by_phases(self, dotted: str) -> bool:
        """Whether a required key is left out because phases are given."""
        phases = self.given.get("schedule.phases")
        node = None if phases is None else phases.node
        empty = isinstance(node, yaml.SequenceNode) and not node.value
        return dotted == "schedule.train_steps" and node is not None and not empty

    def section_place(self, dotted: str) -> Place:
        """Where the section of a key begins; the file as a whole if it has no such section."""
        return self.section_places.get(dotted.split(".")[0], Place.in_file(self.path))

    def _value(self, dotted: str, key: Key, given: Given) -> object:
        """Read one value; `_WRONG` after telling what is wrong with it."""
        try:
            if key.length is not None:
                return self._numbers(dotted, key, key.length, given)
            if key.kind is Changes:
                return self._changes(dotted, key, given)
            if key.item is None:
                return read_scalar(given.node, key)
            may_be_empty = key.default == ()
            if isinstance(given.node, yaml.SequenceNode) and (given.node.value or may_be_empty):
                items = [
                    self._item(f"{dotted}[{index}]", key.item, node, given.place_of)
                    for index, node in enumerate(given.node.value)
                ]
                return _WRONG if _WRONG in items else tuple(items)
            empty = isinstance(given.node, yaml.SequenceNode)
            what = "an empty list" if empty else kind_of_node(given.node)
            raise ValueError(f"given {what}; allowed: {key.allowed}")
        except ValueError as error:
            self.problems.append(Problem(given.place, dotted, str(error)))
            return _WRONG

    def _numbers(self, dotted: str, key: Key, length: int, given: Given) -> object:
        """Read a list of `length` numbers; `_WRONG` after telling which of them are wrong.

        Raises:
            ValueError: it is no list, or one of another length.
        """
        if not isinstance(given.node, yaml.SequenceNode):
            raise ValueError(f"given {kind_of_node(given.node)}; allowed: {key.allowed}")
        nodes = given.node.value
        if len(nodes) != length:
            items = "1 item" if len(nodes) == 1 else f"{len(nodes)} items"
            raise ValueError(f"given a list of {items}; allowed: {key.allowed}")
        numbers = [
            self._value(
                f"{dotted}[{index}]", key.number, Given(node, given.place_of(node), given.place_of)
            )
            for index, node in enumerate(nodes)
        ]
        return _WRONG if _WRONG in numbers else tuple(numbers)

    def _item(self, dotted: str, kind: type, node: yaml.Node, place_of: PlaceOf) -> object:
        """Read one item of a list; `_WRONG` after telling what is wrong with it."""
        keys = keys_of(kind)
        if not isinstance(node, yaml.MappingNode):
            message = f"given {kind_of_node(node)}; allowed: a mapping with {', '.join(keys)}"
            self.problems.append(Problem(place_of(node), dotted, message))
            return _WRONG
        count = len(self.problems)
        given = self._unique(node, f"{dotted}.", keys, place_of)
        self.places_in_lists[dotted] = place_of(node)
        self.places_in_lists |= {f"{dotted}.{name}": one.place for name, one in given.items()}
        values: dict[str, Any] = {}
        for name, key in keys.items():
            if name in given:
                values[name] = self._value(f"{dotted}.{name}", key, given[name])
            elif key.required:
                self.problems.append(_missing(place_of(node), f"{dotted}.{name}", key))
        return kind(**values) if len(self.problems) == count else _WRONG

    def _changes(self, dotted: str, key: Key, given: Given) -> object:
        """Read other values for keys of a section; `_WRONG` after telling what is wrong."""
        section, allowed = key.option.section, key.option.changeable
        keys = keys_of(sections()[section])
        if not isinstance(given.node, yaml.MappingNode):
            raise ValueError(f"given {kind_of_node(given.node)}; allowed: {key.allowed}")
        count = len(self.problems)
        values: list[tuple[str, object]] = []
        for name, one in self._unique(given.node, f"{dotted}.", keys, given.place_of).items():
            if allowed and name not in allowed:
                message = f"a run keeps its {section}.{name}; allowed: {', '.join(allowed)}"
                self.problems.append(Problem(one.place, f"{dotted}.{name}", message))
                continue
            values.append((name, self._value(f"{dotted}.{name}", keys[name], one)))
            self.places_in_lists[f"{dotted}.{name}"] = one.place
        return Changes(tuple(values)) if len(self.problems) == count else _WRONG

    def assemble(self) -> Config:
        """Build the configuration; a value that could not be read is replaced by a stand-in.

        The stand-ins never reach the user: their keys are not in `origins`, and every problem
        that touches such a key is left out.
        """
        preset = MODEL_PRESETS.get(str(self.values.get("model.preset")), {})
        built: dict[str, Any] = {}
        for section, kind in sections().items():
            values: dict[str, object] = dict(preset) if section == "model" else {}
            for name, key in keys_of(kind).items():
                dotted = f"{section}.{name}"
                if dotted in self.values:
                    values[name] = self.values[dotted]
                elif key.required:
                    values[name] = () if key.kind is tuple else key.kind(1)
            built[section] = kind(**values)
        return Config(**built)

    def origins(self) -> Origins:
        """Where each value that is known comes from."""
        places = {key: given.place for key, given in self.given.items() if key in self.values}
        if self.values.get("schedule.phases") == ():
            del places["schedule.phases"]  # says nothing
        return Origins.of(
            fallback=self.section_place,
            places=places | self.places_in_lists,
            broken={key for key in self.given if key not in self.values},
            preset=self.values.get("model.preset"),
        )


def _unknown(name: str, prefix: str, known: Mapping[str, object]) -> str:
    """Say that a name is unknown and which was probably meant."""
    what = "key" if prefix else "section"
    found = nearest(name, known)
    if found:
        return f"unknown {what}; did you mean {prefix}{found}?"
    for section, kind in sections().items():
        if name in keys_of(kind):
            return f"unknown {what}; did you mean {section}.{name}?"
    return f"unknown {what}; allowed: {', '.join(known)}"


def _missing(place: Place, dotted: str, key: Key) -> Problem:
    """Say that a required key is missing."""
    return Problem(place, dotted, f"not given and has no default; allowed: {key.allowed}")
