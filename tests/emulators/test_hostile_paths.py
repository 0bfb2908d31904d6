"""Names that people really use, and paths that try to get out."""

from __future__ import annotations

import unicodedata
import urllib.parse

import pytest
from azure.storage.filedatalake import FileSystemClient

from local.emulators.launch import RunningEmulators
from tests.emulators.wire_client import WireClient, quoted

FILES = "/Migration/Landing.Lakehouse/Files"
NAMES = [
    "with space",
    " leading and trailing ",
    "hash#and&ampersand",
    "100%",
    "literal %41",
    "plus+plus",
    "quote'and\"double",
    "semi;colon,comma=equals",
    "emoji \U0001f680",
    "back\\slash",
    "query?mark",
    "~tilde",
    "x" * 200,
    "長" * 200,
    "Ж" * 255,
    unicodedata.normalize("NFC", "Müller"),
    unicodedata.normalize("NFD", "Müller"),
    "UPPER",
    "upper",
    "name~" + "0" * 64,
    "..hidden",
    "...a",
]


def test_names_come_back_as_they_went(lake: FileSystemClient, wire: WireClient, folder: str) -> None:
    for name in NAMES:
        lake.get_file_client(f"{folder}/{name}").upload_data(name.encode(), overwrite=True)
    assert sorted(path.name for path in lake.get_paths(folder)) == sorted(f"{folder}/{name}" for name in NAMES)
    for name in NAMES:
        assert lake.get_file_client(f"{folder}/{name}").download_file().readall() == name.encode()
        target = f"/Migration/{quoted(folder)}/{urllib.parse.quote(name, safe='')}"
        moved = wire.send("PUT", f"{target}.moved", {"x-ms-rename-source": target})
        assert moved.status == 201, (name, moved)
    assert sorted(path.name for path in lake.get_paths(folder)) == sorted(f"{folder}/{name}.moved" for name in NAMES)


def test_short_names_lie_on_disk_as_they_are(emulators: RunningEmulators, lake: FileSystemClient, folder: str) -> None:
    names = [name for name in NAMES if len(name.encode()) <= 255 and "~0" not in name]
    for name in names:
        lake.create_file(f"{folder}/{name}")
    on_disk = emulators.lake_folder / "Migration" / folder
    assert sorted(file.name for file in on_disk.iterdir()) == sorted(names)


def test_long_folder_names(lake: FileSystemClient, folder: str) -> None:
    path = f"{folder}/{'ü' * 180}/{'ß' * 180}/file"
    lake.get_file_client(path).upload_data(b"deep", overwrite=True)
    assert [found.name for found in lake.get_paths(folder)][-1] == path
    assert lake.get_file_client(path).download_file().readall() == b"deep"


@pytest.mark.parametrize(
    "tail",
    [
        "../x",
        "a/../../x",
        "%2e%2e/x",
        "..%2fx",
        "%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fx",
        "a/./b",
        "a//b",
        "nul%00byte",
        "bell%07",
        "del%7f",
        "private%EE%80%80use",
        "trailing.",
        "trailing./x",
        "x" * 1025,
    ],
)
def test_invalid_names_are_refused(emulators: RunningEmulators, wire: WireClient, tail: str) -> None:
    before = sorted(emulators.root.parent.rglob("x"))
    for answer in (
        wire.send("PUT", f"{FILES}/{tail}?resource=file"),
        wire.send("GET", f"{FILES}/{tail}"),
        wire.send("PUT", f"{FILES}/ok", {"x-ms-rename-source": f"{FILES}/{tail}"}),
        wire.send("PUT", f"{FILES}/{tail}", {"x-ms-blob-type": "BlockBlob"}, b""),
    ):
        assert (answer.status, answer.code) == (400, "InvalidResourceName"), answer
    directory = "Landing.Lakehouse/Files/" + urllib.parse.unquote(tail)
    answer = wire.send(
        "GET", f"/Migration?resource=filesystem&recursive=true&directory={urllib.parse.quote(directory, safe='')}"
    )
    assert answer.code == "InvalidResourceName"
    assert sorted(emulators.root.parent.rglob("x")) == before


def test_a_workspace_cannot_climb_either(wire: WireClient) -> None:
    for target in (
        "/..?resource=file",
        "/%2e%2e/Landing.Lakehouse/Files/x?resource=file",
        "/%2e%2e%2fetc/a.Lakehouse/b",
    ):
        assert wire.send("PUT", target).status in (400, 404)


def test_bytes_that_are_not_utf8(wire: WireClient) -> None:
    answer = wire.send("PUT", f"{FILES}/%ff%fe?resource=file")
    assert (answer.status, answer.code) == (400, "InvalidUri")


def test_depth(wire: WireClient, folder: str) -> None:
    deep = "/".join("d" for _ in range(56))
    assert wire.send("PUT", f"/Migration/{quoted(folder)}/{deep}?resource=file").status == 201
    answer = wire.send("PUT", f"/Migration/{quoted(folder)}/{deep}/d?resource=file")
    assert (answer.status, answer.code) == (409, "PathIsTooDeep")


def test_the_longest_path(lake: FileSystemClient, folder: str) -> None:
    path = f"{folder}/" + "/".join("長" * 20 for _ in range(40))
    lake.get_file_client(path).upload_data(b"far", overwrite=True)
    assert lake.get_file_client(path).download_file().readall() == b"far"
    assert lake.get_file_client(path).get_file_properties().size == 3


def test_header_injection(wire: WireClient, folder: str) -> None:
    import base64

    value = base64.b64encode(b"v\r\nX-Injected: yes").decode()
    answer = wire.send("PUT", f"/Migration/{quoted(folder)}/x?resource=file", {"x-ms-properties": f"k={value}"})
    assert (answer.status, answer.code) == (400, "InvalidHeaderValue")
