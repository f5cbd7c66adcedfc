# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's manifest says: step, identity, layout, metadata, and the sum of every file.

The manifest carries a checksum of itself, so that a flipped bit in it reads as damage and never as
another model or step. Nothing here imports torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from k2_megatron.checkpoint.durable import write_text_durably
from k2_megatron.errors import CheckpointError

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is missing, truncated or altered; an older checkpoint may serve."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the bytes of one file must be."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything there is to know about a checkpoint without opening its tensors."""

    step: int
    world_size: int
    layout: dict[str, Any]
    """The caller's description of who held what; a load into another layout is all right."""
    identity: dict[str, Any]
    """What the run is: a load into a run of another identity is refused."""
    metadata: dict[str, Any]
    """The caller's plain data, e.g. consumed samples, data fingerprint, digest of the config."""
    files: dict[str, FileEntry]
    """File name -> what its bytes must be."""
    weights_only: bool = False
    """Imported weights without a run: training starts from them at step 0."""
    format_version: int = FORMAT_VERSION

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size_bytes for entry in self.files.values())


def rank_file_name(rank: int) -> str:
    """Name the file of what belongs to one rank alone, e.g. `rank_00003.pt`."""
    return f"rank_{rank:05d}.pt"


def data_file_name(rank: int) -> str:
    """Name the file of the parts of matrices that one rank wrote, e.g. `rank_00003.bin`."""
    return f"rank_{rank:05d}.bin"


def plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mapping` as it looks after a round trip through JSON (tuples become lists).

    Raises:
        TypeError, ValueError: a value has no JSON form.
    """
    result: dict[str, Any] = json.loads(json.dumps(mapping, allow_nan=False))
    return result


def write_manifest(checkpoint: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into the folder `checkpoint` and sync it to the disk."""
    content = asdict(manifest)
    content["checksum"] = _checksum(content)
    write_text_durably(checkpoint / MANIFEST_NAME, json.dumps(content, indent=2) + "\n")


def read_manifest(checkpoint: Path) -> Manifest:
    """Read and verify the manifest of the folder `checkpoint`.

    Raises:
        DamagedCheckpointError: the manifest is missing or its bytes are not those written.
        CheckpointError: there is no such folder, or another version of the format wrote it.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no checkpoint here (a folder step_NNNNNNNN expected)")
    path = checkpoint / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{path}: missing; every whole checkpoint has a manifest"
        ) from None
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: not readable as JSON ({error})") from None
    found = content.pop("checksum", None) if isinstance(content, dict) else None
    expected = _checksum(content)
    if found != expected:
        raise DamagedCheckpointError(
            f"{path}: its content has sha256 {expected}, its own checksum says {found}"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {content.get('format_version')}, this program reads and "
            f"writes version {FORMAT_VERSION}"
        )
    content["files"] = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    return Manifest(**content)


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file; reads all of it."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(size_bytes=path.stat().st_size, sha256=sha256)


def verify_size(checkpoint: Path, name: str, entry: FileEntry) -> None:
    """Check that a file is there with the size the manifest gives.

    Raises:
        DamagedCheckpointError: it is not.
    """
    path = checkpoint / name
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{path}: missing; the manifest lists it with {entry.size_bytes} bytes"
        ) from None
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {error}") from error
    if size_bytes != entry.size_bytes:
        raise DamagedCheckpointError(
            f"{path}: {size_bytes} bytes found, the manifest says {entry.size_bytes}"
        )


def verify_file(checkpoint: Path, name: str, entry: FileEntry) -> None:
    """Check size and sha256 of a file; reads all of it.

    Raises:
        DamagedCheckpointError: the file is missing, has another size or other bytes.
    """
    verify_size(checkpoint, name, entry)
    path = checkpoint / name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {error}") from error
    if found != entry.sha256:
        raise DamagedCheckpointError(
            f"{path}: sha256 {found} found, the manifest says {entry.sha256}"
        )


def verify_identity(checkpoint: Path, manifest: Manifest, identity: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to a run of this identity.

    Raises:
        CheckpointError: it does not; the text lists each difference.
    """
    path = checkpoint / MANIFEST_NAME
    saved, ours = manifest.identity, plain(identity)
    if manifest.weights_only:  # how they will be trained is not theirs to say
        ours = {key: value for key, value in ours.items() if key in saved}
    absent = "nothing"
    differences = [
        f"  {key}: {saved.get(key, absent)} in the checkpoint, {ours.get(key, absent)} in this run"
        for key in sorted(saved.keys() | ours.keys())
        if saved.get(key, absent) != ours.get(key, absent)
    ]
    if differences:
        raise CheckpointError(
            "\n".join([f"{path}: saved by another kind of run:", *differences])
            + "\nrestore these values to go on, or use another run.name to start anew"
        )


def _checksum(content: Any) -> str:
    """Hash the manifest without its own checksum, independent of white space and key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
