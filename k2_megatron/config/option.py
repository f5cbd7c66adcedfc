# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How a configuration key is declared: its default, its meaning and the values it allows.

The loader checks values against these declarations and the reference page is printed from them.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_METADATA_KEY = "k2_megatron.option"

# For texts such as paths: not empty, and no blanks that one does not see.
NO_OUTER_BLANKS = r"\S(.*\S)?"
NO_OUTER_BLANKS_WORDS = "that is not empty, without blanks at its ends"


@dataclass(frozen=True)
class Changes:
    """Other values for some keys of a section, as a phase of the schedule gives them.

    Attributes:
        given: (key, value) pairs.
    """

    given: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of one configuration key beside its type and default.

    Attributes:
        doc: meaning, unit, reason of the default and, where it applies, the section of the Kimi K2
            report (arXiv 2507.20534).
        minimum: smallest allowed number.
        above: allowed numbers are larger than this.
        below: allowed numbers are smaller than this.
        pattern: regular expression that the whole text must match.
        pattern_words: the pattern in words.
        section: for changes, the section whose keys they give.
        changeable: for changes, the keys that they may give; empty for all.
    """

    doc: str
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    pattern: str | None = None
    pattern_words: str = ""
    section: str = ""
    changeable: tuple[str, ...] = ()

    def accepts(self, value: object) -> bool:
        """Whether a value of the right type lies in the allowed range. Null is always in range."""
        if isinstance(value, str):
            return self.pattern is None or re.fullmatch(self.pattern, value) is not None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def range_text(self) -> str:
        """The allowed range in words, beginning with a space; empty if there is none."""
        bounds = [
            f"{sign} {bound}"
            for sign, bound in ((">=", self.minimum), (">", self.above), ("<", self.below))
            if bound is not None
        ]
        text = " and ".join(bounds)
        if self.pattern is not None:
            text = self.pattern_words
        return f" {text}" if text else ""


def required(
    doc: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    pattern: str | None = None,
    pattern_words: str = "",
) -> dict[str, Option]:
    """Describe a key that the user must give: `name: str = field(metadata=required("..."))`."""
    declared = Option(
        doc=" ".join(doc.split()),
        minimum=minimum,
        above=above,
        below=below,
        pattern=pattern,
        pattern_words=pattern_words,
    )
    return {_METADATA_KEY: declared}


def option(
    default: T,
    doc: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    pattern: str | None = None,
    pattern_words: str = "",
) -> T:
    """Declare a key with a default: `seed: int = option(1234, "...", minimum=0)`."""
    metadata = required(
        doc,
        minimum=minimum,
        above=above,
        below=below,
        pattern=pattern,
        pattern_words=pattern_words,
    )
    return field(default=default, metadata=metadata)


def changes(section: str, doc: str, *keys: str) -> dict[str, Option]:
    """Describe changes of a section's keys, or of those that are named alone."""
    declared = Option(doc=" ".join(doc.split()), section=section, changeable=keys)
    return {_METADATA_KEY: declared}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a section as the loader sees it.

    Attributes:
        name: the key in YAML.
        kind: the type of its values: bool, int, float, str, tuple for a list, or Changes.
        choices: the allowed words, if only some are.
        item: the dataclass of the items, for a list of mappings.
        length: how many numbers there are, for a list of numbers.
        optional: whether null is allowed.
        required: whether there is no default.
        default: the default, None if required.
        option: the declaration.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    item: type | None
    length: int | None
    optional: bool
    required: bool
    default: object
    option: Option

    @staticmethod
    def of(declared: Field[Any], hint: object) -> Key:
        """Read a key off its dataclass field and the field's type."""
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        (inner,) = (part for part in parts if part is not NoneType)
        outer, arguments = get_origin(inner), get_args(inner)
        numbers = outer is tuple and set(arguments) == {float}
        required = declared.default is MISSING
        return Key(
            name=declared.name,
            kind=str if outer is Literal else tuple if outer is tuple else inner,
            choices=arguments if outer is Literal else (),
            item=arguments[0] if outer is tuple and not numbers else None,
            length=len(arguments) if numbers else None,
            optional=NoneType in parts,
            required=required,
            default=None if required else declared.default,
            option=declared.metadata[_METADATA_KEY],
        )

    @property
    def number(self) -> Key:
        """One of the numbers of a list of numbers, as a key of its own."""
        return replace(self, kind=float, length=None)

    @property
    def allowed(self) -> str:
        """What may be written, in words, for messages and the reference page."""
        if self.item is not None:
            return f"a list of mappings with {', '.join(keys_of(self.item))}"
        if self.length is not None:
            return f"a list of {self.length} numbers{self.option.range_text()}"
        if self.kind is Changes:
            keys = ", ".join(self.option.changeable) or f"keys of {self.option.section}"
            return f"a mapping with {keys}"
        names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        kind = "one of " + ", ".join(self.choices) if self.choices else names[self.kind]
        return f"{kind}{self.option.range_text()}{', or null' if self.optional else ''}"


@cache
def keys_of(section: type) -> dict[str, Key]:
    """The keys of a section's dataclass by name, in the order of declaration."""
    hints = get_type_hints(section)
    return {declared.name: Key.of(declared, hints[declared.name]) for declared in fields(section)}
