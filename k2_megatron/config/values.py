# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From one YAML scalar to one value of the declared type, strictly: no guesses, but good hints."""

from __future__ import annotations

import math
import re

import yaml
from yaml.constructor import SafeConstructor

from k2_megatron.config.document import is_null, kind_of_node
from k2_megatron.config.option import Key
from k2_megatron.config.problems import nearest

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_PLAIN_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")


def read_scalar(node: yaml.Node, key: Key) -> bool | int | float | str | None:
    """Read a scalar of the key's type and range.

    Raises:
        ValueError: it is something else; the text says what was given and what is allowed.
    """
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"given {kind_of_node(node)}; allowed: {key.allowed}")
    if is_null(node):
        if key.optional:
            return None
        raise ValueError(f"given null; allowed: {key.allowed}")
    value = _construct(node, key)
    fitting = _as_type(node, value, key)
    if fitting is not None and key.option.accepts(fitting):
        return fitting
    hint = _hint(node, value, key)
    raise ValueError(f"given {_describe(node, value)}; allowed: {key.allowed}{hint}")


def _construct(node: yaml.ScalarNode, key: Key) -> object:
    """The value YAML gives the scalar."""
    try:
        return SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"given {node.tag} {node.value!r}; allowed: {key.allowed}") from error


def _as_type(node: yaml.ScalarNode, value: object, key: Key) -> bool | int | float | str | None:
    """The value in the key's type, None if it is of another; only int to float is converted."""
    if type(value) is int and not _PLAIN_INTEGER.fullmatch(node.value):
        return None
    if key.kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return None
    if not isinstance(value, bool | int | float | str) or type(value) is not key.kind:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if key.choices and value not in key.choices else value


def _describe(node: yaml.ScalarNode, value: object) -> str:
    """What was given, as written, and how YAML reads it."""
    if isinstance(value, str):
        return f"{value!r} (text)"
    names: dict[type, str] = {bool: "a boolean", int: "an integer", float: "a number"}
    return f"{node.value} ({names.get(type(value), 'a date')})"


def _hint(node: yaml.ScalarNode, value: object, key: Key) -> str:
    """How to write what was probably meant; empty if there is no guess."""
    if key.choices:
        found = nearest(node.value.lower(), key.choices)
        return f"; did you mean {found}?" if found else ""
    if key.kind is str:
        return "" if isinstance(value, str) else "; put it in quotes to make it text"
    if isinstance(value, str):
        if key.optional and value.lower() == "none":
            return "; write null"
        return _number_hint(node, value, key) if _NUMBER.fullmatch(value) else ""
    if type(value) is int and not _PLAIN_INTEGER.fullmatch(node.value):
        return f"; YAML reads {node.value} as {value}: write plain decimals"
    if key.kind is int and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    return ""


def _number_hint(node: yaml.ScalarNode, value: str, key: Key) -> str:
    """How to write a number that YAML took for text."""
    if key.kind is bool:
        return ""
    if node.style is not None:
        return "; leave out the quotes"
    number = float(value)
    if key.kind is int:
        return f"; write {int(number)}" if number.is_integer() else ""
    mantissa, _, exponent = value.lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    sign = "" if exponent[0] in "+-" else "+"
    return f"; YAML reads {value} as text: write {mantissa}e{sign}{exponent}"
