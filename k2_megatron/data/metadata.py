# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""PREFIX.json: what a prepared corpus is made of. Written last, so it marks a whole corpus."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from k2_megatron.errors import DataError

FORMAT_VERSION = 1
_TYPES: dict[Any, str] = {int: "an integer", str: "text", tuple: "a list"}
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """The tokenizer a corpus was made with."""

    type: str
    name: str
    fingerprint: str
    vocab_size: int
    eod: int


@dataclass(frozen=True, kw_only=True)
class CorpusMetadata:
    """The content of PREFIX.json."""

    format_version: int
    tokenizer: TokenizerInfo
    dtype: str
    """Token dtype in the .bin file, "uint16" or "int32"."""
    num_documents: int
    num_empty_documents: int
    """Documents without any text: not in the corpus."""
    num_undecodable_documents: int
    """Files left out because they are not UTF-8: only the standard library corpus allows it."""
    num_tokens: int
    """With one end-of-document token a document."""
    bin_bytes: int
    bin_sha256: str
    idx_sha256: str
    sources: tuple[str, ...]
    """The inputs as they were given."""
    num_source_files: int


def output_path(prefix: str | Path, suffix: str) -> Path:
    """Return PREFIX with a suffix added (not replaced: a prefix may hold dots)."""
    return Path(f"{prefix}{suffix}")


def metadata_text(metadata: CorpusMetadata) -> str:
    """Return the JSON text of the metadata."""
    return json.dumps(dataclasses.asdict(metadata), indent=2, ensure_ascii=False) + "\n"


def missing_file(path: str | Path) -> DataError:
    """Return the error for a corpus of which a file is not there."""
    return DataError(
        f"{path}: no such file; `k2-megatron data prepare` writes PREFIX.bin, .idx and .json at"
        " its end, so the corpus was not made by it, not to the end, or not moved whole"
    )


def read_metadata(prefix: str | Path) -> CorpusMetadata:
    """Read PREFIX.json.

    Raises:
        DataError: Missing, not JSON, another format version, or keys and types that do not fit.
    """
    path = output_path(prefix, ".json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); prepare the corpus again") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format_version {version!r}; allowed: {FORMAT_VERSION}")
    tokenizer = _build(path, TokenizerInfo, values.get("tokenizer"))
    sources = values.get("sources")
    return _build(
        path,
        CorpusMetadata,
        values
        | {"tokenizer": tokenizer}
        | ({"sources": tuple(sources)} if isinstance(sources, list) else {}),
    )


def _build(path: Path, kind: type[_T], values: Any) -> _T:
    """Build a dataclass from JSON values; every field must be there with its type, and no other."""
    fields = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise DataError(f"{path}: {values!r} where the keys {', '.join(fields)} belong")
    for name in sorted(fields.keys() ^ values.keys()):
        raise DataError(f"{path}: key {name!r} is {'missing' if name in fields else 'unknown'}")
    for name, wanted in fields.items():
        base = typing.get_origin(wanted) or wanted
        if type(values[name]) is not base:
            raise DataError(f"{path}: {name} is {values[name]!r}; allowed: {_TYPES[base]}")
    return kind(**values)
