"""The demo's source: PDF invoices of seeded content, under names that have broken migrations before."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SMALLEST_BYTES: Final = 2 * 1024
_LARGEST_BYTES: Final = 3 * 1024 * 1024
# With these two the sizes have a median of 110 KB and a mean of 180 KB: many small ones and a few large scans.
_SIZE_MU: Final = 11.6
_SIZE_SIGMA: Final = 1.0
# More than one block of an upload.
_LARGE_SCAN_BYTES: Final = 9 * 1024 * 1024
_CUSTOMERS: Final = ("Adatum", "Contoso", "Fabrikam", "Litware", "Northwind", "Proseware", "Tailspin", "Wingtip")
_ARTICLES: Final = ("Consulting", "Licences", "Maintenance", "Hardware", "Training", "Freight")
_WRITERS: Final = 4

_DEEP: Final = "archive/2019/Q4/December/week 51/region north/branch 12/desk 3"
_COMPOSED: Final = unicodedata.normalize("NFC", "special/Café crème.pdf")
_DECOMPOSED: Final = unicodedata.normalize("NFD", "special/Café crème.pdf")
SPECIAL_NAMES: Final = (
    "special/empty.pdf",
    "special/large scan.pdf",
    "special/name with  spaces.pdf",
    "special/invoice #7.pdf",
    "special/100% paid.pdf",
    "special/%20 is not a space.pdf",
    "special/a+b.pdf",
    "special/Research & Development.pdf",
    "special/O'Brien's.pdf",
    "special/a;b,c=d@e!(f)[g]{h}~$.pdf",
    "special/🧾 receipt 👩‍💻.pdf",
    "special/請求書 счёт فاتورة.pdf",
    _COMPOSED,
    _DECOMPOSED,
    "special/" + ("two hundred characters " * 9)[:196] + ".pdf",
    f"{_DEEP}/eight levels down.pdf",
    "special/Case.pdf",
    "special/case.pdf",
)
"""Always there, however few files are asked for."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What was made.

    Attributes:
        files: How many.
        size_bytes: Of all together.
        notes: What this file system made impossible, in sentences.
    """

    files: int
    size_bytes: int
    notes: list[str]


def plan_names(count: int, seed: int) -> list[str]:
    """Relative paths of ``count`` files, at least those of `SPECIAL_NAMES`; the same for the same arguments."""
    names = list(SPECIAL_NAMES)
    for number in range(max(0, count - len(names))):
        draw = random.Random(f"{seed}/name/{number}")  # noqa: S311 - sample data, not a secret
        customer = draw.choice(_CUSTOMERS)
        names.append(f"{draw.choice((2023, 2024, 2025))}/{draw.randint(1, 12):02d}/{customer} {number + 1:05d}.pdf")
    return names


def make_sources(folder: Path, count: int, seed: int, progress: Callable[[int, int], None]) -> Sources:
    """Write the files below ``folder``, which is made.

    Args:
        folder: Where; must be empty or missing.
        count: How many; fewer than there are special names makes just those.
        seed: The same seed gives the same bytes under the same names.
        progress: Told how many of how many are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, notes = _without_collisions(folder, plan_names(count, seed))
    size_bytes = 0
    with ThreadPoolExecutor(_WRITERS) as pool:
        for done, written in enumerate(pool.map(lambda name: write_invoice(folder, name, seed), names), 1):
            size_bytes += written
            progress(done, len(names))
    return Sources(len(names), size_bytes, notes)


def write_invoice(folder: Path, name: str, seed: int, *, revision: int = 0) -> int:
    """Write one file; another ``revision`` has other bytes. Returns its size in bytes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"" if name == SPECIAL_NAMES[0] else invoice_pdf(name, seed, revision)
    path.write_bytes(content)
    return len(content)


def _without_collisions(folder: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """The names that this file system tells apart, and a note for each that it does not."""
    pairs = (
        ("special/Case.pdf", "special/case.pdf", "upper and lower case"),
        (_COMPOSED, _DECOMPOSED, "composed and decomposed accents"),
    )
    notes = []
    for kept, dropped, what in pairs:
        probe = folder / Path(kept).name
        probe.write_bytes(b"")
        if (folder / Path(dropped).name).exists():
            names = [name for name in names if name != dropped]
            notes.append(f"This file system does not tell {what} apart, so that pair is left out.")
        probe.unlink()
    return names, notes


# One page: text on top, below it a grey image, which is what gives a scan its size.


def invoice_pdf(name: str, seed: int, revision: int = 0) -> bytes:
    """A PDF 1.4 of one page that shows an invoice; its bytes depend on the arguments alone."""
    draw = random.Random(f"{seed}/content/{name}/{revision}")  # noqa: S311 - sample data, not a secret
    size_bytes = min(_LARGEST_BYTES, max(_SMALLEST_BYTES, int(draw.lognormvariate(_SIZE_MU, _SIZE_SIGMA))))
    if name == SPECIAL_NAMES[1]:
        size_bytes = _LARGE_SCAN_BYTES
    text = _page_text(draw, revision)
    width = 16 if size_bytes < 16 * 1024 else 256
    # What surrounds the image takes about 1.5 KB.
    height = max(1, (size_bytes - 1500) // width)
    pixels = draw.randbytes(width * height)
    image = (
        f"<< /Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceGray "
        f"/BitsPerComponent 8 /Length {len(pixels)} >>"
    )
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> /XObject << /Scan 6 0 R >> >> >>",
        _stream(f"<< /Length {len(text)} >>", text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        _stream(image, pixels),
    ]
    return _assembled(objects)


def _page_text(draw: random.Random, revision: int) -> bytes:
    lines = [f"INVOICE {draw.randint(10_000, 99_999)}-{draw.randint(1, 99):02d}", f"To: {draw.choice(_CUSTOMERS)} Ltd"]
    if revision:
        lines.append(f"Amended, revision {revision}")
    total_cents = 0
    for position in range(1, draw.randint(3, 8)):
        cents = draw.randint(999, 999_999)
        total_cents += cents
        lines.append(f"{position}.  {draw.choice(_ARTICLES):<14} EUR {cents / 100:>10,.2f}")
    lines.append(f"Total due: EUR {total_cents / 100:,.2f}")
    shown = "".join(f"({line}) Tj T*\n" for line in lines)
    return f"BT /F1 14 Tf 20 TL 60 780 Td\n{shown}ET\nq 475 0 0 400 60 60 cm /Scan Do Q\n".encode("ascii")


def _stream(dictionary: str, content: bytes) -> bytes:
    return dictionary.encode("ascii") + b"\nstream\n" + content + b"\nendstream"


def _assembled(objects: list[bytes]) -> bytes:
    """The file: header, objects, and the table that tells where each begins (ISO 32000-1, 7.5)."""
    # The bytes above 127 in the second line tell programs that the file is binary.
    parts = [b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"]
    offsets = []
    position = len(parts[0])
    for number, content in enumerate(objects, 1):
        offsets.append(position)
        parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, content))
        position += len(parts[-1])
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    parts.append(
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{position}\n%%EOF\n".encode("ascii")
    )
    return b"".join(parts)
