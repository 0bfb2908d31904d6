"""Fills a library from its specification; the same specification gives the same items, ids, dates and bytes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from local.emulators.estate import Library as Specification
from local.emulators.graph.library import FILE, FOLDER, MARKS, NOTEBOOK, SECTION, SHORTCUT, Library

CREATED_S = 1_704_099_600.0
"""When every generated library came to be: 1 January 2024, 09:00 UTC."""

_STEMS = ("Invoice", "Credit note", "Delivery", "Receipt", "Statement")
_EXTENSIONS = ("pdf", "pdf", "pdf", "pdf", "docx", "xlsx", "csv", "png", "txt", "xml")
_PROMOTED_EXTENSIONS = ("docx", "xlsx", "pptx")
_UNICODE = ("Übersicht Straße №{}.pdf", "請求書 {}.pdf", "Facture d’été n°{} 🧾.pdf", "50 % off #{} & more + 'x'.txt")
# SharePoint takes paths of up to 400 characters, counted with those of the site and the library.
_LONG_PATH_CHARACTERS = 360
_FOLDER_NAMES: tuple[Callable[[int], str], ...] = (
    lambda number: str(2024 + number),
    lambda number: f"{number + 1:02d}",
    lambda number: f"Part {number + 1}",
)


def generate(specification: Specification, identity: str) -> Library:
    """Returns a new library, filled."""
    chance = random.Random(f"{specification.seed}:{specification.name}")  # noqa: S311 - repeatable, not secret
    library = Library(specification.name, identity, specification.seed, CREATED_S, system=specification.system)
    folders = _leaf_folders(library, specification)
    low, high = specification.sizes
    draw = chance.random
    for number in range(specification.items):
        name = f"{_STEMS[int(draw() * 5)]} {number + 1:06d}.{_EXTENSIONS[int(draw() * 10)]}"
        size = low + int(draw() * (high - low + 1))
        folder = folders[number // specification.folder_items]
        slot = library.add(folder, name, FILE, size, CREATED_S + 60 * number, logged=False)
        library.modified[slot] += int(draw() * 86400)
    for special, count in specification.specials.items():
        for number in range(1, count + 1):
            _SPECIALS[special](library, number)
    order = list(range(1, len(library.names)))
    if specification.order == "shuffled":
        chance.shuffle(order)
    for slot in order:
        library.log_change(slot, CREATED_S)
    return library


def _leaf_folders(library: Library, specification: Specification) -> list[int]:
    """The folders for the files, as even a tree of the wanted depth as there is."""
    count = max(1, math.ceil(specification.items / specification.folder_items))
    depth = specification.depth
    if depth == 0:
        return [0] * count
    width = max(1, math.ceil(round(count ** (1 / depth), 6)))
    made: dict[tuple[int, ...], int] = {(): 0}
    leaves = []
    for number in range(count):
        digits = tuple(number // width**level % width for level in range(depth - 1, -1, -1))
        for level in range(depth):
            if digits[: level + 1] not in made:
                name = _FOLDER_NAMES[min(level, 2)](digits[level])
                parent = made[digits[:level]]
                made[digits[: level + 1]] = library.add(parent, name, FOLDER, 0, CREATED_S, logged=False)
        leaves.append(made[digits])
    return leaves


def _folder(library: Library, path: str) -> int:
    slot = 0
    for part in path.split("/"):
        found = library.find(f"{library.path(slot)}/{part}")
        slot = library.add(slot, part, FOLDER, 0, CREATED_S, logged=False) if found is None else found
    return slot


def _file(library: Library, path: str, size: int) -> int:
    folder, _, name = path.rpartition("/")
    parent = _folder(library, folder) if folder else 0
    return library.add(parent, name, FILE, size, CREATED_S, logged=False)


def _marked(mark: str, *extensions: str) -> Callable[[Library, int], None]:
    def make(library: Library, number: int) -> None:
        name = f"{mark} {number}.{extensions[number % len(extensions)]}"
        library.marks[_file(library, f"Special/{name}", 5000 + number)] = MARKS[mark]

    return make


def _case(library: Library, number: int) -> None:
    _file(library, f"Case {number}/upper/Report.TXT", 3000)
    _file(library, f"Case {number}/lower/report.txt", 3001)


def _long_path(library: Library, number: int) -> None:
    path = f"Long {number}"
    while len(path) < _LONG_PATH_CHARACTERS - 60:
        path += f"/a folder whose name is long enough to matter {len(path):03d}"
    _file(library, f"{path}/{'x' * (_LONG_PATH_CHARACTERS - len(path) - 5)}.txt", 2000)


def _onenote(library: Library, number: int) -> None:
    notebook = library.add(0, f"Notebook {number}", NOTEBOOK, 0, CREATED_S, logged=False)
    for name, size in (("Section.one", 7000), ("Open Notebook.onetoc2", 4000)):
        library.add(notebook, name, SECTION, size, CREATED_S, logged=False)


def _shortcut(library: Library, number: int) -> None:
    library.add(0, f"Shortcut {number}", SHORTCUT, 0, CREATED_S, logged=False)


def _trailing_dot(library: Library, number: int) -> None:
    _file(library, f"Special/ends in a dot {number}.", 2500)
    _file(library, f"Folder {number}./inside.txt", 2501)


_SPECIALS: dict[str, Callable[[Library, int], object]] = {
    "case": _case,
    "checked_out": _marked("checked_out", "docx"),
    "dlp_blocked": _marked("dlp_blocked", "pdf"),
    "empty_file": lambda library, number: _file(library, f"Special/empty {number}.txt", 0),
    "empty_folder": lambda library, number: _folder(library, f"Empty {number}/and empty inside"),
    "hash_pending": _marked("hash_pending", "pdf"),
    "locked": _marked("locked", "xlsx"),
    "long_path": _long_path,
    "malware": _marked("malware", "exe"),
    "onenote": _onenote,
    "promoted": _marked("promoted", *_PROMOTED_EXTENSIONS),
    "shortcut": _shortcut,
    "trailing_dot": _trailing_dot,
    "unicode": lambda library, number: _file(
        library, f"Ünïcödé/{_UNICODE[number % len(_UNICODE)].format(number)}", 2200 + number
    ),
}
