"""The configuration of section 5: as the guide shows it, with defaults and overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.model.job import SpecError, parse_job
from shared.model.mltable_job import MltableJob
from tools.mltable_config import BadConfig, read_config, read_document

ROOT = Path(__file__).resolve().parents[2]
SOURCE = {"subscription_id": "5c000000-aaaa-4000-8000-000000000001", "resource_group": "rg", "workspace_name": "one"}
TARGET = {**SOURCE, "workspace_name": "two"}
GUIDE = """{
  "migration_batch_id": "optional-explicit-or-auto-generate",
  "source_workspace_config": "config/source_config.json",
  "target_workspace_config": "config/target_config.json",
  "defaults": {
    "destination_prefix": "migrated", // root folder under workspaceblobstore
    "collision_policy": "suffix", // suffix | skip | fail
    "collision_suffix_pattern": "{version}_m{n}", // token {version} + {n}
    "parallel_copies": 8,
    "hash_sample_files": 10,
    "dry_run": true
  },
  "assets": [
    {
      "name": "customer_profiles",
      "versions": ["9"],
      "destination_subpath": null
    },
    {
      "name": "orders_daily",
      "versions": ["9", "12"],
      "destination_subpath": "orders_custom"
    }
  ]
}
"""


def job(**changes: Any) -> MltableJob:
    config = {"source_workspace_config": SOURCE, "target_workspace_config": TARGET,
              "assets": [{"name": "a", "versions": ["1"]}], **changes}  # fmt: skip
    made = parse_job({"kind": "mltable", "name": "job", "config": config})
    assert isinstance(made, MltableJob)
    return made


def plant(folder: Path, text: str) -> Path:
    (folder / "config").mkdir()
    (folder / "config" / "source_config.json").write_text(json.dumps(SOURCE))
    (folder / "config" / "target_config.json").write_text(json.dumps(TARGET))
    path = folder / "migration_config.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [GUIDE, (ROOT / "docs/examples/migration_config.json").read_text(encoding="utf-8")])
def test_the_guides_own_configuration(tmp_path: Path, text: str) -> None:
    config = read_config(plant(tmp_path, text))
    made = parse_job({"kind": "mltable", "name": "guide", "config": config})
    assert isinstance(made, MltableJob)
    assert made.config.source_workspace_config.workspace_name == "one"
    assert parse_job(made.model_dump(mode="json")) == made
    assert made.config.options(0).parallel_copies == 8


def test_an_asset_overrides_the_defaults() -> None:
    assets = [{"name": "a", "versions": ["1"], "collision_policy": "skip", "checks": {"load": "warn"},
               "hash_sample_files": 0}, {"name": "b", "versions": [2]}]  # fmt: skip
    made = job(assets=assets, defaults={"collision_policy": "fail", "parallel_copies": 3, "hash_sample_files": 7})
    first, second = made.config.options(0), made.config.options(1)
    assert (first.collision_policy, first.parallel_copies, first.hash_sample_files) == ("skip", 3, 0)
    assert (first.checks.load, first.checks.file_count) == ("warn", "fail")
    assert (second.collision_policy, second.hash_sample_files, second.checks.load) == ("fail", 7, "fail")
    assert made.config.assets[1].versions == ["2"]


@pytest.mark.parametrize(("changes", "path"), [
    ({"assets": [{"name": "a", "versions": [True]}]}, "config.assets[0].versions[0]"),
    ({"assets": [{"name": "a", "versions": []}]}, "config.assets[0].versions"),
    ({"target_workspace_config": {**SOURCE, "resource_group": "RG"}}, "config.target_workspace_config"),
    ({"target_workspace_config": {**TARGET, "subscription_id": "x"}}, "config.target_workspace_config.subscription_id"),
    ({"defaults": {"destination_prefix": "/../x"}}, "config.defaults.destination_prefix"),
    ({"defaults": {"validation": {"memory": "12 apples"}}}, "config.defaults.validation.memory"),
])  # fmt: skip
def test_a_mistake_names_its_field(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(**changes)
    assert caught.value.details[0]["path"] == path


@pytest.mark.parametrize(("name", "text", "says"), [
    ("a.json", "{\n  // fine\n  \"x\": oops\n}", "line 3"), ("a.yaml", "a: [", "line 1"),
    ("a.json", '{"x": "config\\source.json"}', "twice"),
    ("a.json", "[1]", "object"),
])  # fmt: skip
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadConfig, match=says):
        read_document(tmp_path / name)


def test_checks_of_an_asset_add_to_those_of_the_defaults() -> None:
    defaults = {"checks": {"file_count": "warn"}, "validation": {"fetch": "1MiB", "enabled": False}}
    made = job(defaults=defaults, assets=[
        {"name": "a", "versions": ["1"], "checks": {"load": "warn"}, "validation": {"enabled": True}},
    ])  # fmt: skip
    for again in (made, parse_job(made.model_dump(mode="json"))):
        assert isinstance(again, MltableJob)
        found = again.config.options(0)
        assert (found.checks.file_count, found.checks.load, found.checks.comparison) == ("warn", "warn", "fail")
        assert (found.validation.fetch, found.validation.enabled) == (2**20, True)


def test_names_of_files_as_windows_writes_them(tmp_path: Path) -> None:
    config = read_config(plant(tmp_path, GUIDE.replace("config/source_config", "config\\\\source_config")))
    assert config["source_workspace_config"] == SOURCE


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_mark_of_its_byte_order(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text('// é\n{"b": "é"}', encoding=encoding)
    assert read_document(tmp_path / "a.json") == {"b": "é"}


def test_what_yaml_reads_as_a_date_is_a_version(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("assets: [{name: a, versions: [2025-08-27]}]")
    assert read_document(tmp_path / "a.yaml") == {"assets": [{"name": "a", "versions": ["2025-08-27"]}]}
    (tmp_path / "a.yaml").write_text("assets: !!set {a}")
    with pytest.raises(BadConfig, match="type that a spec cannot have"):
        read_document(tmp_path / "a.yaml")


def test_comments_are_none_within_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"url": "https://x//y", /* ",}" */ "b": "/*",}')
    assert read_document(tmp_path / "a.json") == {"url": "https://x//y", "b": "/*"}
