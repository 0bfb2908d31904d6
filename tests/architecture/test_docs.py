"""What the documentation promises is what the code has: settings, error codes, routes."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel

import triggers
from shared import errors
from shared.model.job import parse_job
from shared.model.sql_job import SqlJob
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PLATFORM_SETTINGS = {"AzureWebJobsStorage", "FUNCTIONS_WORKER_RUNTIME", "PYTHON_THREADPOOL_THREAD_COUNT"}
# Bases of the taxonomy, which are never raised themselves, and codes that are handled before anyone sees them.
UNSEEN_CODES = {"migration_error", "transient", "item_error", "run_error", "authentication", "unsupported"}


def documented_settings() -> set[str]:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8").partition("## Credentials")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([A-Za-z_<>]+)`", row)}


def settings_that_the_code_reads() -> set[str]:
    source = (ROOT / "shared/settings.py").read_text(encoding="utf-8")
    body = source.partition("def read_settings")[2]
    read = set(re.findall(r'(?:text|number)\("([A-Za-z_]+)"', body))
    in_bindings = {
        name
        for path in (ROOT / "triggers").glob("*.py")
        for name in re.findall(r'"%([A-Z_]+)%"', path.read_text(encoding="utf-8"))
    }
    return read | in_bindings | {"CREDENTIAL_<NAME>"}


def test_every_setting_is_documented_and_none_that_is_not_read() -> None:
    assert documented_settings() == settings_that_the_code_reads() | PLATFORM_SETTINGS


def test_the_sample_holds_every_setting() -> None:
    sample = json.loads((ROOT / "local.settings.sample.json").read_text(encoding="utf-8"))["Values"]
    names = {"CREDENTIAL_<NAME>" if name.startswith("CREDENTIAL_") else name for name in sample}
    assert names == documented_settings() - {"PYTHON_THREADPOOL_THREAD_COUNT"}


def test_the_settings_docstring_names_each_variable() -> None:
    for name in settings_that_the_code_reads() - {"AzureWebJobsStorage", "SCHEDULE_TICK"}:
        assert f"{name}." in (Settings.__doc__ or "") or f"{name}," in (Settings.__doc__ or ""), name


def codes_in_the_source() -> set[str]:
    found = {
        cls.default_code
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.MigrationError)
    }
    for folder in ("shared", "activities", "orchestrators"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                    found.add(node.value.value)
                if isinstance(node, ast.Tuple) and (code := _code_of_problem(node)):
                    found.add(code)
                if isinstance(node, ast.Dict):
                    for key, value in zip(node.keys, node.values, strict=True):
                        if isinstance(key, ast.Constant) and key.value in ("code", "error_code"):
                            found |= {value.value} if isinstance(value, ast.Constant) else set()
    return {code for code in found if isinstance(code, str)} - {"invalid_spec"}


def _code_of_problem(node: ast.Tuple) -> str | None:
    """The code of ``("code", "sentence")``, which is how a listing tells what is the matter with an item."""
    if len(node.elts) != 2 or not isinstance(first := node.elts[0], ast.Constant):
        return None
    second = node.elts[1]
    is_sentence = isinstance(second, ast.JoinedStr) or (isinstance(second, ast.Constant) and " " in str(second.value))
    is_code = isinstance(first.value, str) and re.fullmatch("[a-z]+(_[a-z]+)+", first.value)
    return str(first.value) if is_sentence and is_code else None


def test_every_error_code_is_explained() -> None:
    explained = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")))
    assert codes_in_the_source() - UNSEEN_CODES <= explained


def test_every_spec_that_is_shown_is_one() -> None:
    target = {"workspace": "Migration", "lakehouse": "Landing", "path": "Files/shown"}
    shown = []
    for name in ("README.md", "docs/operations.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        shown += [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    files = [block for block in shown if "source" in block or "sources" in block]
    jobs = [parse_job({"kind": "files", "name": "shown", "target": target, **block}) for block in files]
    types = {source.type for job in jobs if job.kind == "files" for source, _ in job.places()}
    assert types == {"folder", "sharepoint", "blob"}


def test_every_example_is_a_job() -> None:
    kinds = set()
    for path in sorted((ROOT / "docs/examples").glob("*.yaml")):
        kinds.add(parse_job(yaml.safe_load(path.read_text(encoding="utf-8"))).kind)
    assert kinds == {"files", "sql"}


def test_every_part_of_a_sql_job_that_is_shown_is_one() -> None:
    text = (ROOT / "docs/sql.md").read_text(encoding="utf-8")
    shown = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    job = {
        "kind": "sql", "name": "shown", "source": {"connection": "ERP_DB"}, "tables": [{"table": "dbo.Orders"}],
        "target": {"workspace": "Migration", "lakehouse": "Landing", "path": "Tables/erp", "format": "delta"},
    }  # fmt: skip
    assert {key for block in shown for key in block} >= {"tables", "quality"}
    for block in shown:
        parse_job(job | block)


def fields_of(spec: type[BaseModel]) -> set[str]:
    """Names of fields as a job writes them, those of its parts included."""
    found = set()
    for name, field in spec.model_fields.items():
        found.add(field.alias or name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= fields_of(part)
    return found


def test_every_field_of_a_sql_job_is_explained() -> None:
    text = (ROOT / "docs/sql.md").read_text(encoding="utf-8")
    shown = " ".join(a or b for a, b in re.findall(r"```yaml\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))
    missing = {name for name in fields_of(SqlJob) if not re.search(rf"(?<![\w]){name}(?![\w])", shown)}
    assert missing == set()


# -- types of databases ------------------------------------------------------------------------------------------------

DIGITS = (18, 4)


def documented_types() -> dict[str, dict[str, list[str]]]:
    """By the dialect's heading: each type that is named in backticks, with the lake types beside it."""
    text = (ROOT / "docs/sql.md").read_text(encoding="utf-8")
    part = text.partition("<!-- types: begin -->")[2].partition("<!-- types: end -->")[0]
    found: dict[str, dict[str, list[str]]] = {}
    for section in part.split("### ")[1:]:
        types = found.setdefault(section.partition("\n")[0], {})
        for line in section.splitlines():
            if line.startswith("| `"):
                source, lake, *_ = line[2:].split(" | ")
                for name in re.findall("`([^`]+)`", source):
                    types[name] = re.findall("`([^`]+)`", lake)
    return found


def with_digits(text: str) -> str:
    return text.replace("p,s", "{},{}".format(*DIGITS)).replace("p, s", "{}, {}".format(*DIGITS))


def test_types_of_sql_server_are_documented() -> None:
    from shared.clients.sql import tsql_types
    from shared.model.sql_job import Types

    shown = documented_types()["SQL Server"]
    for name, wanted in shown.items():
        assert tsql_types.is_known(with_digits(name)), name
        columns, _ = tsql_types.lake_columns("c", with_digits(name), nullable=True, types=Types(), taken=())
        assert [column.type for column in columns] == [with_digits(one) for one in wanted], name
    collections = [value for name, value in vars(tsql_types).items() if re.fullmatch("_[A-Z_]+", name)]
    known = {one for each in collections if isinstance(each, tuple | dict) for one in each if isinstance(one, str)}
    known |= {"bit", "decimal", "numeric", "float", "real", "image", "date", "uniqueidentifier", "hierarchyid"}
    assert {name for name in known if tsql_types.is_known(name)} <= {name.partition("(")[0] for name in shown}


def test_types_of_postgresql_are_documented() -> None:
    from shared.clients.sql import postgresql

    shown = documented_types()["PostgreSQL"]
    for name, wanted in shown.items():
        modifier = (DIGITS[0] << 16 | DIGITS[1]) + 4 if name.endswith("(p,s)") else -1
        column = postgresql._column("c", name, name.partition("(")[0], modifier, nullable=True, domain="")
        assert [one.type for one in column.lake] == [with_digits(one) for one in wanted], name
    assert set(postgresql._AS_IT_IS) <= set(shown)


def test_types_of_sqlite_are_documented() -> None:
    from shared.clients.sql import sqlite

    shown = documented_types()["SQLite"]
    assert {name: [sqlite._lake_type(name)[0]] for name in shown} == shown
    assert {one for lake in shown.values() for one in lake} == {"bool", "int64", "string", "binary", "double"}


def test_every_route_is_in_the_api_description() -> None:
    from triggers.openapi import document

    described = {
        (path.removeprefix("/"), method.upper())
        for path, methods in document("http://localhost/api")["paths"].items()
        for method in methods
    }
    actions = ("pause", "resume", "cancel", "retry-failed")
    registered = {
        (route.replace("{action}", action), method)
        for _, route, method, _ in triggers.ROUTES
        for action in (actions if "{action}" in route else ("",))
    }
    assert described == registered
