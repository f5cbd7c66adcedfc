# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`k2-megatron data prepare`: what it prints, what it refuses, and --if-missing."""

import argparse
import io
from pathlib import Path

import pytest

from k2_megatron.data import progress
from k2_megatron.data.cli import add_data_parser, run_data
from k2_megatron.data.progress import Progress, ProgressDisplay
from k2_megatron.errors import DataError


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_data_parser(parser.add_subparsers())
    return run_data(parser.parse_args(["data", "prepare", *map(str, arguments)]))


def test_prints_documents_tokens_bytes_and_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("x" * 1999)
    (tmp_path / "b.txt").touch()
    assert run(tmp_path, "--output", tmp_path / "c", "--workers", 1) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        f"{tmp_path}/c.bin, .idx, .json written\n"
        "documents 1 (1 empty left out)\n"
        "tokens    2,000 (byte)\n"
        "bytes     4,000 (uint16)\n"
    )
    assert captured.err == ""


def test_python_stdlib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--python-stdlib", "--output", tmp_path / "py") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/py.bin, .idx, .json written\ndocuments ")
    assert (tmp_path / "py.bin").stat().st_size > 5_000_000


def test_if_missing_does_nothing_only_where_a_fitting_whole_output_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("x")
    arguments = (tmp_path / "a.txt", "--output", tmp_path / "c", "--workers", 1, "--if-missing")
    assert run(*arguments) == 0
    before = (tmp_path / "c.bin").stat().st_mtime_ns
    (tmp_path / "a.txt").unlink()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "c.bin, .idx, .json exist already\n" in capsys.readouterr().out
    assert (tmp_path / "c.bin").stat().st_mtime_ns == before
    metadata = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(metadata.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(DataError, match=r"made with tokenizer byte \(0.*and byte .* is asked for"):
        run(*arguments)
    (tmp_path / "c.json").unlink()
    with pytest.raises(DataError, match=r"c exists, but not whole \(.*c\.json: no such file"):
        run(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either INPUT files and folders, or --python-stdlib"),
        (["IN", "--python-stdlib"], "give either INPUT files and folders, or --python-stdlib"),
        (["IN", "--suffix", ".txt"], "--suffix has no effect: no INPUT is a folder"),
        (["IN", "--json-key", "t"], "--json-key t has no effect: no INPUT is a JSONL file"),
        (["IN", "--eod", "x"], "--eod x has no effect with --tokenizer byte"),
        (["IN", "--workers", "0"], "workers: 0; allowed: 1 or more"),
        (["IN", "--tokenizer", "tiktoken"], "--tokenizer tiktoken needs its file: --tok"),
    ],
)
def test_refusals(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    given = [str(tmp_path / "a.txt") if argument == "IN" else argument for argument in arguments]
    with pytest.raises(DataError, match=message):
        run(*given, "--output", tmp_path / "c")
    assert not (tmp_path / "c.bin").exists()


def test_overwrite_and_if_missing_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("x", "--output", "c", "--overwrite", "--if-missing")
    assert "not allowed with argument" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    for stream, expected in (
        (Terminal(), "50%|"),
        (io.StringIO(), " 50% read: 1,000 documents, 2,000 tokens\n"),
    ):
        with ProgressDisplay(stream) as display:
            display(Progress(1000, 2000, 5 << 20, 10 << 20))
        assert expected in stream.getvalue()
