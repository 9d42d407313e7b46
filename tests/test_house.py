"""The dependencies between packages, from the imports of all modules."""

from __future__ import annotations

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gpumlp"

# Modules of gpumlp itself from which every package may import, and which import nothing of gpumlp.
SHARED = {"extras", "files", "strict_json", "terminal", "words"}

# The packages from which each package may import.
BELOW = {
    "backends": set(),
    "nn": {"backends"},
    "data": {"backends"},
    "training": {"backends", "nn", "data"},
    "diagnostics": {"backends", "nn", "data", "training"},
    "interop": {"backends", "nn"},
    "pictures": {"backends", "nn", "data"},
    "sklearn": {"backends", "nn", "data", "training"},
    "figures": {"backends", "nn", "data", "training", "diagnostics", "records"},
    "records": {"data", "training"},
    "report": {"backends", "nn", "data", "training", "diagnostics", "figures", "interop"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@functools.cache
def imports(name: str) -> set[str]:
    """Full names of a module's imports, at run time and for type checking."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(statements: list[ast.stmt]) -> None:
        for node in statements:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                found.update(
                    f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module
                    for alias in node.names
                )
            elif isinstance(node, ast.If | ast.Try):
                visit([*node.body, *node.orelse])

    visit(tree(name).body)
    return found


def folder_of(name: str) -> str | None:
    """The package of a module, if it is in one of `BELOW`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else None


def test_a_folder_imports_only_from_those_below_it() -> None:
    offenders = []
    for name in MODULES.keys() - {"gpumlp.data.preparation"}:  # kept for its public name
        if folder := folder_of(name):
            allowed = {folder, *BELOW[folder], *SHARED, *(("command",) if name.endswith(".__main__") else ())}
            parts = ((module, module.split(".")) for module in imports(name))
            wrong = [module for module, part in parts if part[0] == "gpumlp" and {*part[1:2]} - allowed]
            offenders += [f"{name} imports {module}" for module in wrong]
    assert offenders == []


@pytest.mark.parametrize("name", sorted(SHARED))
def test_what_all_folders_share_imports_nothing_of_gpumlp(name: str) -> None:
    assert not [module for module in imports(f"gpumlp.{name}") if module.startswith("gpumlp")]


def test_every_folder_has_its_place() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(BELOW)


def test_no_imports_go_in_circles() -> None:
    graph = {name: imports(name) & set(MODULES) - {name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_cuda_backend_knows_a_gpu_library() -> None:
    found = {}
    for name in MODULES:
        used = set()
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                used.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Name) and ".cuda." not in name:  # there, a parameter may be called so
                used.add(node.id)
        found[name] = {"cupy", "cupyx", "nccl", "nvmath", "torch"} & used
    assert {name: used for name, used in found.items() if used} == {
        "gpumlp.backends.cuda.backend": {"cupy", "nvmath"},
        "gpumlp.backends.cuda.nccl": {"nccl"},
    }


# Methods that import from above when they are called, so that users find them where they are expected.
UPWARDS = {
    "gpumlp.nn.samples": {"gpumlp.data.dataset"},  # MLP.evaluate(X, y)
    "gpumlp.nn.network": {"gpumlp.interop.sklearn", "gpumlp.interop.torch"},  # MLP.from_sklearn, from_torch
    "gpumlp.training.trainer": {"gpumlp.diagnostics"},  # Trainer(diagnostics=True)
    "gpumlp.training.history": {"gpumlp.diagnostics"},  # History.findings and trend
}


def test_imports_from_above_within_functions_are_those_that_are_listed() -> None:
    found: dict[str, set[str]] = {}
    for name in MODULES:
        if folder := folder_of(name):
            above = set(BELOW) - BELOW[folder] - {folder}
            functions = (each for each in ast.walk(tree(name)) if isinstance(each, ast.FunctionDef))
            for node in (node for function in functions for node in ast.walk(function)):
                module = node.module if isinstance(node, ast.ImportFrom) and node.level == 2 else None
                if module and module.split(".")[0] in above:
                    found.setdefault(name, set()).add(f"gpumlp.{module}")
    assert found == UPWARDS
