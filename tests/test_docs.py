# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the documents name is there: links, files, tests, and the lines of the pinned engine.

- A relative link leads to a file, and its anchor to a heading.
- A code span that begins with a folder of the repository is a path in it (`*` is a wildcard), and
  one that ends in `.md`, `.toml` or `.yaml` and has no slash lies at the top level.
- `path/test_x.py::test_name` names a function of that file.
- `path/of/ours.py` (`name`, `other`) names what stands in that file.
- `path/of/engine.py:123` (`text`) is a line of megatron-core 0.16.1 with that text in it.
"""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("k2_megatron", "parallel", "tests", "docs", "examples", "benchmarks", ".ci")
# What a documented command or a run makes.
MADE = ("runs/", "datasets/", "build/")

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
ENGINE_LINE = re.compile(r"`([\w/]+\.py):(\d+)(?:-(\d+))?`(?:\s+\(`([^`\n]+)`\))?")
NAMES = re.compile(r"`([\w./]+\.(?:py|yaml))`\s+\(((?:`\w+`(?:,\s+)?)+)\)")


def _documents() -> list[Path]:
    found = sorted(ROOT.glob("*.md"))
    for folder in ("docs", "tests", "examples", "benchmarks"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return found


DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in _documents()}
each_document = pytest.mark.parametrize("name", DOCUMENTS)


def _prose(text: str) -> str:
    """The text without its fenced and indented blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _is_path(span: str) -> bool:
    if not re.fullmatch(r"\.?\w[\w.*/-]*", span) or span.startswith(MADE):
        return False
    first, slash, _ = span.partition("/")
    return (bool(slash) and first in FOLDERS) or (
        bool(re.fullmatch(r"\w+\.(md|toml|yaml)", span)) and span != "resolved_config.yaml"
    )


@each_document
def test_links_lead_somewhere(name: str) -> None:
    wrong = []
    for target in LINK.findall(_prose(DOCUMENTS[name])):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        if not file.exists():
            wrong.append(target)
        elif anchor and anchor not in _anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    assert not wrong, f"{name}: {wrong}"


@each_document
def test_named_paths_exist(name: str) -> None:
    spans = {span for span in SPAN.findall(_prose(DOCUMENTS[name])) if _is_path(span)}
    wrong = sorted(span for span in spans if not any(ROOT.glob(span.rstrip("/"))))
    assert not wrong, f"{name} names {wrong}"


@each_document
def test_named_tests_exist(name: str) -> None:
    wrong = []
    for span in SPAN.findall(DOCUMENTS[name]):
        path, colons, function = span.partition("::")
        if not colons or not path.endswith(".py"):
            continue
        file = ROOT / path
        if not file.exists() or f"def {function}(" not in file.read_text(encoding="utf-8"):
            wrong.append(span)
    assert not wrong, f"{name} names {wrong}"


@each_document
def test_named_functions_stand_in_their_files(name: str) -> None:
    wrong = []
    for path, names in NAMES.findall(DOCUMENTS[name]):
        file = ROOT / path
        source = file.read_text(encoding="utf-8") if file.exists() else ""
        words = SPAN.findall(names)
        wrong += [f"{path}: {word}" for word in words if not re.search(rf"\b{word}\b", source)]
    assert not wrong, f"{name} names {wrong}"


def test_named_lines_of_the_engine_say_what_is_quoted() -> None:
    engine = Path(str(distribution("megatron-core").locate_file("megatron/core")))
    found = ENGINE_LINE.findall(DOCUMENTS["docs/engine.md"] + DOCUMENTS["docs/pipeline.md"])
    assert len(found) > 40
    wrong = []
    for path, first, last, quoted in found:
        file = engine / path
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        there = "\n".join(lines[int(first) - 1 : int(last or first)])
        if not quoted or quoted not in there:
            wrong.append(
                f"{path}:{first}: {quoted or 'nothing is quoted'} | found: {there.strip()}"
            )
    assert not wrong, "\n".join(wrong)


def test_the_walk_itself() -> None:
    assert _is_path("k2_megatron/cli.py") and _is_path("parallel/geometry*.py")
    assert _is_path("README.md") and not _is_path("metrics.jsonl")
    assert not _is_path("transformer/moe/router.py:209") and not _is_path("runs/k2-tiny/")
    assert _anchors("# A b\n## C `d`, e!\n") == {"a-b", "c-d-e"}
    assert LINK.findall(_prose("[a](b.md)\n```\n[c](d)\n```\n![e](f.png)")) == ["b.md", "f.png"]
