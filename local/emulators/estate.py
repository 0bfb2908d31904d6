"""What the emulated tenant holds from the start: workspaces and items, sites and libraries, clients and their roles.

Workspaces and items are known in advance because OneLake makes neither: they come from Fabric. The identifiers of
the default estate are constants, so that documentation can show them; the secrets are made up and open nothing
but these emulators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Role = Literal["contributor", "reader"]
SiteRole = Literal["read", "write", "owner", "fullcontrol"]
Special = Literal[
    "case",
    "checked_out",
    "dlp_blocked",
    "empty_file",
    "empty_folder",
    "hash_pending",
    "locked",
    "long_path",
    "malware",
    "onenote",
    "promoted",
    "shortcut",
    "trailing_dot",
    "unicode",
]

FOLDERS_BY_TYPE: dict[str, tuple[str, ...]] = {"Lakehouse": ("Files", "Tables"), "Warehouse": ("Files", "Tables")}
"""First-level folders of an item; the service owns them."""

WRITABLE_BY_TYPE: dict[str, tuple[str, ...]] = {"Lakehouse": ("Files", "Tables"), "Warehouse": ()}
"""Where a client may write: a PUT under Warehouse/Files is refused (recorded, docs/protocols/onelake.md section 2)."""


class ConfigurationMistake(Exception):
    """A file the user wrote cannot be used; the message is one sentence for that user."""


def first_mistake(error: ValidationError) -> str:
    """Returns the first validation error as `where: what`."""
    details = error.errors()[0]
    return f"{'.'.join(str(part) for part in details['loc']) or 'document'}: {details['msg']}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(_Strict):
    """A lakehouse or warehouse."""

    name: str
    id: str
    type: Literal["Lakehouse", "Warehouse"]

    @property
    def full_name(self) -> str:
        """The item as a path segment by name, e.g. ``Landing.Lakehouse``."""
        return f"{self.name}.{self.type}"


class Workspace(_Strict):
    """A workspace; on a paused capacity every OneLake call is refused."""

    name: str
    id: str
    capacity: Literal["active", "paused"] = "active"
    items: list[Item] = Field(default_factory=list)

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError("a workspace name must be usable as a folder name")
        return name


class Library(_Strict):
    """A document library and how it is filled; the same specification gives the same library.

    Attributes:
        items: how many files, not counting the specials.
        seed: of names, sizes, dates and bytes.
        depth: levels of folders above most of the files.
        folder_items: files of one folder.
        sizes: smallest and largest file in bytes.
        specials: how many of each out-of-the-ordinary thing to add (``case`` and ``trailing_dot`` add several items).
        order: what the change feed tells first: parents, or anything.
        system: hidden from a listing that does not select the ``system`` facet.
    """

    name: str = Field(min_length=1, pattern=r"^[^/\\:*?\"<>|]+$")
    items: int = Field(default=0, ge=0, le=2_000_000)
    seed: int = 0
    depth: int = Field(default=2, ge=0, le=8)
    folder_items: int = Field(default=200, ge=1)
    sizes: tuple[int, int] = (2 * 1024, 60 * 1024)
    specials: dict[Special, int] = Field(default_factory=dict)
    order: Literal["parents_first", "shuffled"] = "parents_first"
    system: bool = False

    @model_validator(mode="after")
    def _has_a_range_of_sizes(self) -> Self:
        if not 0 <= self.sizes[0] <= self.sizes[1]:
            raise ValueError("sizes must be the smallest and the largest, in bytes")
        return self


class Site(_Strict):
    """A SharePoint site; ``address`` is ``<hostname>:/<path>`` as in Graph, or the host name alone for its root."""

    address: str = Field(pattern=r"^[a-z0-9.-]+(:/[^:]+)?$")
    libraries: list[Library] = Field(default_factory=list)

    @model_validator(mode="after")
    def _tells_its_libraries_apart(self) -> Self:
        if len({library.name.casefold() for library in self.libraries}) != len(self.libraries):
            raise ValueError("the libraries of a site need names that differ")
        return self

    @property
    def hostname(self) -> str:
        """E.g. ``contoso.sharepoint.com``."""
        return self.address.partition(":")[0]

    @property
    def path(self) -> str:
        """Relative to the server, without a slash at either end; empty for the root."""
        return self.address.partition(":")[2].strip("/")


class GraphBehaviour(_Strict):
    """How Graph answers, where the real service leaves it open or a test wants it otherwise.

    Attributes:
        licences: of the tenant; decides the resource units per minute. None: no limit.
        units_per_minute: that limit itself.
        minute_s: how long the limit's minute lasts.
        throttle_first: refuse that many requests from now on, whatever was used.
        retry_after_s: for those; otherwise it is what is left of the minute.
        download_lifetime_s: of a pre-authenticated URL.
        ignore_ranges: answer a range with the whole file.
        page_items: of a page when the client asks for no number.
        most_page_items: of a page whatever the client asks for.
        empty_page_every: of the pages of a delta walk, each so many-th is empty; 0 for none.
        late_changes: whether a walk goes on to what has changed since it began, or leaves it to the next.
        resync: what the 410 for a token asks for.
    """

    licences: int | None = Field(default=None, ge=0)
    units_per_minute: int | None = Field(default=None, ge=0)
    minute_s: float = Field(default=60, gt=0)
    throttle_first: int = Field(default=0, ge=0)
    retry_after_s: float = Field(default=1, ge=0)
    download_lifetime_s: float = Field(default=300, ge=0)
    ignore_ranges: bool = False
    page_items: int = Field(default=200, ge=1, le=65535)
    most_page_items: int = Field(default=1000, ge=1, le=65535)
    empty_page_every: int = Field(default=8, ge=0)
    late_changes: Literal["walk", "next"] = "walk"
    resync: Literal["resyncChangesApplyDifferences", "resyncChangesUploadDifferences"] = "resyncChangesApplyDifferences"


class Client(_Strict):
    """An application registration.

    ``roles`` maps workspace names to what it may do there, ``sites`` addresses of sites to what it was granted there.
    """

    name: str
    id: str
    secret: str
    roles: dict[str, Role] = Field(default_factory=dict)
    sites: dict[str, SiteRole] = Field(default_factory=dict)


class Estate(_Strict):
    """The whole tenant."""

    tenant_id: str
    workspaces: list[Workspace]
    clients: list[Client]
    sites: list[Site] = Field(default_factory=list)
    graph: GraphBehaviour = GraphBehaviour()

    def client(self, client_id: str) -> Client | None:
        """Returns the client with that id, or None."""
        return next((client for client in self.clients if client.id == client_id), None)


_EVERYWHERE = ("Migration", "Second Workspace", "Paused")
_FINANCE = "contoso.sharepoint.com:/sites/finance"

DEFAULT_ESTATE = Estate(
    tenant_id="7e0a1d00-0000-4000-8000-000000000001",
    workspaces=[
        Workspace(
            name="Migration",
            id="a1b2c3d4-0001-4000-8000-00000000000a",
            items=[
                Item(name="Landing", id="a1b2c3d4-0001-4000-8000-000000000001", type="Lakehouse"),
                Item(name="Archive", id="a1b2c3d4-0001-4000-8000-000000000002", type="Lakehouse"),
                Item(name="Finance", id="a1b2c3d4-0001-4000-8000-000000000003", type="Warehouse"),
            ],
        ),
        Workspace(
            name="Second Workspace",
            id="a1b2c3d4-0002-4000-8000-00000000000a",
            items=[Item(name="Landing", id="a1b2c3d4-0002-4000-8000-000000000001", type="Lakehouse")],
        ),
        Workspace(
            name="Paused",
            id="a1b2c3d4-0003-4000-8000-00000000000a",
            capacity="paused",
            items=[Item(name="Landing", id="a1b2c3d4-0003-4000-8000-000000000001", type="Lakehouse")],
        ),
    ],
    clients=[
        Client(
            name="migrator",
            id="c1000000-0000-4000-8000-000000000001",
            secret="emulator-only-migrator",  # noqa: S106 - opens nothing but the emulators
            roles=dict.fromkeys(_EVERYWHERE, "contributor"),
            sites={_FINANCE: "read"},
        ),
        Client(
            name="reader",
            id="c1000000-0000-4000-8000-000000000002",
            secret="emulator-only-reader",  # noqa: S106
            roles=dict.fromkeys(_EVERYWHERE, "reader"),
        ),
        Client(
            name="outsider",
            id="c1000000-0000-4000-8000-000000000003",
            secret="emulator-only-outsider",  # noqa: S106
        ),
    ],
    sites=[
        Site(
            address=_FINANCE,
            libraries=[
                Library(name="Invoices", items=48, seed=1, folder_items=8),
                Library(
                    name="Documents",
                    items=6,
                    seed=2,
                    depth=1,
                    folder_items=3,
                    specials={special: 2 if special in ("promoted", "unicode") else 1 for special in get_args(Special)},
                    order="shuffled",
                ),
            ],
        )
    ],
)


def load_estate(path: Path) -> Estate:
    """Reads an estate from YAML or JSON.

    Raises:
        ConfigurationMistake: the file cannot be read or does not describe an estate.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationMistake(f"The configuration {path} cannot be read: {error}") from error
    try:
        estate = Estate.model_validate(document)
    except ValidationError as error:
        raise ConfigurationMistake(f"The configuration {path} is wrong at {first_mistake(error)}") from error
    for client in estate.clients:
        for kind, named, known in (
            ("workspace", client.roles, {workspace.name for workspace in estate.workspaces}),
            ("site", client.sites, {site.address for site in estate.sites}),
        ):
            for name in named:
                if name not in known:
                    raise ConfigurationMistake(
                        f"The configuration {path} gives {client.name!r} a role on an unknown {kind} {name!r}"
                    )
    return estate
