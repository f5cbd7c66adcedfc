# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of one run's checkpoints: names, what is whole, naming a finished one, pruning.

A checkpoint is written in `step_00000100.partial` and gets its name `step_00000100` by one rename
when everything in it is on the disk. What bears the bare name is therefore complete; what ends in
`.partial` never counts. Nothing here imports torch.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from k2_megatron.checkpoint.durable import sync_to_disk, write_text_durably
from k2_megatron.checkpoint.manifest import Manifest, read_manifest, verify_size, write_manifest
from k2_megatron.errors import CheckpointError

LATEST_NAME = "latest"
PARTIAL_SUFFIX = ".partial"
_STEP_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a save left behind."""

    path: Path
    """Folder of the checkpoint just saved."""
    size_bytes: int
    """Bytes of all files but the manifest."""
    removed: tuple[Path, ...]
    """Older checkpoints and torn `.partial` folders that were removed."""
    warnings: tuple[str, ...]
    """What could not be removed, and why; the new checkpoint is whole all the same."""


def step_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`."""
    return folder / f"step_{step:08d}"


def partial_path(folder: Path, step: int) -> Path:
    """Return the folder in which the checkpoint of `step` is written before it gets its name."""
    path = step_path(folder, step)
    return path.with_name(path.name + PARTIAL_SUFFIX)


def list_steps(folder: Path) -> dict[int, Path]:
    """Return step -> path of every named checkpoint, whole or damaged, oldest first."""
    if not folder.is_dir():
        return {}
    matches = ((_STEP_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def list_partials(folder: Path) -> list[Path]:
    """Return the folders of saves that did not finish."""
    return sorted(folder.glob(f"step_*{PARTIAL_SUFFIX}")) if folder.is_dir() else []


def find(folder: Path) -> list[Path]:
    """Return the whole checkpoints, oldest first: manifest sound, every file there in full size.

    Bytes are not read; `k2_megatron.checkpoint.inspection.inspect` verifies the checksums too.
    """
    return [path for path in list_steps(folder).values() if _is_whole(path)]


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, or None where there is none.

    The text file `latest` is for people and scripts: it may lag by one checkpoint after a crash,
    so it is not what this reads.
    """
    return next(reversed(find(folder)), None)


def start_partial(folder: Path, step: int) -> None:
    """Make an empty `.partial` folder for `step`; what an earlier attempt left in it is removed."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_to_disk(folder.parent)  # a crash must not lose the folder with what lies in it
    partial = partial_path(folder, step)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Which checkpoints stay when a newer one is there; imported weights always do."""

    last: int | None = None
    """So many of the newest; None for all."""
    every_steps: int | None = None
    """Beside them those whose step is a multiple of it."""

    def __post_init__(self) -> None:
        for name, value in (("keep_last", self.last), ("keep_every_steps", self.every_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; 1 or more, or None")

    def keeps(self, step: int) -> bool:
        """Whether a checkpoint stays however old it is."""
        return step == 0 or (self.every_steps is not None and step % self.every_steps == 0)


def publish(folder: Path, manifest: Manifest, keeping: Keeping) -> Saved:
    """Give the finished `.partial` folder its name, point `latest` at it, and prune.

    Called by rank 0 alone, after every rank has synced its files.

    Raises:
        DamagedCheckpointError: a file in the manifest is not there in full.
        OSError: the disk refused a step; earlier checkpoints are untouched.
    """
    partial = partial_path(folder, manifest.step)
    final = step_path(folder, manifest.step)
    for name, entry in manifest.files.items():
        verify_size(partial, name, entry)
    write_manifest(partial, manifest)
    sync_to_disk(partial)
    if final.exists():
        # A run that went back to an older checkpoint reaches this step again; pruning removes it.
        _point_latest(
            folder, next((path for path in reversed(find(folder)) if path != final), None)
        )
        _move_aside(final)
    partial.rename(final)
    sync_to_disk(folder)
    _point_latest(folder, final)
    removed, warnings = _prune(folder, manifest.step, keeping)
    return Saved(path=final, size_bytes=manifest.size_bytes, removed=removed, warnings=warnings)


def _point_latest(folder: Path, checkpoint: Path | None) -> None:
    """Let the file `latest` name `checkpoint`; None removes it."""
    if checkpoint is None:
        (folder / LATEST_NAME).unlink(missing_ok=True)
    else:
        write_text_durably(folder / LATEST_NAME, checkpoint.name + "\n")


def _prune(folder: Path, newest: int, keeping: Keeping) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Remove torn saves and the checkpoints up to and including step `newest` that need not stay.

    A checkpoint of a later step stays: it belongs to a course of the run that was abandoned because
    it is damaged, and may be wanted for a look. A damaged one is not among the `keeping.last`.
    """
    doomed = list_partials(folder)
    if keeping.last is not None:
        doomed += [
            step_path(folder, step)
            for step in _older_than_kept(folder, newest, keeping.last)
            if not keeping.keeps(step)
        ]
    return _remove_all(doomed)


def _older_than_kept(folder: Path, newest: int, number: int) -> list[int]:
    """Steps before the last `number` whole checkpoints up to and including step `newest`."""
    steps = [step for step in list_steps(folder) if step <= newest]
    while steps and number:  # from the newest on, so that no more manifests are read than needed
        number -= _is_whole(step_path(folder, steps.pop()))
    return steps


def remove_from(folder: Path, step: int) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Remove every checkpoint of `step` and later ones; `latest` names the one before.

    Rank 0 alone, while no save goes on.

    Returns:
        What was removed, and what could not be and why.
    """
    doomed = [path for number, path in list_steps(folder).items() if number >= step]
    before = [path for path in find(folder) if path not in doomed]
    _point_latest(folder, before[-1] if before else None)
    return _remove_all(doomed[::-1])


def _remove_all(doomed: list[Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Remove folders; a disk that resists is told and harms nothing."""
    removed, warnings = [], []
    for path in doomed:
        try:
            _remove(path)
            removed.append(path)
        except OSError as error:
            warnings.append(f"{path}: could not be removed: {error}")
    return tuple(removed), tuple(warnings)


def _remove(path: Path) -> None:
    """Remove a checkpoint; a crash midway leaves a `.partial`, never a named folder with holes."""
    shutil.rmtree(path if path.suffix == PARTIAL_SUFFIX else _move_aside(path))


def _move_aside(path: Path) -> Path:
    aside = path.with_name(path.name + ".removed" + PARTIAL_SUFFIX)
    if aside.exists():
        shutil.rmtree(aside)
    return path.rename(aside)


def _is_whole(path: Path) -> bool:
    try:
        manifest = read_manifest(path)
        for name, entry in manifest.files.items():
            verify_size(path, name, entry)
    except CheckpointError:
        return False
    return True
