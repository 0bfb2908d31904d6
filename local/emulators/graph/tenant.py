"""The SharePoint side of a tenant: its sites, its libraries, who was granted what, and every change made to them.

Changes come from the switchboard only. Each is written down and made again on the next start, so that emulators started
anew on a root hold what they held, as they do in OneLake.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from local.emulators.estate import ConfigurationMistake, Estate, SiteRole, first_mistake
from local.emulators.graph.generator import generate
from local.emulators.graph.items import Drive, Site, make_drive
from local.emulators.graph.library import KIND_NAMES, MARKS, ChangeRefused


class Change(BaseModel):
    """One change, as the switchboard takes it.

    Attributes:
        op: ``put`` adds a file or gives it other content, ``folder`` adds a folder, ``touch`` changes metadata only,
            ``mark`` puts a file into a special state or out of it (``on``), ``move`` goes to the folder ``to`` and may
            rename, ``expire_tokens`` gives up the delta tokens of a library, or of all, ``expire_downloads`` every
            pre-authenticated URL, ``grant`` changes what the client with an id may do on a site.
        library: by name, for all that concern one.
        site: its address; needed where the name of the library is not unique, and for ``grant``.
        content: in Base64; without it the bytes are generated.
        descendants: whether the feed tells of everything in a deleted folder, or of the folder alone.
        role: None takes the grant away.
        when_s: filled in.
    """

    model_config = ConfigDict(extra="forbid")

    op: Literal[
        "put",
        "folder",
        "delete",
        "restore",
        "rename",
        "move",
        "touch",
        "mark",
        "expire_tokens",
        "expire_downloads",
        "grant",
    ]
    library: str | None = None
    site: str | None = None
    path: str = ""
    size: int | None = None
    content: str | None = None
    name: str | None = None
    to: str | None = None
    mark: str = ""
    on: bool = True
    descendants: bool = True
    client_id: str = ""
    role: SiteRole | None = None
    when_s: float | None = None


_CHANGES = TypeAdapter(list[Change])


def parse_changes(document: Any) -> list[Change]:
    """Validates changes that came as JSON.

    Raises:
        ChangeRefused: names what is wrong.
    """
    try:
        return _CHANGES.validate_python(document)
    except ValidationError as error:
        raise ChangeRefused(f"The changes are wrong at {first_mistake(error)}") from error


class Tenant:
    """Sites and libraries, as they are now.

    Args:
        folder: where the changes are written down.
    """

    def __init__(self, estate: Estate, folder: Path) -> None:
        self.id = estate.tenant_id
        self.sites = [Site(specification) for specification in estate.sites]
        self.drives: list[Drive] = []
        self.grants: dict[str, dict[str, SiteRole]] = {client.id: dict(client.sites) for client in estate.clients}
        self.download_epoch = 0
        for site, specification in zip(self.sites, estate.sites, strict=True):
            for filled in specification.libraries:
                library = generate(filled, f"{site.address}/{filled.name}")
                self.drives.append(make_drive(len(self.drives), site, library))
        self._drives = {drive.id: drive for drive in self.drives}
        # With other libraries the changes would be about other things.
        stated = json.dumps([site.model_dump() for site in estate.sites], sort_keys=True)
        digest = hashlib.sha256(stated.encode()).hexdigest()[:16]
        self._log = folder / f"graph-changes-{digest}.jsonl"
        self._make_again()

    def drive(self, drive_id: str) -> Drive | None:
        """Returns the drive with that id, or None."""
        return self._drives.get(drive_id)

    def drives_of(self, site: Site) -> list[Drive]:
        """Returns the drives of a site."""
        return [drive for drive in self.drives if drive.site is site]

    def may_read(self, client_id: str, site: Site) -> bool:
        """Whether the application was granted anything on the site."""
        return site.address in self.grants.get(client_id, {})

    def find(self, library: str | None, site: str | None) -> Drive:
        """Returns the drive of the library with that name.

        Raises:
            ChangeRefused: there is none, or more than one.
        """
        found = [drive for drive in self.drives if drive.library.name == library and site in (None, drive.site.address)]
        if len(found) != 1:
            kind = "more than one" if found else "no"
            raise ChangeRefused(f"There is {kind} library {library!r} on {site or 'the sites of the estate'}.")
        return found[0]

    def _make_again(self) -> None:
        try:
            text = self._log.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        *lines, torn = text.split("\n")
        if torn:
            # Nobody was told of a change whose line a kill cut short.
            self._log.write_text(text.removesuffix(torn), encoding="utf-8")
        try:
            for line in lines:
                self._make(Change.model_validate_json(line))
        except (ValueError, ChangeRefused) as error:
            raise ConfigurationMistake(f"The changes in {self._log} cannot be made again: {error}") from error

    def apply(self, changes: list[Change]) -> list[dict[str, Any]]:
        """Makes changes in order, and returns what each item is then.

        Raises:
            ChangeRefused: one cannot be made; those before it are.
        """
        results = []
        with self._log.open("a", encoding="utf-8") as log:
            for change in changes:
                change.when_s = round(time.time(), 3)
                results.append(self._make(change))
                log.write(change.model_dump_json(exclude_defaults=True) + "\n")
                log.flush()
        return results

    def _make(self, change: Change) -> dict[str, Any]:
        when_s = change.when_s or 0.0
        match change.op:
            case "grant":
                return self._grant(change)
            case "expire_downloads":
                self.download_epoch += 1
                return {"downloads": "expired"}
            case "expire_tokens":
                given_up = [self.find(change.library, change.site)] if change.library else self.drives
                for drive in given_up:
                    drive.library.epoch += 1
                return {"tokens": "expired"}
        drive = self.find(change.library, change.site)
        library = drive.library
        match change.op:
            case "put":
                slot = library.put(change.path, change.size, _decoded(change.content), when_s)
            case "folder":
                slot = library.folder(change.path, when_s)
            case "delete":
                slot = library.delete(change.path, when_s, tells_descendants=change.descendants)
            case "restore":
                slot = library.restore(change.path, when_s)
            case "rename":
                slot = library.move(change.path, change.path.rpartition("/")[0], change.name, when_s)
            case "move":
                slot = library.move(change.path, change.to or "", change.name, when_s)
            case "touch":
                slot = library.touch(change.path, when_s)
            case "mark":
                if change.mark not in MARKS:
                    raise ChangeRefused(f"The marks are {', '.join(MARKS)}.")
                slot = library.mark(change.path, change.mark, on=change.on, when_s=when_s)
        return {
            "id": library.item_id(slot),
            "drive_id": drive.id,
            "path": library.path(slot),
            "kind": KIND_NAMES[library.kinds[slot]],
            "deleted": bool(library.gone[slot]),
        }

    def _grant(self, change: Change) -> dict[str, Any]:
        granted = self.grants.get(change.client_id)
        if granted is None or change.site not in {site.address for site in self.sites}:
            raise ChangeRefused("A grant names the client_id of a client and the address of a site of the estate.")
        assert change.site is not None
        granted.pop(change.site, None)
        if change.role is not None:
            granted[change.site] = change.role
        return {"grants": granted}


def _decoded(content: str | None) -> bytes | None:
    try:
        return None if content is None else base64.b64decode(content, validate=True)
    except binascii.Error:
        raise ChangeRefused("The content is not Base64.") from None
