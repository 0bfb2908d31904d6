"""Which paths a lake takes, and how paths are ordered.

Facts: names are case-sensitive, at most 1024 characters for a path, fewer than 60 segments, no control characters, no
U+E000, no segment that ends in a dot (Azure Storage, "Naming
and referencing containers, blobs, and metadata"; ADLS Gen2's PathIsTooDeep).
"""

import hashlib
import re

MAX_PATH_CHARACTERS = 1024
MAX_SEGMENTS = 60

# A name that only this platform makes: what replaces a file lies here until it is renamed over it.
STAGING_PREFIX = ".olm-staging-"

_ROOTS = ("Files", "Tables")

# What `unmappable_reason` objects to within a segment, and a percent sign that would read as the mark of an escape.
_ESCAPED = re.compile(
    "[\x00-\x1f\x7f\ue000\ufffe\uffff\ud800-\udfff\\\\]"
    r"|\.(?=/|\Z)"
    rf"|(?:(?<=/)|\A)\.(?={re.escape(STAGING_PREFIX[1:])})"
    "|%(?=[0-9A-Fa-f]{2})"
)
_ESCAPES = re.compile("(?:%[0-9A-Fa-f]{2})+")


def staging_prefix(owner: str) -> str:
    """How the names begin under which ``owner`` (a job, which has one run at a time) keeps files on their way."""
    return f"{STAGING_PREFIX}{hashlib.sha256(owner.encode()).hexdigest()[:8]}-"


def sort_key(path: str) -> str:
    """A key that orders paths as a depth-first walk with sorted directories meets them.

    NUL sorts before every character that a name can hold, so comparing these strings compares the lists of segments.
    """
    return path.replace("/", "\x00")


def unmappable_reason(path: str) -> str | None:
    """Why the lake cannot take this relative path, or None if it can."""
    for character in path:
        code = ord(character)
        if code < 0x20 or code == 0x7F or code == 0xE000 or 0xFFFE <= code <= 0xFFFF:
            return f"holds the character U+{code:04X}, which a lake path cannot"
        if 0xD800 <= code <= 0xDFFF:
            return "is not valid UTF-8"
        if character == "\\":
            return "holds a backslash, which the service reads as a separator"
    segments = path.split("/")
    for segment in segments:
        if segment in ("", ".", ".."):
            return "has an empty, '.' or '..' segment"
        if segment.endswith("."):
            return f"has the segment {segment!r}, which ends in a dot"
        if segment.startswith(STAGING_PREFIX):
            return f"begins with {STAGING_PREFIX!r}, which is kept for files on their way"
    return None


def lake_path(path: str) -> str:
    """The path under which the lake takes what the source calls ``path``.

    Percent-encodes (UTF-8) the characters that a lake path cannot hold, a dot at the end of a segment, the first one
    of a staging name, and ``%`` where two hex digits follow; all else stays as it is. No two paths get the same one.

    Args:
        path: Segments, none of them empty.
    """
    return _ESCAPED.sub(lambda found: _escape(found[0]), path)


def source_path(path: str) -> str:
    """What the source calls the lake's ``path``: the inverse of :func:`lake_path`."""
    return _ESCAPES.sub(lambda found: _unescape(found[0]), path)


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _unescape(escapes: str) -> str:
    try:
        return bytes.fromhex(escapes.replace("%", "")).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        # Not ours: somebody else's file in the lake.
        return escapes


def too_long_reason(full_path: str) -> str | None:
    """Why a path below the lakehouse is too long or too deep, or None."""
    if len(full_path) > MAX_PATH_CHARACTERS:
        return f"is {len(full_path)} characters long in the lake; the limit is {MAX_PATH_CHARACTERS}"
    depth = full_path.count("/") + 1
    # Workspace and item stand in front of it and count.
    if depth + 2 >= MAX_SEGMENTS:
        return f"is {depth} segments deep in the lake; the limit is {MAX_SEGMENTS - 3}"
    return None


def check_target_path(path: str) -> str:
    """A target path as a job gives it, with the outer slashes away.

    Raises:
        ValueError: saying what is wrong and what to write.
    """
    trimmed = path.strip("/")
    root = trimmed.partition("/")[0]
    if root not in _ROOTS:
        raise ValueError("must begin with Files/ or Tables/, the lakehouse's two managed folders")
    reason = unmappable_reason(trimmed) or too_long_reason(trimmed)
    if reason:
        raise ValueError(f"the path {reason}")
    return trimmed


def printable(path: str) -> str:
    """A path that can be written as UTF-8 whatever bytes the file system held, for reports."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
