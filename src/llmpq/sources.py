"""A digest of the source files that a stage can reach through its imports.

Snakemake re-runs a rule when its script changes, but does not look into an installed package. Each rule therefore carries
``code_digest`` of its stage's modules as a parameter: editing a module re-runs the stages that import it, directly or not, and no others.
"""

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent


def code_digest(*modules: str, package: Path = PACKAGE) -> str:
    """Digest of ``modules`` (``llmpq.quant.gptq``; ``llmpq.model.families.*`` is a whole package) and of all they import inside llmpq."""
    digest = hashlib.sha256()
    for name in sorted(closure(*modules, package=package)):
        file: Path = _file(name, package)  # type: ignore[assignment]
        beside = file.with_suffix(".c")  # what a module compiles is called like it
        digest.update(f"{name}\0".encode() + file.read_bytes() + (beside.read_bytes() if beside.is_file() else b"") + b"\0")
    return digest.hexdigest()[:16]


def closure(*modules: str, package: Path = PACKAGE) -> set[str]:
    """Names of ``modules`` and of every llmpq module they import, also inside functions; ValueError for an unknown one."""
    found: set[str] = set()
    waiting = [name for module in modules for name in _expand(module, package)]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        file = _file(name, package)
        if file is None:
            raise ValueError(f"{name} is not a module of {package}")
        found.add(name)
        waiting += [module for imported in _imports(name, file, package, file.stat().st_mtime_ns) for module in _expand(imported, package)]
    return found


def all_modules(package: Path = PACKAGE) -> set[str]:
    """Every module of the package by its dotted name."""
    files = (path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py"))
    return {".".join(file.parts).removesuffix(".__init__") for file in files}


def _expand(module: str, package: Path) -> list[str]:
    if not module.endswith(".*"):
        return [module]
    parent = module[:-2]
    return sorted(name for name in all_modules(package) if name == parent or name.startswith(parent + "."))


def _file(name: str, package: Path) -> Path | None:
    base = package.parent.joinpath(*name.split("."))
    for file in (base / "__init__.py", base.with_suffix(".py")):
        if file.is_file() and name.split(".")[0] == package.name:
            return file
    return None


@functools.cache
def _imports(name: str, file: Path, package: Path, _mtime: int) -> tuple[str, ...]:
    """llmpq modules that one file imports; importing a.b.c runs a and a.b too, so those count as well.

    A package whose own code looks into its folder (``__path__``) imports what it finds there by name: all its modules count.
    """
    names: set[str] = set()
    folder: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Name) and node.id == "__path__":
            folder = [f"{name}.*"]
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join(here[: len(here) - node.level + 1] + ([node.module] if node.module else []))
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    parents = {".".join(parts[:end]) for parts in (n.split(".") for n in [*names, name]) for end in range(1, len(parts) + 1)}
    known = (n for n in parents - {name} if n.split(".")[0] == package.name and _file(n, package) is not None)
    return (*sorted(known), *folder)
