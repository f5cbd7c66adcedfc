# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The reference page of all configuration keys, made from their declarations.

python -m k2_megatron.config.reference             print the page
python -m k2_megatron.config.reference FILE        write it to FILE (docs/configuration.md)
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from k2_megatron.config.config import sections
from k2_megatron.config.option import Changes, Key, keys_of
from k2_megatron.config.presets import MODEL_PRESETS

_INTRODUCTION = """\
# Configuration

<!-- Made by `python -m k2_megatron.config.reference docs/configuration.md`; do not edit. -->

A run is described by one YAML file of sections and keys. A key that is not given has its default.
Unknown, repeated, mistyped, out-of-range and ineffective keys are errors, told all at once with
their lines. `--set section.key=value` on the command line replaces a value of the file; the value
is YAML, for example `--set schedule.lr=1.0e-3` (YAML reads `1e-3` as text).

"Report" is the Kimi K2 technical report, arXiv 2507.20534.
"""


def reference_page() -> str:
    """The page as Markdown."""
    parts = [_INTRODUCTION]
    for section, kind in sections().items():
        parts.append(f"\n## {section}\n\n{_summary(kind)}\n\n{_table(kind)}")
        for name, key in keys_of(kind).items():
            if key.item is not None:
                heading = f"\n### Items of {section}.{name}\n\n"
                parts.append(f"{heading}{_summary(key.item)}\n\n{_table(key.item)}")
        if section == "model":
            parts.append(f"\n### Presets\n\n{_presets()}")
    return "".join(parts)


def _summary(kind: type) -> str:
    """The docstring of a section, each paragraph on one line."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _table(kind: type) -> str:
    """The keys of one section."""
    rows = ["| key | type | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, key in keys_of(kind).items():
        default = "required" if key.required else f"`{_yaml(key.default)}`"
        allowed, doc = _plain(key.allowed), _plain(key.option.doc)
        rows.append(f"| `{name}` | {_type(key)} | {default} | {allowed} | {doc} |")
    return "\n".join(rows) + "\n"


def _plain(text: str) -> str:
    """Text for a table cell, without characters that Markdown would take for its own."""
    return text.replace("|", "\\|").replace("*", "\\*")


def _presets() -> str:
    """What each preset sets; `default` where it keeps Kimi K2's value."""
    names = list(dict.fromkeys(name for preset in MODEL_PRESETS.values() for name in preset))
    rows = [
        "| key | " + " | ".join(MODEL_PRESETS) + " |",
        "| --- " * (len(MODEL_PRESETS) + 1) + "|",
    ]
    keys = keys_of(sections()["model"])
    for name in names:
        values = [preset.get(name, keys[name].default) for preset in MODEL_PRESETS.values()]
        rows.append(f"| `{name}` | " + " | ".join(f"`{_yaml(value)}`" for value in values) + " |")
    text = "Every key that is not in this table has Kimi K2's value, the default, in every preset."
    return text + "\n\n" + "\n".join(rows) + "\n"


def _type(key: Key) -> str:
    """The type in one word."""
    if key.kind in (tuple, Changes):
        return "list" if key.kind is tuple else "mapping"
    if key.choices:
        return "word"
    return {bool: "boolean", int: "integer", float: "number", str: "text"}[key.kind]


def _yaml(value: object) -> str:
    """A value as one writes it in YAML, in a form that YAML 1.1 reads as a number."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, Changes):
        return "{}"
    text = str(value)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")
    return text


def main(arguments: list[str]) -> None:
    """Print the page, or write it to the file that is named."""
    if arguments:
        Path(arguments[0]).write_text(reference_page(), encoding="utf-8")
    else:
        sys.stdout.write(reference_page())


if __name__ == "__main__":
    main(sys.argv[1:])
