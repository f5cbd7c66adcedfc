# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizers: ids, ends of documents, what is refused, and missing packages."""

import base64
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]

from k2_megatron import optional
from k2_megatron.data.tokenizer import build_tokenizer
from k2_megatron.data.tokenizer_tiktoken import (
    KIMI_NUM_RANKS,
    MAX_PIECE_CHARACTERS,
    cut_text,
    kimi_split_pattern,
)
from k2_megatron.errors import DataError, MissingPackageError

TEXT = "Kimi's 12345 Wörter 中文English 🙂\r\n\tend"


def write_huggingface(path: Path, special: list[str]) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT * 20], trainer)
    # Limits left over from another use, which must not cut our documents.
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(path))
    return path


def write_tiktoken(path: Path, tokens: list[bytes]) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_byte_tokenizer_gives_utf8_bytes_and_back() -> None:
    tokenizer = build_tokenizer("byte")
    ids = tokenizer.encode(TEXT)
    assert bytes(ids) == TEXT.encode()
    assert (tokenizer.vocab_size, tokenizer.eod) == (257, 256)
    assert tokenizer.decode([*ids, tokenizer.eod]) == TEXT
    assert tokenizer.fingerprint == build_tokenizer("byte").fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bpe",), r"--tokenizer bpe; allowed: byte, huggingface, tiktoken"),
        (("huggingface",), r"--tokenizer huggingface needs its file: --tokenizer-path FILE"),
        (("byte", "x.json"), r"--tokenizer-path x.json has no effect with --tokenizer byte"),
        (("huggingface", "/none/x.json"), r"--tokenizer-path /none/x.json: No such file"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_tokenizer(*arguments)


@pytest.mark.parametrize(
    ("type", "option", "named"),
    [
        ("byte", {"eod": "0"}, "--eod 0"),
        ("byte", {"num_special_tokens": 1}, "--num-special-tokens 1"),
        ("huggingface", {"num_special_tokens": 1}, "--num-special-tokens 1"),
        ("huggingface", {"split_pattern": "x"}, "--pattern x"),
    ],
)
def test_option_without_effect_is_refused(type: str, option: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=f"^{named} has no effect with --tokenizer {type}$"):
        build_tokenizer(type, None, **option)


@pytest.mark.parametrize("type", ["huggingface", "tiktoken"])
def test_missing_package_names_the_extra(
    type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"huggingface": "tokenizers", "tiktoken": "tiktoken"}[type]
    monkeypatch.setattr(optional, "available", lambda name: name != package)
    text = (
        f"--tokenizer {type} needs the package '{package}', which is not installed; "
        "install it with: pip install 'k2-megatron[tokenizers]'"
    )
    with pytest.raises(MissingPackageError, match=f"^{re.escape(text)}$"):
        build_tokenizer(type, tmp_path / "any")


def test_huggingface_encodes_whole_texts_and_no_special_token(tmp_path: Path) -> None:
    path = write_huggingface(tmp_path / "t.json", ["<|endoftext|>", "<pad>"])
    tokenizer = build_tokenizer("huggingface", path)
    text = TEXT * 3 + "<|endoftext|>"
    ids = tokenizer.encode(text)
    assert tokenizer.eod not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod == 0
    assert max(ids) < tokenizer.vocab_size
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids


def test_huggingface_end_of_document_is_named_or_refused(tmp_path: Path) -> None:
    path = write_huggingface(tmp_path / "t.json", ["<a>", "</s>", "<eos>"])
    with pytest.raises(DataError, match=r"several of them \(</s>, <eos>\); name it with --eod"):
        build_tokenizer("huggingface", path)
    with pytest.raises(DataError, match=r"no token '<b>' to end documents with"):
        build_tokenizer("huggingface", path, eod="<b>")
    chosen = [build_tokenizer("huggingface", path, eod=eod) for eod in ("</s>", "<eos>")]
    assert [tokenizer.eod for tokenizer in chosen] == [1, 2]
    assert chosen[0].fingerprint != chosen[1].fingerprint
    none = write_huggingface(tmp_path / "n.json", ["<a>"])
    with pytest.raises(DataError, match=r"cannot tell .* none of the usual ones"):
        build_tokenizer("huggingface", none)


def test_huggingface_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match=r"t\.json: not a tokenizer\.json"):
        build_tokenizer("huggingface", tmp_path / "t.json")


def test_tiktoken_with_given_options(tmp_path: Path) -> None:
    tokens = [bytes([value]) for value in range(256)] + [b"en", b"end"]
    path = write_tiktoken(tmp_path / "t.tiktoken", tokens)
    tokenizer = build_tokenizer(
        "tiktoken", path, eod="260", num_special_tokens=4, split_pattern=kimi_split_pattern()
    )
    assert (tokenizer.vocab_size, tokenizer.eod) == (262, 260)
    text = TEXT + "<|special_260|>"
    ids = tokenizer.encode(text)
    assert 257 in ids and 260 not in ids
    assert tokenizer.decode(ids) == text
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("YQ== 0\nYg==\n", {}, r"line 2: not 'base64 rank'"),
        ("YQ== 0\nYg== 2\n", {}, r"ranks are not 0\.\.N-1, each once"),
        ("", {}, r"ranks are not 0\.\.N-1, each once"),
        ("YQ== 0\n", {"eod": "1"}, r"1 ranks; .* give also --num-special-tokens, --pattern"),
        (
            "YQ== 0\n",
            {"eod": "9", "num_special_tokens": 1, "split_pattern": "a"},
            r"--eod 9 is no id; allowed: 0\.\.1",
        ),
        (
            "YQ== 0\n",
            {"eod": "1", "num_special_tokens": 1, "split_pattern": "("},
            r"tiktoken refuses it",
        ),
    ],
)
def test_tiktoken_refusals(
    content: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.tiktoken").write_text(content)
    with pytest.raises(DataError, match=message):
        build_tokenizer("tiktoken", tmp_path / "t.tiktoken", **options)


def test_tiktoken_of_kimis_size_needs_no_option(tmp_path: Path) -> None:
    two = [bytes([value >> 8, value & 255]) for value in range(1 << 16)]
    three = [b"\xff" + pair for pair in two] + [b"\xfe" + pair for pair in two]
    tokens = [bytes([value]) for value in range(256)] + two + three
    path = write_tiktoken(tmp_path / "tiktoken.model", tokens[:KIMI_NUM_RANKS])
    tokenizer = build_tokenizer("tiktoken", path)
    assert (tokenizer.vocab_size, tokenizer.eod) == (163_840, 163_585)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("中文English混合", ["中文", "English", "混合"]),
        ("北京市 Pascal", ["北京市", " Pascal"]),
        ("Hello, world!", ["Hello", ",", " world", "!"]),
        ("1234567890", ["123", "456", "789", "0"]),
        ("we'll camelCase don'T", ["we'll", " camel", "Case", " don'T"]),
        ("a  b\n\n c", ["a", " ", " b", "\n\n", " c"]),
    ],
)
def test_kimi_pattern_splits_as_kimis_tokenizer_does(text: str, pieces: list[str]) -> None:
    # Version 1 of the regex package knows set intersections, as tiktoken's engine does.
    assert regex.findall(f"(?V1){kimi_split_pattern()}", text) == pieces


def test_long_texts_are_cut_and_joined_are_the_text(tmp_path: Path) -> None:
    text = "a" * 60_000 + " " * 60_000 + "bc " * MAX_PIECE_CHARACTERS
    pieces = list(cut_text(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= MAX_PIECE_CHARACTERS
    longest = max(len(run) for piece in pieces for run in regex.findall(r"\s+|\S+", piece))
    assert longest <= 25_000
    path = write_tiktoken(tmp_path / "t.tiktoken", [bytes([value]) for value in range(256)])
    tokenizer = build_tokenizer(
        "tiktoken", path, eod="256", num_special_tokens=1, split_pattern=kimi_split_pattern()
    )
    blanks = " " * 1_000_000
    assert tokenizer.decode(tokenizer.encode(blanks)) == blanks
