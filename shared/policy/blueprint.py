"""The MLTable file: read, judged, and rewritten for another workspace by editing its text.

A rewrite changes the scalars that name the source's workspace, datastore folder or storage account, at the places where
YAML says that they stand; comments, order, quoting and line ends of everything else stay as they are. Facts about the
file: mltable 1.7.0's own schema (``mltable/schema/MLTable.json``), docs/protocols/azureml.md, section 7.
"""

import difflib
import functools
import itertools
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from shared.errors import ItemError, Unsupported
from shared.policy.asset_uri import (
    DatastorePath,
    StoragePath,
    WorkspaceName,
    is_below,
    normal_path,
    parse_datastore_path,
    parse_storage_path,
    shown_uri,
)

MAX_BLUEPRINT_BYTES = 1024 * 1024
# With each alias counted as what it stands for: a few lines of aliases of aliases can mean more than fits into memory.
_MAX_NODES = 200_000
_DIFF_LINES = 400
_DIFF_COLUMNS = 1000
BLUEPRINT = "MLTable"
# Below the asset's root, for what lay outside of it and is carried along.
CARRIED_FOLDER = "_outside"

_TOP_KEYS = ("$schema", "type", "metadata", "paths", "traits", "transformations", "query_source")
_PATH_KINDS = ("file", "folder", "pattern")
_TRANSFORMATIONS = (
    "read_delimited", "read_parquet", "read_json_lines", "read_delta_lake", "extract_columns_from_partition_format",
    "select_partitions", "sample", "filter", "take", "take_random_sample", "skip", "drop_columns", "keep_columns",
    "convert_column_types",
)  # fmt: skip
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:|[A-Za-z]:[\\/]")
_SIGNATURE = re.compile(r"(?i)([?&]sig=)[^&\s'\"]+")
_SECRET = re.compile(r"(?i)[?&]sig=|//[^/@]*:[^/@]*@")
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
_GLOB = re.compile(r"[*?\[{]")

Kind = Literal["inside", "target", "outside_root", "other_datastore", "public_url"]


@dataclass(frozen=True, slots=True)
class PathEntry:
    """One entry of ``paths``; ``start`` and ``end`` are the positions of its value in the text."""

    kind: str
    value: str
    start: int
    end: int
    style: str | None


@dataclass(frozen=True, slots=True)
class Token:
    """A value of a transformation that names a workspace: ``stream_info``'s subscription and the like."""

    field: str
    value: str
    start: int
    end: int
    style: str | None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A blueprint that ``mltable`` would take, as far as its own schema says.

    Attributes:
        text: As it was read.
        document: What YAML makes of it.
        paths: Its entries in order.
        tokens: Where transformations name a workspace.
        reader: The ``read_...`` transformation; empty if there is none.
        is_random: Whether loading it twice may give different rows.
    """

    text: str
    document: Mapping[str, Any]
    paths: tuple[PathEntry, ...]
    tokens: tuple[Token, ...]
    reader: str
    is_random: bool

    @property
    def reads_lines(self) -> bool:
        """Whether the beginning of a file, up to an end of line, is a table by itself."""
        if self.reader not in ("read_delimited", "read_json_lines"):
            return False
        for one in self.document.get("transformations") or ():
            given = one.get(self.reader) if isinstance(one, dict) else None
            if isinstance(given, dict):
                encoding = str(given.get("encoding", "utf8")).lower().replace("-", "")
                return not given.get("support_multi_line") and not encoding.startswith(("utf16", "utf32", "ucs"))
        return True


@dataclass(frozen=True, slots=True)
class Home:
    """Where an asset lies: its workspace, its datastore with the storage behind, and its folder in there."""

    workspace: WorkspaceName
    datastore: str
    account: str
    container: str
    root: str


@dataclass(frozen=True, slots=True)
class Store:
    """A blob datastore of the source's workspace."""

    name: str
    account: str
    container: str


@dataclass(frozen=True, slots=True)
class Place:
    """What a path of a blueprint points to.

    Attributes:
        kind: ``inside`` the asset's root, already in the ``target``, or what it points to otherwise.
        relative: The path below the root.
        account: Where what can be carried lies.
        container: Of that account.
        path: In that container.
        can_carry: Whether the storage behind is known and reachable with the source's credential.
        reason: For a person.
    """

    entry: PathEntry
    kind: Kind
    relative: str = ""
    account: str = ""
    container: str = ""
    path: str = ""
    can_carry: bool = False
    reason: str = ""


def parse_blueprint(data: bytes) -> Blueprint:
    """Read and judge a blueprint.

    Raises:
        ItemError: code ``blueprint_invalid``; says where.
        Unsupported: code ``delta_unsupported`` or ``query_source_unsupported``.
    """
    if len(data) > MAX_BLUEPRINT_BYTES:
        raise _invalid(f"it has {len(data):,} bytes, more than {MAX_BLUEPRINT_BYTES:,}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 (byte {error.start})") from None
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            _check_size(root)
            _check_keys(root)
        # Resolves merge keys ('<<') in the nodes themselves, and everything below sees that.
        document = loader.construct_document(root) if root is not None else None
    except ItemError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _invalid(f"{where}{error.problem or error.context or 'it is not YAML'}") from None
    except (LookupError, AttributeError, TypeError, ArithmeticError):
        # What the library stumbles over where a tag such as !!int or !!timestamp stands before other text.
        raise _invalid("a tag ('!!...') stands before a value that it does not fit") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _invalid(
            f"it is not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(root, yaml.MappingNode) or not isinstance(document, dict):
        raise _invalid("it must be a mapping with 'paths'")
    _check_top(document)
    entries = tuple(_entries(root))
    reader, is_random = _check_transformations(document.get("transformations"))
    tokens = tuple(_tokens(_child(root, "transformations")))
    return Blueprint(text, document, entries, tokens, reader, is_random)


def locate(
    blueprint: Blueprint,
    home: Home,
    storage_urls: Mapping[str, str],
    *,
    stores: Sequence[Store] = (),
    target: Home | None = None,
) -> list[Place]:
    """Where each path of the blueprint points to.

    Args:
        blueprint: Of the source.
        home: Where the asset lies.
        storage_urls: See :func:`parse_storage_path`.
        stores: The blob datastores of the source's workspace.
        target: For a text that was rewritten before: a path into there is done already. Never for one of the source,
            where a short path may look the same and mean the source's own datastore.

    Raises:
        ItemError: code ``blueprint_invalid``, for a path that no cloud can resolve.
        Unsupported: code ``signed_url``, for a URL with a signature, which must not be handed on.
    """
    return [_place(entry, home, target, storage_urls, stores) for entry in blueprint.paths]


def rewrite(
    blueprint: Blueprint, places: Sequence[Place], home: Home, target: Home, storage_urls: Mapping[str, str]
) -> str:
    """The text for the target.

    Paths inside the root in a relative form, those that point into the target already, and public URLs stay. What is
    to be carried points below ``CARRIED_FOLDER``.

    Raises:
        Unsupported: code ``blueprint_rewrite``, where an anchor makes one scalar mean a path and something else.
    """
    edits: dict[int, tuple[int, str]] = {}
    wanted: list[str] = []
    for place in places:
        new = _new_value(place, home, target, storage_urls)
        wanted.append(new)
        if new != place.entry.value:
            edits[place.entry.start] = (place.entry.end, _scalar(blueprint.text, place.entry, new))
    mine = {"subscription": (home.workspace.subscription_id, target.workspace.subscription_id),
            "resource_group": (home.workspace.resource_group, target.workspace.resource_group),
            "workspace_name": (home.workspace.name, target.workspace.name)}  # fmt: skip
    for token in blueprint.tokens:
        before, after = mine[token.field]
        if token.value.lower() == before.lower() and token.value != after:
            edits[token.start] = (token.end, _scalar(blueprint.text, token, after))
    text = blueprint.text
    for start in sorted(edits, reverse=True):
        end, new = edits[start]
        text = text[:start] + new + text[end:]
    _assert_only_that(blueprint, text, wanted)
    return text


def unified_diff(before: str, after: str) -> str:
    """What was rewritten, for a report; empty if nothing was. Left out are signatures, and what is too long to read."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "source/MLTable", "target/MLTable", lineterm="", n=2
    )
    shown = list(itertools.islice(lines, _DIFF_LINES + 1))
    if len(shown) > _DIFF_LINES:
        shown[-1] = "... and so on; compare the two files for the rest"
    return _SIGNATURE.sub(r"\1***", "\n".join(line[:_DIFF_COLUMNS] for line in shown))


def local_text(blueprint: Blueprint, relatives: Sequence[str | None], files: Sequence[str]) -> str | None:
    """A blueprint for a folder that holds these files under their paths below the root; None if no path is left.

    Args:
        blueprint: Of either side.
        relatives: For each entry its path below the root, None for one that cannot be loaded from a folder.
        files: What was fetched.
    """
    there = set(files)
    paths = []
    for entry, relative in zip(blueprint.paths, relatives, strict=True):
        if relative is None or (entry.kind == "file" and relative not in there):
            continue
        if entry.kind != "file" and not any(covers(entry.kind, relative, file) for file in there):
            continue
        paths.append({entry.kind: f"./{relative}"})
    if not paths:
        return None
    return yaml.safe_dump({**blueprint.document, "paths": paths}, sort_keys=False, allow_unicode=True)


def covers(kind: str, relative: str, file: str) -> bool:
    """Whether an entry means a file; both paths are below the root."""
    if kind == "file":
        return relative == file
    if kind == "folder":
        return is_below(file, relative)
    return _pattern(relative).fullmatch(file) is not None


def literal_base(path: str) -> str:
    """The folders of a pattern before its first wildcard."""
    base = []
    for segment in path.split("/")[:-1]:
        if _GLOB.search(segment):
            break
        base.append(segment)
    return "/".join(base)


# -- reading -----------------------------------------------------------------------------------------------------------


def _invalid(detail: str) -> ItemError:
    return ItemError(f"the MLTable file cannot be used: {detail}", code="blueprint_invalid", subject=BLUEPRINT)


def _check_size(root: yaml.Node) -> None:
    """How much the document means once every alias is replaced; nothing may hold itself."""
    sizes: dict[yaml.Node, int] = {}
    open_nodes: set[yaml.Node] = set()
    waiting: list[tuple[yaml.Node, bool]] = [(root, False)]
    while waiting:
        node, is_done = waiting.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        if is_done:
            open_nodes.discard(node)
            sizes[node] = 1 + sum(sizes[child] for child in children)
            if sizes[node] > _MAX_NODES:
                raise _invalid(
                    f"line {node.start_mark.line + 1}: its aliases stand for more than {_MAX_NODES:,} values"
                )
            continue
        if node in open_nodes:
            raise _invalid(f"line {node.start_mark.line + 1}: it has an alias of something that it is part of")
        if node not in sizes:
            open_nodes.add(node)
            waiting.append((node, True))
            waiting += [(child, False) for child in children]


def _check_keys(node: yaml.Node) -> None:
    """No key twice: which of the two counts would depend on who reads it."""
    # Nodes are told apart by identity: an alias is the very node that its anchor marks.
    seen: set[yaml.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if isinstance(current, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in current.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        raise _invalid(f"line {key.start_mark.line + 1}: the key {key.value!r} stands there twice")
                    keys.add(key.value)
                waiting.append(value)
        elif isinstance(current, yaml.SequenceNode):
            waiting += current.value


def _check_top(document: Mapping[str, Any]) -> None:
    unknown = [str(key) for key in document if key not in _TOP_KEYS]
    if unknown:
        raise _invalid(f"{unknown[0]!r} is no key of an MLTable; one of {', '.join(_TOP_KEYS)}")
    if document.get("type", "mltable") != "mltable":
        raise _invalid(f"its type is {document['type']!r}, not 'mltable'")
    if "query_source" in document:
        raise Unsupported(
            "the table is a query on a database (query_source); there are no files to copy",
            code="query_source_unsupported",
            subject=BLUEPRINT,
        )
    if not isinstance(document.get("paths"), list) or not document["paths"]:
        raise _invalid("'paths' must be a list with at least one entry")


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    """The value of a key; the last, since what was merged stands before what is the mapping's own."""
    found: yaml.Node | None = None
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == name:
                found = value
    return found


def _entries(root: yaml.Node) -> Iterator[PathEntry]:
    paths = _child(root, "paths")
    assert isinstance(paths, yaml.SequenceNode)
    for number, node in enumerate(paths.value):
        where = f"paths[{number}] (line {node.start_mark.line + 1})"
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            raise _invalid(f"{where} must hold exactly one of {', '.join(_PATH_KINDS)}")
        key, value = node.value[0]
        kind = getattr(key, "value", None)
        if kind == "delta":
            raise _delta()
        if kind not in _PATH_KINDS:
            raise _invalid(f"{where} has {kind!r}; one of {', '.join(_PATH_KINDS)}")
        if not isinstance(value, yaml.ScalarNode) or value.tag != "tag:yaml.org,2002:str" or not value.value.strip():
            raise _invalid(f"{where}: the {kind} must be text")
        yield PathEntry(kind, value.value, value.start_mark.index, value.end_mark.index, value.style)


def _delta() -> Unsupported:
    return Unsupported(
        "the table is a Delta table, whose log would have to be copied as one with its files; this is not supported, "
        "so copy the Delta table with a tool for it and register it anew",
        code="delta_unsupported",
        subject=BLUEPRINT,
    )


def _check_transformations(transformations: Any) -> tuple[str, bool]:
    """The reader, and whether rows are drawn at random."""
    reader, is_random = "", False
    if transformations is None:
        return reader, is_random
    if not isinstance(transformations, list):
        raise _invalid("'transformations' must be a list")
    for number, one in enumerate(transformations):
        if isinstance(one, dict) and len(one) == 1:
            name, given = next(iter(one.items()))
        else:
            name, given = one, None
        if name not in _TRANSFORMATIONS:
            raise _invalid(f"transformations[{number}] is {str(name)[:60]!r}, which mltable does not know")
        if name == "read_delta_lake":
            raise _delta()
        if name.startswith("read_"):
            reader = name
        if name in ("take_random_sample", "sample") and not (isinstance(given, dict) and given.get("seed") is not None):
            is_random = True
    return reader, is_random


def _tokens(node: yaml.Node | None) -> Iterator[Token]:
    """Scalars of each ``stream_info`` mapping."""
    if node is None:
        return
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        children: list[yaml.Node] = []
        if isinstance(current, yaml.MappingNode):
            for key, value in current.value:
                if getattr(key, "value", None) == "stream_info":
                    for field in ("subscription", "resource_group", "workspace_name"):
                        found = _child(value, field)
                        if isinstance(found, yaml.ScalarNode):
                            yield Token(field, found.value, found.start_mark.index, found.end_mark.index, found.style)
                children.append(value)
        elif isinstance(current, yaml.SequenceNode):
            children += current.value
        for child in children:
            if child not in seen:
                seen.add(child)
                waiting.append(child)


# -- placing -----------------------------------------------------------------------------------------------------------


def _place(
    entry: PathEntry, home: Home, target: Home | None, storage_urls: Mapping[str, str], stores: Sequence[Store]
) -> Place:
    value = entry.value
    if _SECRET.search(value):
        raise Unsupported(
            f"the path {shown_uri(value)!r} holds a signature (SAS) or a password, which must not be handed on; name "
            "the data without it, or copy it below the asset's folder",
            code="signed_url",
            subject=BLUEPRINT,
        )
    if (named := parse_datastore_path(value)) is not None:
        return _place_in_datastore(entry, named, home, target, stores)
    if (stored := parse_storage_path(value, storage_urls)) is not None:
        return _place_in_storage(entry, stored, home, target, stores)
    if re.match(r"(?i)https?://", value):
        return Place(entry, "public_url", reason="it is an address outside of the workspace")
    if value.lower().startswith("azureml:"):
        return Place(entry, "other_datastore", reason="it names a data asset or another place of Azure ML")
    if _SCHEME.match(value) or value.startswith(("/", "\\")):
        raise _invalid(
            f"the path {value[:120]!r} is one of a machine's own disk, or of a scheme that is not known here"
        )
    joined = posixpath.normpath(posixpath.join(home.root, value))
    if joined.startswith(".."):
        raise _invalid(f"the path {value[:120]!r} leads out of the container")
    return _place_in_container(entry, normal_path(joined), home)


def _place_in_storage(
    entry: PathEntry, stored: StoragePath, home: Home, target: Home | None, stores: Sequence[Store]
) -> Place:
    here = (stored.account, stored.container)
    path = normal_path(stored.path)
    is_known = here in [(store.account, store.container) for store in stores]
    if is_known or stored.account == home.account:
        _check_segments(entry, path)
    if here == (home.account, home.container):
        return _place_in_container(entry, path, home)
    if target is not None and here == (target.account, target.container) and is_below(path, target.root):
        return Place(entry, "target", path.removeprefix(target.root).strip("/"))
    if stored.account == home.account or is_known:
        return Place(
            entry, "other_datastore", account=stored.account, container=stored.container, path=path, can_carry=True,
            reason=f"it lies in the container {stored.container!r} of the source's account {stored.account!r}",
        )  # fmt: skip
    if not entry.value.lower().startswith("http"):
        return Place(entry, "other_datastore", reason=f"it lies in the storage account {stored.account!r}")
    return Place(entry, "public_url", reason="it is an address outside of the workspace")


def _place_in_datastore(
    entry: PathEntry, named: DatastorePath, home: Home, target: Home | None, stores: Sequence[Store]
) -> Place:
    path, workspace, datastore = normal_path(named.path), named.workspace, named.datastore
    _check_segments(entry, path)
    is_mine = workspace is None or workspace.is_same(home.workspace)
    if target is not None and datastore == target.datastore and is_below(path, target.root):
        # A short path may be of a text that was rewritten before: the two datastores may have the same name.
        is_theirs = workspace is not None and workspace.is_same(target.workspace)
        is_short = workspace is None and not (datastore == home.datastore and is_below(path, home.root))
        if is_short or (is_theirs and not is_mine):
            return Place(entry, "target", path.removeprefix(target.root).strip("/"))
    if workspace is not None and not is_mine:
        return Place(entry, "other_datastore", reason=f"it lies in the workspace {workspace.name!r}")
    if datastore == home.datastore:
        return _place_in_container(entry, path, home)
    store = next((one for one in stores if one.name == datastore), None)
    if store is None:
        return Place(entry, "other_datastore", reason=f"it lies in the datastore {datastore!r}")
    if (store.account, store.container) == (home.account, home.container):
        return _place_in_container(entry, path, home)
    return Place(
        entry, "other_datastore", account=store.account, container=store.container, path=path, can_carry=True,
        reason=f"it lies in the datastore {datastore!r}",
    )  # fmt: skip


def _check_segments(entry: PathEntry, path: str) -> None:
    if ".." in path.split("/"):
        raise _invalid(f"the path {entry.value[:120]!r} holds '..' where that has no meaning")


def _place_in_container(entry: PathEntry, path: str, home: Home) -> Place:
    if is_below(path, home.root):
        return Place(entry, "inside", path.removeprefix(home.root).strip("/"))
    return Place(
        entry, "outside_root", account=home.account, container=home.container, path=path, can_carry=True,
        reason=f"it leaves the asset's folder {home.root!r}: it lies at {path!r}",
    )  # fmt: skip


def carried_path(place: Place, home: Home) -> str:
    """Where a path that is carried lies below the root."""
    before = "" if (place.account, place.container) == (home.account, home.container) else f"{place.container}/"
    if place.account != home.account:
        before = f"{place.account}/{before}"
    return f"{CARRIED_FOLDER}/{before}{place.path}"


# -- rewriting ---------------------------------------------------------------------------------------------------------


def _new_value(place: Place, home: Home, target: Home, storage_urls: Mapping[str, str]) -> str:
    value = place.entry.value
    if place.kind in ("target", "public_url"):
        return value
    if place.kind != "inside":
        return f"./{carried_path(place, home)}"
    path = "/".join(part for part in (target.root, place.relative) if part)
    if (named := parse_datastore_path(value)) is not None:
        path = _with_slash(path, named.path)
        spans = named.spans
        parts = {"datastore": target.datastore, "path": path}
        if named.workspace is not None:
            parts |= {"subscription": target.workspace.subscription_id, "group": target.workspace.resource_group,
                      "workspace": target.workspace.name}  # fmt: skip
        return _replaced(value, spans, parts)
    if (stored := parse_storage_path(value, storage_urls)) is not None:
        parts = {"container": target.container, "path": _with_slash(path, stored.path)}
        if "base" in stored.spans:
            parts["base"] = storage_urls.get(target.account, "").rstrip("/") + "/"
        else:
            parts["account"] = target.account
        return _replaced(value, stored.spans, parts)
    return value


def _with_slash(path: str, before: str) -> str:
    return f"{path}/" if before.endswith("/") and path else path


def _replaced(value: str, spans: Mapping[str, tuple[int, int]], parts: Mapping[str, str]) -> str:
    for name in sorted(parts, key=lambda name: spans[name][0], reverse=True):
        start, end = spans[name]
        before = value[start:end]
        # A token that differs in case alone names the same thing, and stays as it was written.
        same = name != "path" and before.lower() == parts[name].lower()
        value = value if same else value[:start] + parts[name] + value[end:]
    return value


def _scalar(text: str, node: PathEntry | Token, new: str) -> str:
    """The new value in the old one's style, with the anchor or tag in front that it had."""
    raw = text[node.start : node.end]
    match = _PROPERTIES.match(raw)
    front = match[0] if match else ""
    if node.style == "'":
        return f"{front}'" + new.replace("'", "''") + "'"
    if node.style == '"':
        return front + json.dumps(new, ensure_ascii=False)
    if node.style in ("|", ">"):
        return front + json.dumps(new, ensure_ascii=False) + raw[len(raw.rstrip("\r\n")) :]
    return front + (new if _is_plain(new) else json.dumps(new, ensure_ascii=False))


def _is_plain(value: str) -> bool:
    """Whether YAML reads the value back as it is, without quotes, also between brackets."""
    try:
        return bool(yaml.safe_load(f"[{{a: {value}}}]") == [{"a": value}])
    except yaml.YAMLError:
        return False


def _assert_only_that(blueprint: Blueprint, text: str, wanted: Sequence[str]) -> None:
    expected = dict(blueprint.document)
    expected["paths"] = [{entry.kind: value} for entry, value in zip(blueprint.paths, wanted, strict=True)]
    found = yaml.safe_load(text)
    same = {key: value for key, value in found.items() if key != "transformations"} == {
        key: value for key, value in expected.items() if key != "transformations"
    }
    if not same or (not blueprint.tokens and found != expected):
        raise Unsupported(
            "the MLTable file uses YAML anchors in a way that one text means a path and something else; write it "
            "without anchors",
            code="blueprint_rewrite",
            subject=BLUEPRINT,
        )


@functools.lru_cache(maxsize=256)
def _pattern(pattern: str) -> re.Pattern[str]:
    """``**`` spans folders, ``*`` and ``?`` stay in one; whatever else is literal."""
    out = ""
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out += "(?:[^/]+/)*"
            at += 3
        elif pattern.startswith("**", at):
            out += ".*"
            at += 2
        elif pattern[at] == "*":
            out += "[^/]*"
            at += 1
        elif pattern[at] == "?":
            out += "[^/]"
            at += 1
        else:
            out += re.escape(pattern[at])
            at += 1
    return re.compile(out, re.DOTALL)
