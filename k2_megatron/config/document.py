# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Reading YAML into nodes that still know their lines. Nothing is interpreted here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from k2_megatron.config.problems import Place, Problem, as_error

PlaceOf = Callable[[yaml.Node], Place]


@dataclass(frozen=True)
class Given:
    """A value as the user wrote it.

    Attributes:
        node: the value.
        place: where its key stands.
        place_of: finds the place of a node inside the value.
    """

    node: yaml.Node
    place: Place
    place_of: PlaceOf


def read_document(path: Path) -> tuple[yaml.MappingNode, PlaceOf]:
    """Read a YAML file that holds one mapping.

    Returns:
        The mapping, and a function that gives the place of any node in it.

    Raises:
        ConfigError: the file cannot be read, is not YAML, is empty or is not a mapping.
    """
    whole = Place.in_file(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = Problem(whole, "", f"cannot be read: {error.strerror or error}")
        raise as_error([problem]) from error
    except UnicodeDecodeError as error:
        raise as_error([Problem(whole, "", "is not UTF-8 text")]) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        message, line = _syntax_error(error, text)
        place = Place.in_file(str(path), line)
        raise as_error([Problem(place, "", f"is not YAML: {message}")]) from error

    def place_of(node: yaml.Node) -> Place:
        return Place.in_file(str(path), node.start_mark.line + 1)

    if node is None:
        problem = Problem(Place.in_file(str(path), 1), "", "is empty; allowed: sections of keys")
        raise as_error([problem])
    if not isinstance(node, yaml.MappingNode):
        message = (
            f"given {kind_of_node(node)}; allowed: a mapping of sections, such as run: and model:"
        )
        raise as_error([Problem(place_of(node), "", message)])
    return node, place_of


def read_override(override: str, place: Place) -> tuple[str, Given]:
    """Split `section.key=value` and read the value as YAML.

    Raises:
        ValueError: it has another form; the text says what is allowed.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or key.count(".") != 1 or not all(key.split(".")):
        raise ValueError("allowed: --set section.key=value")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        message, _ = _syntax_error(error, text)
        raise ValueError(f"the value is not YAML: {message}") from error
    if node is None:
        raise ValueError("the value is empty; write null for no value")
    return key, Given(node, place, lambda _: place)


def entries(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """The (key, key node, value node) of a mapping, duplicates included."""
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else kind_of_node(key)
        yield name, key, value


def kind_of_node(node: yaml.Node) -> str:
    """What a node is, in words: a list, a mapping, or the scalar as it was written."""
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return str(node.value) or "nothing"


def is_null(node: yaml.Node) -> bool:
    """Whether a node is YAML's null, written or left out."""
    return node.tag == "tag:yaml.org,2002:null"


def _syntax_error(error: yaml.YAMLError, text: str) -> tuple[str, int]:
    """Words and line (from 1) of an error of the YAML parser."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        return words, mark.line + 1 if mark else 1
    position = getattr(error, "position", 0)
    return "a character that YAML does not allow", text.count("\n", 0, position) + 1
