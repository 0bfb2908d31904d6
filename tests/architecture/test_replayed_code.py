"""What is replayed decides the same every time: the lint rules that say so are shown to bite.

``dev.py check`` applies the rules to the code; here they are applied to planted violations. What a rule of ruff cannot
see, the built-in functions, is looked for in the code itself.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPLAYED = ("orchestrators", "shared/policy")
# hash() of a text differs from process to process, and id() from object to object.
IMPURE_BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "hash", "id", "input", "open", "print"}

VIOLATIONS = {
    "clock": "from datetime import datetime\n\nSTARTED = datetime.now()\n",
    "clock with a zone": "import datetime as dt\n\nSTARTED = dt.datetime.now(dt.UTC)\n",
    "today": "from datetime import date\n\nTODAY = date.today()\n",
    "time module": "from time import monotonic\n\nSTARTED = monotonic()\n",
    "random": "import random\n\nDRAWN = random.random()\n",
    "random by name": "from random import shuffle\n\nshuffle([])\n",
    "secrets": "import secrets\n\nTOKEN = secrets.token_hex()\n",
    "uuid4": "import uuid\n\nNEW = uuid.uuid4()\n",
    "uuid4 by another name": "from uuid import uuid4 as fresh\n\nNEW = fresh()\n",
    "environ": "from os import environ\n\nHOME = environ['HOME']\n",
    "getenv inside a function": "def home():\n    import os\n\n    return os.getenv('HOME')\n",
    "open": "CONTENT = open('x').read()\n",
    "Path": "from pathlib import Path\n\nCONTENT = Path('x').read_text()\n",
    "sleep": "import asyncio\n\nWAIT = asyncio.sleep(1)\n",
    "thread": "from threading import Thread\n\nT = Thread()\n",
}


def broken_rules(path: str, source: str) -> str:
    """What the project's own lint configuration says about this text, as if it stood at this path."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "--stdin-filename", path, "-"],
        cwd=ROOT,
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_lint_catches(violation: str) -> None:
    for package in REPLAYED:
        found = broken_rules(f"{package}/planted.py", VIOLATIONS[violation])
        assert "TID251" in found or "PTH123" in found, found


def test_lint_lets_the_other_packages_use_the_clock_and_the_environment() -> None:
    source = (
        '"""Reads the environment."""\n\nimport os\nimport time\n\nNOW = time.monotonic()\nHOME = os.environ["HOME"]\n'
    )
    assert not broken_rules("shared/clients/planted.py", source).count("TID251")


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("print(1)\n", "T201"),
        ("try:\n    x = 1\nexcept:\n    x = 2\n", "E722"),
        ("try:\n    x = 1\nexcept Exception:\n    pass\n", "S110"),
    ],
)
def test_lint_catches_print_and_swallowed_errors_anywhere_in_the_app(source: str, rule: str) -> None:
    for package in ("activities", "orchestrators", "shared/engine", "triggers"):
        assert rule in broken_rules(f"{package}/planted.py", source)


def impure_builtins(source: str) -> list[str]:
    """Where the source reads a built-in that touches the world or differs between processes, called or not."""
    return [
        f"line {node.lineno}: {node.id}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in IMPURE_BUILTINS
    ]


def test_replayed_code_uses_no_impure_builtin() -> None:
    assert sorted(impure_builtins("key = hash('a')\nread = open\n")) == ["line 1: hash", "line 2: open"]
    found = {
        str(path.relative_to(ROOT)): lines
        for package in REPLAYED
        for path in (ROOT / package).rglob("*.py")
        if (lines := impure_builtins(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_an_orchestrator_is_no_coroutine() -> None:
    """The SDK drives generators; a coroutine would wait on something that is not in the history."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in REPLAYED
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]
    assert not found
