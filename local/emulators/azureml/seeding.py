"""Sample data assets: folders with a blueprint and files, made from a seed, put into an emulated workspace.

``sample_assets`` only makes them, ``seed_workspace`` uploads and registers them. The same seed gives the same bytes.
From a shell, for emulators that run with ``--azureml``:
``python -m local.emulators.azureml.seeding --root DIR [--workspace ws-source] [--seed 0]``.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from local.emulators.launch import ask_admin

DEFAULT_ROWS = 200
_REGIONS = ("north", "south", "east", "west")
_NAMES = ("Ada", "Bjørn", "Chloé", "Dmitri", "Emre", "Fátima", "Grace", "Hana")
# Fixed, so that the log of the Delta table does not change from one run to the next.
_DELTA_TIME_MS = 1_756_252_800_000


@dataclass(frozen=True)
class SampleAsset:
    """One version of a data asset.

    Attributes:
        trait: what it is a sample of, in a word.
        root: where its folder lies in the datastore, without a slash at the end.
        files: bytes by path below ``root``, the blueprint ``MLTable`` among them; ``../`` leads out of it.
        registered: False for one that has its files in storage and no entry in the workspace.
    """

    trait: str
    name: str
    version: str
    root: str
    files: Mapping[str, bytes]
    datastore: str = "workspaceblobstore"
    type: Literal["mltable", "uri_folder"] = "mltable"
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    archived: bool = False
    registered: bool = True

    @property
    def uri(self) -> str:
        """Its path in the short form."""
        return f"azureml://datastores/{self.datastore}/paths/{self.root}/"

    def blobs(self) -> dict[str, bytes]:
        """Bytes by blob name."""
        parent = self.root.rpartition("/")[0]
        return {
            f"{parent}/{path.removeprefix('../')}" if path.startswith("../") else f"{self.root}/{path}": data
            for path, data in self.files.items()
        }

    def write_to(self, folder: Path) -> Path:
        """Writes the files below a folder as they lie in storage; returns the asset's own folder."""
        for name, data in self.blobs().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / self.root


def _blueprint(paths: list[dict[str, str]], *transformations: Any, **more: Any) -> bytes:
    document = {"type": "mltable", "paths": paths, "transformations": list(transformations), **more}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode()


def _csv(draw: random.Random, rows: int, first_id: int = 1) -> bytes:
    lines = ["id,name,region,balance,since"]
    for number in range(first_id, first_id + rows):
        day = f"20{draw.randint(10, 24)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
        balance = draw.randint(-50_000, 500_000) / 100
        lines.append(f"{number},{draw.choice(_NAMES)},{draw.choice(_REGIONS)},{balance:.2f},{day}")
    return ("\n".join(lines) + "\n").encode()


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    output = io.BytesIO()
    pq.write_table(pa.table(columns), output)
    return output.getvalue()


def _orders(draw: random.Random, rows: int) -> bytes:
    return _parquet(
        {
            "order_id": [draw.randint(1, 10**9) for _ in range(rows)],
            "region": [draw.choice(_REGIONS) for _ in range(rows)],
            "amount": [draw.randint(100, 99_999) / 100 for _ in range(rows)],
        }
    )


def _json_lines(draw: random.Random, rows: int) -> bytes:
    return "".join(
        json.dumps({"user": draw.randint(1, 500), "page": f"/{draw.choice(_REGIONS)}", "ms": draw.randint(1, 9_000)})
        + "\n"
        for _ in range(rows)
    ).encode()


def _delta(draw: random.Random, rows: int) -> dict[str, bytes]:
    """A table of one commit, written by hand: a library would put the time and a random name into it."""
    data = _parquet({"id": list(range(rows)), "amount": [draw.randint(1, 1000) for _ in range(rows)]})
    columns: list[dict[str, Any]] = [
        {"name": name, "type": "long", "nullable": True, "metadata": {}} for name in ("id", "amount")
    ]
    actions = [
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {
            "metaData": {
                "id": "de17a000-0000-4000-8000-000000000001",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": columns}),
                "partitionColumns": [],
                "configuration": {},
                "createdTime": _DELTA_TIME_MS,
            }
        },
        {
            "add": {
                "path": "part-00000.parquet",
                "partitionValues": {},
                "size": len(data),
                "modificationTime": _DELTA_TIME_MS,
                "dataChange": True,
            }
        },
    ]
    log = "".join(json.dumps(action) + "\n" for action in actions).encode()
    return {"part-00000.parquet": data, "_delta_log/00000000000000000000.json": log}


_DELIMITED: dict[str, Any] = {
    "read_delimited": {"delimiter": ",", "encoding": "utf8", "header": "all_files_same_headers"}
}


def sample_assets(
    workspace: Mapping[str, Any], public_url: str, *, seed: int = 0, rows: int = DEFAULT_ROWS
) -> list[SampleAsset]:
    """Makes the assets for a workspace.

    Args:
        workspace: as announced: ``subscription_id``, ``resource_group``, ``name``.
        public_url: where ``reference/countries.csv`` can be read by anyone, for the asset with a public path.
        seed: another one makes other rows.
        rows: of each file.
    """

    def draw(name: str) -> random.Random:
        return random.Random(f"{seed}:{name}")  # noqa: S311 - repeatable, not secret

    long = (
        f"azureml://subscriptions/{workspace['subscription_id']}/resourcegroups/{workspace['resource_group']}"
        f"/workspaces/{workspace['name']}/datastores/workspaceblobstore/paths"
    )
    partitions = [(2024, 11), (2024, 12), (2025, 1)]

    def orders(version: str) -> SampleAsset:
        random_orders = draw(f"orders {version}")
        files = {
            f"year={year}/month={month:02d}/part-0.parquet": _orders(random_orders, rows) for year, month in partitions
        }
        files["MLTable"] = _blueprint(
            [{"pattern": "./year=*/month=*/*.parquet"}],
            "read_parquet",
            {
                "extract_columns_from_partition_format": {
                    "partition_format": "/year={year}/month={month}/{file}.parquet"
                }
            },
        )
        return SampleAsset("versions", "orders_daily", version, f"sales/orders_daily/{version}", files)

    features = "features/customer_features/3"
    return [
        SampleAsset(
            "csv",
            "customer_profiles",
            "9",
            "crm/customer_profiles/9",
            {
                "MLTable": _blueprint(
                    [{"file": "./profiles-1.csv"}, {"file": "./profiles-2.csv"}],
                    _DELIMITED,
                    {"keep_columns": ["id", "region", "balance"]},
                    {"convert_column_types": [{"columns": "id", "column_type": "int"}]},
                ),
                "profiles-1.csv": _csv(draw("profiles 1"), rows),
                "profiles-2.csv": _csv(draw("profiles 2"), rows, rows + 1),
                # Belongs to the folder and to none of the paths.
                "README.md": b"# Customer profiles\n",
            },
            description="Profiles as of the last month",
            tags={"owner": "crm", "quality": "gold"},
        ),
        orders("9"),
        orders("12"),
        SampleAsset(
            "json lines",
            "clickstream",
            "1",
            "web/clickstream/1",
            {
                "MLTable": _blueprint(
                    [{"pattern": "./events/*.jsonl"}], {"read_json_lines": {"invalid_lines": "error"}}
                ),
                **{f"events/{hour:02d}.jsonl": _json_lines(draw(f"clicks {hour}"), rows) for hour in range(4)},
            },
        ),
        SampleAsset(
            "long uris",
            "customer_features",
            "3",
            features,
            {
                "MLTable": _blueprint(
                    [{"file": f"{long}/{features}/a.csv"}, {"pattern": f"{long}/{features}/more/*.csv"}],
                    _DELIMITED,
                    metadata={"made_in": f"{workspace['subscription_id']}/{workspace['name']}"},
                ),
                "a.csv": _csv(draw("features a"), rows),
                "more/b.csv": _csv(draw("features b"), rows, rows + 1),
            },
        ),
        SampleAsset(
            "public path",
            "country_reference",
            "1",
            "reference/country_reference/1",
            {"MLTable": _blueprint([{"file": f"{public_url}/reference/countries.csv"}], _DELIMITED)},
        ),
        SampleAsset(
            "leaves its root",
            "shared_lookup",
            "1",
            "lookups/shared_lookup",
            {
                "MLTable": _blueprint([{"file": "../common/lookup.csv"}, {"file": "./own.csv"}], _DELIMITED),
                "own.csv": _csv(draw("lookup own"), rows),
                "../common/lookup.csv": _csv(draw("lookup common"), rows),
            },
        ),
        SampleAsset(
            "delta",
            "sales_delta",
            "1",
            "sales/sales_delta/1",
            {
                "MLTable": _blueprint([{"folder": "./"}], {"read_delta_lake": {"version_as_of": 0}}),
                **_delta(draw("delta"), rows),
            },
        ),
        SampleAsset(
            "other datastore",
            "regional_stock",
            "1",
            "stock/regional_stock/1",
            {"MLTable": _blueprint([{"file": "./stock.csv"}], _DELIMITED), "stock.csv": _csv(draw("stock"), rows)},
            datastore="sas_store",
        ),
        SampleAsset(
            "archived",
            "retired_report",
            "2",
            "reports/retired_report/2",
            {"MLTable": _blueprint([{"file": "./report.csv"}], _DELIMITED), "report.csv": _csv(draw("report"), rows)},
            archived=True,
        ),
        SampleAsset(
            "not registered",
            "forgotten_table",
            "1",
            "attic/forgotten_table/1",
            {"MLTable": _blueprint([{"file": "./old.csv"}], _DELIMITED), "old.csv": _csv(draw("old"), rows)},
            registered=False,
        ),
        SampleAsset(
            "broken yaml",
            "broken_blueprint",
            "1",
            "attic/broken_blueprint/1",
            {"MLTable": b"type: mltable\npaths:\n  - file: [./a.csv\n", "a.csv": _csv(draw("broken"), rows)},
        ),
        SampleAsset(
            "no blueprint",
            "empty_folder",
            "1",
            "attic/empty_folder/1",
            {"notes.txt": b"The blueprint was deleted.\n"},
        ),
        SampleAsset(
            "other type",
            "raw_files",
            "1",
            "raw/raw_files/1",
            {"a.txt": b"a", "b/b.txt": b"b"},
            type="uri_folder",
        ),
    ]


def seed_workspace(
    addresses: Mapping[str, Any], workspace: str = "ws-source", *, seed: int = 0, rows: int = DEFAULT_ROWS
) -> list[SampleAsset]:
    """Uploads and registers the sample assets; again with the same seed it changes nothing.

    Args:
        addresses: what running emulators announced (``RunningEmulators.addresses``, ``<root>/emulators.json``).
        workspace: its name; needs the datastores of the default estate.
        seed: another one makes other rows.
        rows: of each file.

    Raises:
        ValueError: no account of the emulators has a public container.
        EmulatorsFailed: an asset exists with another path.
    """
    azureml = addresses["azureml"]
    found = azureml["workspaces"][workspace]
    publics = [(account, names[0]) for account, names in azureml["public_containers"].items()]
    if not publics:
        raise ValueError("The sample assets need a storage account with a public container.")
    account, container = publics[0]
    assets = sample_assets(found, f"{azureml['storage_urls'][account]}/{container}", seed=seed, rows=rows)
    countries = b"code,name\nDE,Deutschland\nFR,France\nNO,Norge\n"
    _upload(addresses, account, container, {"reference/countries.csv": countries})
    datastores = {datastore["name"]: datastore for datastore in found["datastores"]}
    for asset in assets:
        datastore = datastores[asset.datastore]
        _upload(addresses, datastore["account"], datastore["container"], asset.blobs())
    body = [
        {
            "workspace": workspace,
            "name": asset.name,
            "version": asset.version,
            "properties": {
                "dataType": asset.type,
                "dataUri": asset.uri,
                "description": asset.description or None,
                "tags": dict(asset.tags),
                "isArchived": asset.archived,
            },
        }
        for asset in assets
        if asset.registered
    ]
    ask_admin(addresses, "PUT", "/azureml/assets", json.dumps(body).encode())
    return assets


def _upload(addresses: Mapping[str, Any], account: str, container: str, blobs: Mapping[str, bytes]) -> None:
    from azure.storage.blob import ContainerClient

    azureml = addresses["azureml"]
    with ContainerClient(
        azureml["storage_urls"][account],
        container,
        credential=azureml["account_keys"][account],
        connection_verify=addresses["ca_bundle"],
        api_version="2023-11-03",
        retry_total=0,
    ) as client:
        for name, data in blobs.items():
            client.upload_blob(name, data, overwrite=True)


def main() -> int:
    """Seeds the emulators of a root; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m local.emulators.azureml.seeding", description="Sample data assets for running emulators."
    )
    parser.add_argument("--root", type=Path, required=True, help="of the emulators, started with --azureml")
    parser.add_argument("--workspace", default="ws-source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help="of each file")
    arguments = parser.parse_args()
    try:
        addresses = json.loads((arguments.root / "emulators.json").read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"no emulators have run on {arguments.root}: {error.strerror}")
    if not addresses.get("azureml"):
        parser.error("the emulators run without --azureml")
    for asset in seed_workspace(addresses, arguments.workspace, seed=arguments.seed, rows=arguments.rows):
        size = sum(map(len, asset.files.values()))
        sys.stdout.write(f"{asset.name}:{asset.version:4} {asset.trait:16} {len(asset.files)} files, {size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
