"""``function_app.py`` only composes, registers what ``shared/names.py`` names, and imports nothing heavy."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared import names

ROOT = Path(__file__).parents[2]
FUNCTION_APP = ROOT / "function_app.py"
# Each costs a noticeable part of a cold start, or needs a system library that only its own activity can miss.
HEAVY = (
    "arrow_odbc",
    "azure.ai.ml",
    "azure.storage",
    "azureml",
    "deltalake",
    "mltable",
    "numpy",
    "pandas",
    "pyarrow",
    "pyodbc",
    "sqlalchemy",
)
INSPECTION = """
import json, sys
import function_app
modules = sorted(sys.modules)
print(json.dumps({"modules": modules, "functions": [f.get_function_name() for f in function_app.app.get_functions()]}))
"""


@pytest.fixture(scope="module")
def tree() -> ast.Module:
    assert FUNCTION_APP.exists(), "function_app.py is missing: the app has no entry point"
    return ast.parse(FUNCTION_APP.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def inspected() -> dict[str, Any]:
    """What a fresh process sees after ``import function_app``."""
    done = subprocess.run([sys.executable, "-c", INSPECTION], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"import function_app failed:\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_is_under_60_lines(tree: ast.Module) -> None:
    assert len(FUNCTION_APP.read_text(encoding="utf-8").splitlines()) < 60


def test_only_composes(tree: ast.Module) -> None:
    """No classes, no error handling, no loops that wait, and no function defined in place by a decorator."""
    logic = (ast.ClassDef, ast.AsyncFunctionDef, ast.Try, ast.TryStar, ast.While, ast.With, ast.Raise, ast.Await)
    found = [
        f"line {node.lineno}: {type(node).__name__}"
        for node in ast.walk(tree)
        if isinstance(node, logic) or (isinstance(node, ast.FunctionDef) and node.decorator_list)
    ]
    assert not found, "function_app.py holds logic that belongs in a layer below: " + "; ".join(found)


def test_importing_it_takes_no_heavy_module(inspected: dict[str, Any]) -> None:
    taken = [name for name in HEAVY if name in inspected["modules"]]
    assert not taken, f"import these inside the activity that needs them: {taken}"


def test_every_function_is_registered_once_under_a_name_of_the_vocabulary(inspected: dict[str, Any]) -> None:
    registered = Counter(inspected["functions"])
    vocabulary = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
    assert registered, "the app registers no functions"
    assert not [name for name, times in registered.items() if times > 1], "registered twice"
    assert not registered.keys() - vocabulary, "registered under a name that shared/names.py does not have"
