# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, read from the source: who may import what, headers, lengths.

| room | may import, beside the standard library and itself |
| --- | --- |
| kernels | torch, numpy, triton, Transformer Engine |
| recompute, offload | kernels, torch, megatron |
| parallel | kernels, optimizer state's parts of offload, torch, numpy, megatron; `layout` and
  `geometry*` neither torch nor megatron |
| k2_megatron.config | planner, memory, torch-free modules of parallel; yaml |
| k2_megatron.memory | config, model.shape, torch-free modules of parallel |
| k2_megatron.planner | config, memory, model.shape, torch-free modules of parallel and offload |
| the rest of k2_megatron | everything |

Every room may import the two leaves of the spine: `k2_megatron.errors` and `k2_megatron.optional`.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "recompute", "offload", "parallel")
LINE_LIMIT = 400
SPDX = (
    "# SPDX-FileCopyrightText: 2026 The k2_megatron authors\n"
    "# SPDX-License-Identifier: Apache-2.0\n"
)

LEAVES = {"k2_megatron.errors", "k2_megatron.optional"}
MAY_IMPORT = {
    "k2_megatron.kernels": {"torch", "numpy", "triton", "transformer_engine"},
    "k2_megatron.recompute": {"k2_megatron.kernels", "torch", "megatron"},
    "k2_megatron.offload": {"k2_megatron.kernels", "torch", "megatron"},
    "k2_megatron.parallel": {
        "k2_megatron.kernels",
        "k2_megatron.offload.sizes",
        "k2_megatron.offload.state",
        "torch",
        "numpy",
        "megatron",
    },
    "k2_megatron.config": {
        "k2_megatron.planner",
        "k2_megatron.memory",
        "k2_megatron.parallel",
        "yaml",
    },
    "k2_megatron.memory": {"k2_megatron.config", "k2_megatron.parallel", "k2_megatron.model.shape"},
    "k2_megatron.planner": {
        "k2_megatron.config",
        "k2_megatron.memory",
        "k2_megatron.parallel",
        "k2_megatron.offload.sizes",
        "k2_megatron.offload.slots",
        "k2_megatron.model.shape",
    },
}

# Found through any chain of our own imports: `plan` and `validate` run where torch is absent.
TORCH_FREE = (
    "k2_megatron.config",
    "k2_megatron.memory",
    "k2_megatron.planner",
    "k2_megatron.offload.sizes",
    "k2_megatron.offload.slots",
    "k2_megatron.parallel.layout",
    "k2_megatron.parallel.geometry",
)

# What a CPU installation lacks, or may lack, and the only places that may name it in an import.
OPTIONAL = {
    "transformer_engine": ("k2_megatron.kernels", "k2_megatron.platform"),
    "apex": (),
    "triton": ("k2_megatron.kernels",),
    "pynvml": ("k2_megatron.platform", "k2_megatron.train.device_monitor"),
    "tokenizers": (),
    "tiktoken": (),
    "megatron.core.extensions": ("k2_megatron.model", "k2_megatron.platform"),
}


def _within(module: str, roots: object) -> bool:
    """Whether `module` is one of `roots` or inside one."""
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ROOMS:
        parts = ("k2_megatron", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules() -> dict[str, Path]:
    """Import name -> file of every module of the package."""
    folders = [ROOT / name for name in ("k2_megatron", *ROOMS)]
    return {_module_name(path): path for top in folders for path in sorted(top.rglob("*.py"))}


MODULES = _modules()


def _imports(module: str, source: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything a module imports, also inside functions.

    `from a import b` yields both `a` and `a.b`: b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join(parts + ([base] if base else []))
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _imports_of(module: str) -> list[tuple[int, str]]:
    path = MODULES[module]
    return list(_imports(module, path.read_text(), path.name == "__init__.py"))


def _back_edges(module: str, imported: list[tuple[int, str]]) -> list[str]:
    """List what a module of a room imports and its room may not."""
    room = next((room for room in MAY_IMPORT if _within(module, [room])), None)
    if room is None:
        return []
    allowed = MAY_IMPORT[room] | LEAVES | {room}
    return [
        f"{module}:{line} imports {name}; {room} may import {', '.join(sorted(allowed))}"
        for line, name in imported
        if not _within(name, allowed)
        and name.split(".")[0] not in sys.stdlib_module_names
        and name != "k2_megatron"  # empty, and named on the way to `from k2_megatron import errors`
    ]


def _optional_misuse(module: str, imported: list[tuple[int, str]]) -> list[str]:
    return [
        f"{module}:{line} imports {name}; only {', '.join(places) or 'nobody'} may"
        for line, name in imported
        for package, places in OPTIONAL.items()
        if _within(name, [package]) and not _within(module, places)
    ]


def _chain_to_torch(module: str, seen: set[str]) -> list[str]:
    """Return the chain of our modules from `module` to one that imports torch or megatron."""
    seen.add(module)
    for _, name in _imports_of(module):
        if _within(name, ("torch", "megatron")):
            return [module, name]
        if name in MODULES and name not in seen:
            chain = _chain_to_torch(name, seen)
            if chain:
                return [module, *chain]
    return []


def _own_files(*suffixes: str) -> list[Path]:
    """Every file of ours with one of these suffixes; not what was installed, built or trained."""
    found = [ROOT / "setup.py", ROOT / "pyproject.toml"]
    for top in ("k2_megatron", *ROOMS, "examples", "tests", "benchmarks"):
        found += sorted((ROOT / top).rglob("*"))
    return [path for path in found if path.is_file() and path.suffix in suffixes]


def test_every_room_imports_only_what_it_may():
    found = [line for module in MODULES for line in _back_edges(module, _imports_of(module))]
    assert not found, "\n".join(found)


def test_optional_packages_are_imported_only_where_allowed():
    found = [line for module in MODULES for line in _optional_misuse(module, _imports_of(module))]
    assert not found, "\n".join(found)


def test_torch_free_modules_reach_no_torch_by_any_chain():
    free = [m for m in MODULES if _within(m, TORCH_FREE) or m.startswith(TORCH_FREE[-1])]
    assert free
    chains = [" -> ".join(chain) for m in free if (chain := _chain_to_torch(m, set()))]
    assert not chains, "\n".join(chains)


def test_importing_the_torch_free_modules_loads_no_torch():
    free = [m for m in MODULES if _within(m, TORCH_FREE) or m.startswith(TORCH_FREE[-1])]
    code = (
        f"import sys, {', '.join(free)}; print(sorted({{'torch', 'megatron'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("k2_megatron.kernels.a", "import torch, triton.language, os.path", 0),
        ("k2_megatron.kernels.a", "import megatron.core", 1),
        ("k2_megatron.kernels.a", "from k2_megatron.parallel.layout import Stage", 2),
        ("k2_megatron.recompute.a", "from k2_megatron.kernels.fp8 import quantise", 0),
        ("k2_megatron.recompute.a", "def f():\n    from ..offload import travel", 2),
        ("k2_megatron.parallel.a", "from .layout import Stage\nfrom megatron import core", 0),
        ("k2_megatron.parallel.a", "from k2_megatron.errors import UserError", 0),
        ("k2_megatron.parallel.a", "from k2_megatron import train", 1),
        ("k2_megatron.parallel.a", "import torchvision", 1),
        ("k2_megatron.config.a", "import yaml\nimport torch", 1),
        ("k2_megatron.train.a", "import torch\nfrom k2_megatron.parallel import layout", 0),
    ],
)
def test_a_back_edge_is_seen(module, source, wrong):
    """The walk itself, on made-up modules."""
    assert len(_back_edges(module, list(_imports(module, source, False)))) == wrong


def test_an_optional_import_is_seen():
    imported = list(_imports("m", "try:\n    import apex.x\nexcept ImportError:\n    pass", False))
    assert len(_optional_misuse("k2_megatron.platform.cuda", imported)) == 1
    imported = list(_imports("m", "from megatron.core import extensions", False))
    assert len(_optional_misuse("k2_megatron.train.step", imported)) == 1
    assert not _optional_misuse("k2_megatron.model.spec", imported)


def test_every_python_file_begins_with_the_licence():
    files = _own_files(".py")
    assert len(files) > 40
    wrong = [str(path.relative_to(ROOT)) for path in files if not path.read_text().startswith(SPDX)]
    assert not wrong, wrong


def test_packages_export_nothing():
    """One name has one place: everything is imported from its module."""
    inits = [path for path in MODULES.values() if path.name == "__init__.py"]
    wrong = [str(path.relative_to(ROOT)) for path in inits if path.read_text() != SPDX]
    assert not wrong, wrong


def test_no_file_is_too_long():
    files = [ROOT / "Makefile", ROOT / ".ci" / "run"]
    files += _own_files(".py", ".sh", ".sbatch", ".yaml", ".yml", ".toml")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    wrong = {path: length for path, length in lengths.items() if length > LINE_LIMIT}
    assert not wrong, wrong


def test_every_room_is_listed_in_setup():
    """A room that setup.py does not map is missing from an installed package."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    mapped = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS"
    )
    assert mapped == ROOMS


def test_ci_script_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
