"""Blueprints: what is taken, what a path means, and that a rewrite touches nothing but the tokens."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import ItemError, Unsupported
from shared.policy.asset_uri import (
    WorkspaceName,
    is_same_uri,
    long_uri,
    parse_datastore_path,
    parse_storage_path,
    shown_uri,
)
from shared.policy.blueprint import (
    Home,
    Store,
    carried_path,
    covers,
    local_text,
    locate,
    parse_blueprint,
    rewrite,
    unified_diff,
)

SOURCE = Home(WorkspaceName("5c000000-aaaa-4000-8000-000000000001", "rg-source", "ws-source"), "workspaceblobstore",
              "srcaccount", "src-container", "data/sales/9")  # fmt: skip
TARGET = Home(WorkspaceName("5c000000-bbbb-4000-8000-000000000001", "rg-target", "ws-target"), "workspaceblobstore",
              "dstaccount", "dst-container", "migrated/sales/9")  # fmt: skip
URLS = {"srcaccount": "https://127.0.0.1:1/srcaccount", "dstaccount": "https://127.0.0.1:1/dstaccount"}


def long(home: Home, path: str) -> str:
    return long_uri(home.workspace, home.datastore, path).rstrip("/")


def rewritten(text: str, urls: dict[str, str] | None = None) -> str:
    blueprint = parse_blueprint(text.encode())
    places = locate(blueprint, SOURCE, urls or {}, target=TARGET)
    return rewrite(blueprint, places, SOURCE, TARGET, urls or {})


def one(path: str, kind: str = "file") -> str:
    return f"type: mltable\npaths:\n  - {kind}: {path}\n"


@pytest.mark.parametrize(
    ("path", "became"),
    [
        ("./a.csv", "./a.csv"),
        (long(SOURCE, "data/sales/9/a.csv"), long(TARGET, "migrated/sales/9/a.csv")),
        ("azureml://datastores/workspaceblobstore/paths/data/sales/9/x/*.csv",
         "azureml://datastores/workspaceblobstore/paths/migrated/sales/9/x/*.csv"),
        ("https://srcaccount.blob.core.windows.net/src-container/data/sales/9/a.csv",
         "https://dstaccount.blob.core.windows.net/dst-container/migrated/sales/9/a.csv"),
        ("wasbs://src-container@srcaccount.blob.core.windows.net/data/sales/9/a.csv",
         "wasbs://dst-container@dstaccount.blob.core.windows.net/migrated/sales/9/a.csv"),
        ("abfss://src-container@srcaccount.dfs.core.windows.net/data/sales/9/",
         "abfss://dst-container@dstaccount.dfs.core.windows.net/migrated/sales/9/"),
        ("https://127.0.0.1:1/srcaccount/src-container/data/sales/9/a.csv",
         "https://127.0.0.1:1/dstaccount/dst-container/migrated/sales/9/a.csv"),
        ("https://example.org/a.csv", "https://example.org/a.csv"),
        ("../other/b.csv", "./_outside/data/sales/other/b.csv"),
        (long(SOURCE, "data/sales/91/b.csv"), "./_outside/data/sales/91/b.csv"),
        (long(TARGET, "migrated/sales/9/a.csv"), long(TARGET, "migrated/sales/9/a.csv")),
    ],
)  # fmt: skip
def test_each_form_of_a_path(path: str, became: str) -> None:
    assert rewritten(one(path), URLS) == one(became)
    assert rewritten(one(f"'{path}'"), URLS) == one(f"'{became}'")
    assert rewritten(one(f'"{path}"'), URLS) == one(f'"{became}"')


def test_resource_groups_in_another_case_stay_as_they_were_written() -> None:
    path = long(SOURCE, "data/sales/9/a.csv").replace("resourcegroups", "resourceGroups")
    assert "resourceGroups/rg-target" in rewritten(one(path))


def test_tokens_of_stream_info() -> None:
    text = one("./a.csv") + (
        "transformations:\n  - convert_column_types:\n    - columns: image # a stream\n      column_type:\n"
        "        stream_info: {subscription: 5c000000-aaaa-4000-8000-000000000001, resource_group: 'rg-source',"
        ' workspace_name: "ws-source"}\n'
    )
    wanted = text.replace("-aaaa-", "-bbbb-").replace("rg-source", "rg-target").replace("ws-source", "ws-target")
    assert rewritten(text) == wanted


@pytest.mark.parametrize("text", [
    "\ufefftype: mltable\r\npaths:\r\n  - file: {0}\r\n# the end",
    "type: mltable\npaths: [{{file: {0}}}, {{pattern: ./*.csv}}]\n",
    "paths:\n- file: >-\n    {0}\ntype: mltable\n",
    "type: mltable\npaths:\n  - file: &one {0} # anchored\n  - file: *one\n",
    "type: mltable\npaths:\n  - file: !!str {0}\n",
    "---\ntype: mltable\npaths:\n  - {{ 'file' : \"{0}\" }}\n...\n",
])  # fmt: skip
def test_forms_of_yaml(text: str) -> None:
    before = text.format(long(SOURCE, "data/sales/9/a.csv"))
    after = rewritten(before)
    wanted = long(TARGET, "migrated/sales/9/a.csv")
    assert yaml.safe_load(after)["paths"][0] == {"file": wanted}
    assert rewritten(after) == after
    if ">-" not in text:
        assert after == text.format(wanted)


def test_an_anchor_shared_with_something_else_is_refused() -> None:
    path = long(SOURCE, "data/sales/9/a.csv")
    text = f"type: mltable\nmetadata: {{seen: &one {path}}}\npaths:\n  - file: *one\n"
    with pytest.raises(Unsupported) as caught:
        rewritten(text)
    assert caught.value.code == "blueprint_rewrite"


@pytest.mark.parametrize(("text", "code", "says"), [
    ("paths: [", "blueprint_invalid", "line"),
    ("- a\n", "blueprint_invalid", "mapping"),
    ("type: mltable\n", "blueprint_invalid", "'paths'"),
    ("type: mltable\npaths: []\n", "blueprint_invalid", "at least one"),
    ("type: table\npaths: [{file: a}]\n", "blueprint_invalid", "type"),
    ("type: mltable\npaths: [{file: a, folder: b}]\n", "blueprint_invalid", "exactly one"),
    ("type: mltable\npaths: [{glob: a}]\n", "blueprint_invalid", "glob"),
    ("type: mltable\npaths: [{file: [a]}]\n", "blueprint_invalid", "text"),
    ("type: mltable\npaths: [{file: a}]\ncolour: red\n", "blueprint_invalid", "colour"),
    ("type: mltable\npaths: [{file: a}]\npaths: [{file: b}]\n", "blueprint_invalid", "twice"),
    ("type: mltable\npaths: [{file: a}]\ntransformations: [read_excel]\n", "blueprint_invalid", "read_excel"),
    ("type: mltable\npaths: [{file: a}]\ntransformations: [read_delta_lake]\n", "delta_unsupported", "Delta"),
    ("type: mltable\npaths: [{folder: a}]\ntransformations: [{read_delta_lake: {version_as_of: 0}}]\n",
     "delta_unsupported", "Delta"),
    ("type: mltable\npaths: [{delta: a}]\n", "delta_unsupported", "Delta"),
    ("type: mltable\nquery_source: {datastore: x}\n", "query_source_unsupported", "database"),
    ("a: &a [b]\n" + "c: " * 3000, "blueprint_invalid", ""),
])  # fmt: skip
def test_what_mltable_would_not_take(text: str, code: str, says: str) -> None:
    with pytest.raises(ItemError) as caught:
        parse_blueprint(text.encode())
    assert caught.value.code == code
    assert says in caught.value.detail


@pytest.mark.parametrize("path", ["/mnt/a.csv", "C:\\a.csv", "file:///a.csv", "../../../../a.csv", "s3://b/a.csv"])
def test_paths_that_no_cloud_resolves(path: str) -> None:
    blueprint = parse_blueprint(one(f"'{path}'").encode())
    with pytest.raises(ItemError):
        locate(blueprint, SOURCE, {})


@pytest.mark.parametrize("path", [
    "azureml://datastores/other/paths/a.csv", "azureml:asset:1", "wasbs://c@third.blob.core.windows.net/a.csv",
    "abfss://c@third.dfs.core.windows.net/a.csv", long(TARGET, "elsewhere/a.csv"),
])  # fmt: skip
def test_other_datastores(path: str) -> None:
    (place,) = locate(parse_blueprint(one(path).encode()), SOURCE, {})
    assert (place.kind, place.can_carry) == ("other_datastore", False)


def test_other_container_of_the_account_can_be_carried() -> None:
    path = "https://srcaccount.blob.core.windows.net/public/x/a.csv"
    (place,) = locate(parse_blueprint(one(path).encode()), SOURCE, {})
    assert (place.kind, place.can_carry, place.container, place.path) == ("other_datastore", True, "public", "x/a.csv")


def test_diff_hides_signatures() -> None:
    shown = unified_diff("a\n", "https://x/?sv=1&sig=abc&x=1\n")
    assert "abc" not in shown
    assert "+https://x/?sv=1&sig=***&x=1" in shown


@pytest.mark.parametrize(("kind", "relative", "file", "expected"), [
    ("file", "a.csv", "a.csv", True), ("folder", "", "x/a.csv", True), ("folder", "x", "xy/a.csv", False),
    ("pattern", "*.csv", "a.csv", True), ("pattern", "*.csv", "x/a.csv", False),
    ("pattern", "**/*.csv", "x/y/a.csv", True), ("pattern", "**/*.csv", "a.csv", True),
    ("pattern", "y=*/m=?/*.parquet", "y=2024/m=1/p.parquet", True), ("pattern", "[a].csv", "a.csv", False),
])  # fmt: skip
def test_what_an_entry_means(kind: str, relative: str, file: str, expected: bool) -> None:
    assert covers(kind, relative, file) is expected


def test_uris() -> None:
    one_form = long_uri(SOURCE.workspace, "ds", "a/b")
    assert is_same_uri(one_form, "azureml://datastores/ds/paths/a//b", SOURCE.workspace)
    assert is_same_uri(one_form.replace("rg-source", "RG-Source"), one_form, TARGET.workspace)
    assert not is_same_uri(one_form, "azureml://datastores/ds/paths/a/b", TARGET.workspace)
    assert parse_datastore_path("azureml:asset:1") is None
    assert parse_storage_path("https://example.org/x", {}) is None


@pytest.mark.parametrize("path", [
    "azureml://datastores/workspaceblobstore/paths/elsewhere/a.csv",
    # As the target's folder is called, but a short path of the source means the source's datastore.
    "azureml://datastores/workspaceblobstore/paths/migrated/sales/9/a.csv",
])  # fmt: skip
def test_a_short_path_outside_of_the_root_is_never_taken_for_one_of_the_target(path: str) -> None:
    blueprint = parse_blueprint(one(path).encode())
    places = locate(blueprint, SOURCE, {})
    assert [(place.kind, place.can_carry) for place in places] == [("outside_root", True)]
    assert "file: ./_outside/" in rewrite(blueprint, places, SOURCE, TARGET, {})


STORES = [Store("workspaceblobstore", "srcaccount", "src-container"), Store("other", "second", "raw"),
          Store("alias", "srcaccount", "src-container")]  # fmt: skip


@pytest.mark.parametrize(("path", "kind", "there", "carried"), [
    ("azureml://datastores/other/paths/x/a.csv", "other_datastore", ("second", "raw", "x/a.csv"),
     "_outside/second/raw/x/a.csv"),
    (long_uri(SOURCE.workspace, "other", "x/a.csv").rstrip("/"), "other_datastore", ("second", "raw", "x/a.csv"),
     "_outside/second/raw/x/a.csv"),
    ("wasbs://raw@second.blob.core.windows.net/x/a.csv", "other_datastore", ("second", "raw", "x/a.csv"),
     "_outside/second/raw/x/a.csv"),
    ("azureml://datastores/alias/paths/y/a.csv", "outside_root", ("srcaccount", "src-container", "y/a.csv"),
     "_outside/y/a.csv"),
])  # fmt: skip
def test_datastores_of_the_sources_workspace_can_be_carried(
    path: str, kind: str, there: tuple[str, str, str], carried: str
) -> None:
    (place,) = locate(parse_blueprint(one(path).encode()), SOURCE, {}, stores=STORES)
    assert (place.kind, place.can_carry, (place.account, place.container, place.path)) == (kind, True, there)
    assert carried_path(place, SOURCE) == carried


def test_an_alias_of_the_default_datastore_is_rewritten_like_it() -> None:
    blueprint = parse_blueprint(one("azureml://datastores/alias/paths/data/sales/9/a.csv").encode())
    places = locate(blueprint, SOURCE, {}, stores=STORES)
    assert rewrite(blueprint, places, SOURCE, TARGET, {}) == one(
        "azureml://datastores/workspaceblobstore/paths/migrated/sales/9/a.csv"
    )


@pytest.mark.parametrize("path", [
    "https://srcaccount.blob.core.windows.net/src-container/data/sales/9/../10/*.csv",
    "wasbs://raw@second.blob.core.windows.net/../a.csv",
    "azureml://datastores/workspaceblobstore/paths/data/sales/9/../10/a.csv",
])  # fmt: skip
def test_a_way_up_in_an_address_is_refused(path: str) -> None:
    with pytest.raises(ItemError) as caught:
        locate(parse_blueprint(one(path, "pattern").encode()), SOURCE, {}, stores=STORES)
    assert (caught.value.code, "'..'" in caught.value.detail) == ("blueprint_invalid", True)


def test_a_password_is_neither_handed_on_nor_shown() -> None:
    with pytest.raises(Unsupported) as caught:
        locate(parse_blueprint(one("https://joe:hush@example.org/a.csv").encode()), SOURCE, {})
    assert (caught.value.code, "hush" in caught.value.detail) == ("signed_url", False)
    assert shown_uri("https://joe:hush@example.org/a.csv?sig=hush") == "https://example.org/a.csv"


def bomb(mapping: str) -> str:
    """Forty aliases, each of the one before, twice."""
    lines = ["  b0: &b0 {x: 1}"]
    lines += [f"  b{n}: &b{n} {mapping.format(f'*b{n - 1}')}" for n in range(1, 40)]
    return one("./a.csv") + "metadata:\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(("text", "says"), [
    (bomb("[{0}, {0}]"), "aliases stand for more"), (bomb("{{<<: [{0}, {0}]}}"), "aliases stand for more"),
    (one("./a.csv") + "metadata: &a [*a]\n", "part of"), (one("./a.csv") + "metadata: &a {x: {y: *a}}\n", "part of"),
    (one("./a.csv") + "metadata: {x: !!int ''}\n", "tag"), (one("./a.csv") + "metadata: {x: !!bool maybe}\n", "tag"),
    (one("./a.csv") + "metadata: {x: !!timestamp soon}\n", "tag"),
    (one("./a.csv") + "metadata: {x: !!python/object/apply:os.system [id]}\n", "line"),
])  # fmt: skip
def test_hostile_yaml_is_refused_and_costs_nothing(text: str, says: str) -> None:
    with pytest.raises(ItemError) as caught:
        parse_blueprint(text.encode())
    assert (caught.value.code, says in caught.value.detail) == ("blueprint_invalid", True)


def test_merged_keys_mean_what_yaml_says() -> None:
    text = "type: mltable\n<<: {paths: [{file: ./not.csv}], metadata: {a: 1}}\npaths:\n  - file: ./a.csv\n"
    assert [entry.value for entry in parse_blueprint(text.encode()).paths] == ["./a.csv"]
    text = f"type: mltable\n<<: {{paths: [{{file: '{long(SOURCE, 'data/sales/9/a.csv')}'}}]}}\n"
    assert rewritten(text) == text.replace(long(SOURCE, "data/sales/9"), long(TARGET, "migrated/sales/9"))


def test_a_long_difference_is_cut() -> None:
    shown = unified_diff("", "\n".join(f"{n}" + "x" * 5000 for n in range(5000)))
    assert len(shown) < 500_000
    assert shown.endswith("for the rest")


@pytest.mark.parametrize(("transformation", "expected"), [
    ("read_delimited", True), ("read_json_lines: {encoding: utf8}", True), ("read_parquet", False),
    ("read_delimited: {support_multi_line: true}", False), ("read_delimited: {encoding: utf-16}", False),
])  # fmt: skip
def test_of_which_tables_a_beginning_is_one(transformation: str, expected: bool) -> None:
    text = one("./a.csv") + f"transformations:\n  - {transformation}\n"
    assert parse_blueprint(text.encode()).reads_lines is expected


# -- generated ---------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(categories=["L", "N"], include_characters=" _-.()'#&+%"), min_size=1, max_size=12).filter(
    lambda name: name.strip(" .") == name and ".." not in name
)
SEGMENTS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PREFIXES = st.sampled_from([
    "./", "", long(SOURCE, "data/sales/9/x")[:-1], "azureml://datastores/workspaceblobstore/paths/data/sales/9/",
    "https://srcaccount.blob.core.windows.net/src-container/data/sales/9/",
    "wasbs://src-container@srcaccount.blob.core.windows.net/data/sales/9/", "../outside/", "https://example.org/",
])  # fmt: skip
QUOTES = st.sampled_from(["plain", "'", '"'])
COMMENTS = st.sampled_from(["", "  # a comment: with 'quotes' and azureml://subscriptions/x", " #"])
READERS = st.sampled_from([
    "", "transformations:\n  - read_delimited:\n      delimiter: ','  # comma\n      encoding: utf8\n",
    "transformations:\n- read_json_lines: {invalid_lines: drop}\n- take: 5\n",
    'transformations:\n  - read_delimited\n  - filter: "col(\'id\') > 1"\n  - keep_columns: [id, name]\n',
])  # fmt: skip


@st.composite
def blueprints(draw: st.DrawFn, prefixes: st.SearchStrategy[str] = PREFIXES) -> str:
    """The text of a blueprint as people write them, comments and odd spacing included."""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = [draw(st.sampled_from(["# ours", "$schema: https://example.org/MLTable.schema.json", ""])), "type: mltable"]
    lines += [f"metadata:{draw(COMMENTS)}", f"    made_in: '{SOURCE.workspace.name}'", "paths:"]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["file", "folder", "pattern"]))
        value = draw(prefixes) + draw(SEGMENTS) + ("/*.csv" if kind == "pattern" else "")
        quote = draw(QUOTES)
        shown = value
        if quote == "'":
            shown = "'" + value.replace("'", "''") + "'"
        elif quote == '"' or yaml.safe_dump(value, allow_unicode=True, width=10**6).splitlines()[0] != value:
            shown = '"' + value + '"'
        lines.append(f"  -{' ' * draw(st.integers(1, 3))}{kind}: {shown}{draw(COMMENTS)}")
    text = end.join(lines) + end + draw(READERS).replace("\n", end)
    return draw(st.sampled_from(["", "\ufeff"])) + text


@given(blueprints())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_a_rewrite_is_idempotent_and_touches_nothing_but_the_tokens(text: str) -> None:
    before = parse_blueprint(text.encode())
    after = rewritten(text)
    assert rewritten(after) == after
    wanted = rewrite(before, locate(before, SOURCE, {}), SOURCE, TARGET, {})
    assert after == wanted
    # Outside of the values of paths not a character differs, and within them only what names the source.
    again = parse_blueprint(after.encode())
    assert len(again.paths) == len(before.paths)
    rest_before, rest_after = _without_paths(before), _without_paths(again)
    assert rest_before == rest_after
    for old, new in zip(before.paths, again.paths, strict=True):
        assert (old.kind, old.style) == (new.kind, new.style) or old.value != new.value
        if old.value.startswith(("./", "https://example.org/")):
            assert old.value == new.value
        for mark in (SOURCE.workspace.subscription_id, "srcaccount", "src-container", "data/sales/9/"):
            assert mark not in new.value
        # What came behind the root is what comes behind the new one.
        assert old.value.rpartition("/")[2] == new.value.rpartition("/")[2]


def _without_paths(blueprint: Any) -> list[str]:
    parts, at = [], 0
    for entry in blueprint.paths:
        parts.append(blueprint.text[at : entry.start])
        at = entry.end
    return [*parts, blueprint.text[at:]]


@given(blueprints(st.sampled_from(["./", long(SOURCE, "data/sales/9/x")[:-1]])))
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_what_mltable_accepts_it_accepts_afterwards(text: str) -> None:
    """With the real mltable's own check of a file, and its reading of it."""
    from azureml.dataprep.api.mltable._mltable_helper import _read_yaml
    from mltable.mltable import _validate  # type: ignore[attr-defined]

    documents = []
    for content in (text, rewritten(text)):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "MLTable").write_bytes(content.encode())
            documents.append(_read_yaml(folder))
    before, after = documents
    _validate(before)
    _validate(after)
    assert {**before, "paths": None} == {**after, "paths": None}


def test_a_blueprint_for_a_folder() -> None:
    text = one(long(SOURCE, "data/sales/9/a.csv")) + "  - pattern: ./more/*.csv\n  - file: https://example.org/x.csv\n"
    blueprint = parse_blueprint(text.encode())
    made = local_text(blueprint, ["a.csv", "more/*.csv", None], ["more/1.csv"])
    assert made is not None
    assert yaml.safe_load(made)["paths"] == [{"pattern": "./more/*.csv"}]
    assert local_text(blueprint, ["a.csv", "more/*.csv", None], []) is None
