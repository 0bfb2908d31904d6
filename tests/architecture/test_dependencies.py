"""Which package may import what: the import contracts are shown to bite, and third parties are held in their places."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Beside the standard library and our own packages; import-linter sees only the first part of such a name.
THIRD_PARTIES = {
    "orchestrators": ("azure.durable_functions", "azure.functions"),
    "shared/errors.py": ("pydantic",),
    "shared/model": ("pydantic",),
    "shared/names.py": ("pydantic",),
    # Only to read and to mark: the blueprint of an MLTable is YAML.
    "shared/policy": ("yaml",),
}
# What speaks to a system outside. In the app it stands behind a port, in shared/clients and nowhere else.
VENDORS = (
    "aiohttp",
    "arrow_odbc",
    "azure.ai",
    "azure.core",
    "azure.identity",
    "azure.storage",
    "azureml",
    "deltalake",
    "mltable",
    "obstore",
    "pyodbc",
    "sqlalchemy",
)
APP = ("function_app.py", "activities", "orchestrators", "shared", "triggers")
PACKAGES = ("activities", "bench", "local", "orchestrators", "shared", "tests", "tools", "triggers")

# The table of the architecture page, once more and independently of pyproject.toml: package -> what of shared.
ROWS = {
    "triggers": {"names", "model", "policy", "errors", "ports", "services"},
    "orchestrators": {"names", "model", "policy"},
    "activities": {"names", "model", "policy", "errors", "ports", "engine", "services"},
    "shared.engine": {"model", "policy", "errors", "ports"},
    "shared.clients": {"errors", "model", "policy", "ports"},
    "shared.model": {"policy", "errors"},
    "shared.policy": {"errors"},
}
SHARED = ("clients", "engine", "errors", "model", "names", "policy", "ports", "services", "settings")


def modules_in(place: str) -> list[Path]:
    path = ROOT / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it; ``from a import b`` counts as ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("place", THIRD_PARTIES)
def test_pure_package_imports_no_other_third_party(place: str) -> None:
    for path in modules_in(place):
        foreign = {
            module
            for module in imports_of(path)
            if module.split(".")[0] not in sys.stdlib_module_names
            and not is_within(module, (*PACKAGES, *THIRD_PARTIES[place]))
        }
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_vendors_are_imported_by_clients_only() -> None:
    found = {
        str(path.relative_to(ROOT)): vendors
        for place in APP
        for path in modules_in(place)
        if (vendors := sorted(module for module in imports_of(path) if is_within(module, VENDORS)))
        and not path.is_relative_to(ROOT / "shared/clients")
    }
    assert not found


def plant(tree: Path, importer: str, imported: list[str]) -> None:
    """Puts the imports into a module of the package and into the package itself."""
    for name in ("__init__.py", "planted.py"):
        path = tree.joinpath(*importer.split("."), name)
        path.write_text("".join(f"import {module}\n" for module in imported), encoding="utf-8")


def lint(tree: Path) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Runs the project's import contracts over another tree: contract -> KEPT or BROKEN, and what it complains of."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-logo", "--no-cache"],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)$", done.stdout, re.MULTILINE))
    assert verdicts, done.stdout + done.stderr
    return verdicts, set(re.findall(r"^ *-? *([\w.]+) -> ([\w.]+) \(l\.\d+\)$", done.stdout, re.MULTILINE))


@pytest.fixture
def empty_tree(tmp_path: Path) -> Path:
    """The app's packages with nothing in them, and the project's contracts."""
    for package in (*PACKAGES, *(f"shared/{name}" for name in SHARED)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_allow_what_the_table_allows(empty_tree: Path) -> None:
    for importer, allowed in ROWS.items():
        plant(empty_tree, importer, [f"shared.{name}" for name in sorted(allowed)])
    for importer in ("local", "tools"):
        plant(empty_tree, importer, ["activities", "orchestrators", "triggers", "shared.clients", "shared.services"])
    plant(empty_tree, "bench", ["local", "tools", "shared.engine"])
    assert set(lint(empty_tree)[0].values()) == {"KEPT"}


def test_contracts_forbid_everything_else(empty_tree: Path) -> None:
    forbidden = {
        *(
            (row, f"shared.{name}")
            for row, allowed in ROWS.items()
            for name in SHARED
            if name not in allowed and row != f"shared.{name}"
        ),
        ("triggers", "activities"),
        ("triggers", "orchestrators"),
        ("orchestrators", "activities"),
        ("activities", "orchestrators"),
        ("shared.services", "activities"),
        ("shared.engine", "local"),
        ("activities", "tools"),
        ("tools", "bench"),
        *((f"shared.{pure}", f"shared.{other}") for pure in ("names", "errors") for other in ("ports", "policy")),
    }
    for importer in {importer for importer, _ in forbidden}:
        plant(empty_tree, importer, [imported for one, imported in sorted(forbidden) if one == importer])
    _, complaints = lint(empty_tree)
    both = {(module, imported) for one, imported in forbidden for module in (one, f"{one}.planted")}
    assert not both - complaints


def test_the_development_lock_holds_every_pin_of_the_runtime_lock() -> None:
    """So that an environment made for the tests will do for the app as well."""
    runtime, dev = (
        {
            line
            for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
            if "==" in line and line[0] not in " #"
        }
        for name in ("requirements.txt", "requirements-dev.txt")
    )
    assert not runtime - dev
