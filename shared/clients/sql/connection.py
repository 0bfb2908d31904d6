"""A setting's value as a connection to a database.

A value is a SQLAlchemy URL or an ODBC connection string. What comes of it shows no secret: not in ``repr``, and not in
an error, which names the setting and the field.
"""

import platform
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote_plus

from shared.errors import Configuration

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

DialectName = Literal["mssql", "postgresql", "sqlite"]
Transport = Literal["odbc", "native"]

SQL_SCOPE = "https://database.windows.net/.default"
"""Of the tokens that Azure SQL takes."""

_EXAMPLE = "mssql+pyodbc://user:password@server/database, or Driver={ODBC Driver 18 for SQL Server};Server=...;..."
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+_]*://")
_PAIR = re.compile(r"\s*([^=;{}]*?)\s*=\s*(\{(?:[^}]|\}\})*\}|(?!\{)[^;]*?)\s*(?:;|$)")
_KEY_VAULT = re.compile(r"@Microsoft\.(KeyVault|AppConfiguration)\(", re.IGNORECASE)
_MSSQL_URLS = ("mssql", "mssql+pyodbc", "mssql+aioodbc", "mssql+mssqlpython")
_POSTGRESQL_URLS = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg")
_POSTGRESQL_ODBC_URLS = ("postgresql+pyodbc", "postgresql+odbc")
_SQLITE_URLS = ("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite")
_MSSQL_DRIVERS = ("ODBC Driver 18 for SQL Server", "ODBC Driver 17 for SQL Server")
_POSTGRESQL_DRIVERS = ("PostgreSQL Unicode", "PostgreSQL Unicode(x64)", "PostgreSQL ANSI", "PostgreSQL")
_SAME = {
    "user": "uid", "username": "uid", "password": "pwd", "address": "server", "addr": "server", "servername": "server",
    "network address": "server", "trusted connection": "trusted_connection", "trustservercertificate":
    "trustservercertificate", "application name": "app",
}  # fmt: skip
_WRITTEN = {
    "driver": "Driver", "server": "Server", "port": "Port", "database": "Database", "uid": "UID", "pwd": "PWD",
    "encrypt": "Encrypt", "trustservercertificate": "TrustServerCertificate", "app": "APP", "sslmode": "SSLmode",
    "authentication": "Authentication", "trusted_connection": "Trusted_Connection", "dsn": "DSN",
}  # fmt: skip
_YES = ("yes", "true", "1", "mandatory", "strict")
_LOCAL = ("", "localhost", "127.0.0.1", "::1")

# psqlodbc reports the sizes of unbounded columns as these, so a bounded column is one that is smaller.
UNBOUNDED_POSTGRESQL = 8000


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a database is and how to get in.

    Attributes:
        setting: The setting's name, for messages.
        dialect: Whose SQL it speaks.
        transport: ``odbc``, or ``native`` where another driver reads it.
        server: Host, and port or instance where one is given; a file of SQLite. No secret.
        database: By name; empty where the login's default is meant.
        text: With secrets: an ODBC connection string, a libpq URI, or the path of SQLite's file.
        needs_token: No credentials are given, so an access token of the app's identity is to be handed to the driver.
        facts: What a report may say: driver, TLS, kind of identity.
    """

    setting: str
    dialect: DialectName
    transport: Transport
    server: str
    database: str
    text: str = field(repr=False)
    needs_token: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)


def parse_connection(
    setting: str, value: str, *, ca_bundle: str | None = None, drivers: Callable[[], Sequence[str]] | None = None
) -> Connection:
    """What the value of ``setting`` means.

    Args:
        setting: Its name.
        value: A SQLAlchemy URL or an ODBC connection string.
        ca_bundle: A PEM file that PostgreSQL's certificate is checked against in place of the system's.
        drivers: The names of the installed ODBC drivers; by default the driver manager's.

    Raises:
        Configuration: naming the setting and what to write, never its value.
    """
    value = value.strip()
    if not value:
        raise _wrong(setting, f"is empty; write a connection such as {_EXAMPLE}")
    if _KEY_VAULT.match(value):
        raise _wrong(
            setting,
            "is still a reference, which the platform has not replaced by the secret: see the setting's status in the "
            "portal; the app's identity needs 'Key Vault Secrets User' on the vault, and the vault's firewall must let "
            "the app in. Outside of Azure write the connection itself",
            code="unresolved_reference",
        )
    installed = drivers or _installed_drivers
    if _URL.match(value):
        return _from_url(setting, value, ca_bundle, installed)
    return _from_odbc(setting, _pairs(setting, value), ca_bundle, installed)


def bundled_driver(package: Path | None = None) -> str | None:
    """The library of ODBC driver 18 that the package mssql-python-odbc ships for this machine; None without.

    It ships one build for each family of Linux distributions; they differ in the OpenSSL and Kerberos they load.
    """
    if package is None:
        try:
            import mssql_python_odbc
        except ImportError:
            return None
        package = Path(mssql_python_odbc.__file__).parent
    machine = "arm64" if platform.machine().lower() in ("arm64", "aarch64") else "x86_64"
    if platform.system() == "Darwin":
        found = sorted((package / "libs" / "macos" / machine).glob("lib/libmsodbcsql*.dylib"))
        return str(found[-1]) if found else None
    if platform.system() != "Linux":
        return None
    for family in _linux_families():
        found = sorted((package / "libs" / "linux" / family / machine / "lib").glob("libmsodbcsql-*.so.*"))
        if found:
            return str(found[-1])
    return None


# -- URLs --------------------------------------------------------------------------------------------------------------


def _from_url(setting: str, value: str, ca_bundle: str | None, drivers: Callable[[], Sequence[str]]) -> Connection:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        # What the parser says repeats the URL.
        raise _wrong(
            setting, "is no URL that can be read; in user and password write @ as %40, / as %2F, : as %3A, % as %25"
        ) from None
    scheme = url.drivername
    if scheme in _SQLITE_URLS:
        return _sqlite(setting, url)
    options = {name.lower(): item if isinstance(item, str) else item[-1] for name, item in url.query.items()}
    if scheme in (*_MSSQL_URLS, *_POSTGRESQL_ODBC_URLS) and "odbc_connect" in options:
        # SQLAlchemy takes it quoted once more than the URL's query is, or not.
        given = options["odbc_connect"]
        pairs = _pairs(setting, given if ";" in given else unquote_plus(given))
        return _from_odbc(setting, pairs, ca_bundle, drivers)
    if scheme in _MSSQL_URLS:
        return _odbc(setting, "mssql", _url_pairs(setting, url, options, ","), ca_bundle, drivers)
    if scheme in _POSTGRESQL_ODBC_URLS:
        return _odbc(setting, "postgresql", _url_pairs(setting, url, options, None), ca_bundle, drivers)
    if scheme in _POSTGRESQL_URLS:
        return _postgresql(setting, url, options, ca_bundle)
    raise _wrong(setting, "is a URL of a database that is not known; known are mssql, postgresql and sqlite")


def _url_pairs(setting: str, url: "URL", options: Mapping[str, str], port_sign: str | None) -> dict[str, str]:
    if not url.host:
        raise _wrong(setting, "names no server; write mssql+pyodbc://user:password@server/database")
    if not url.database:
        raise _wrong(setting, "names no database; write it behind the server: .../database. A DSN goes into an ODBC "
                     "connection string: DSN=name")  # fmt: skip
    pairs = {_SAME.get(name, name): value for name, value in options.items()}
    pairs["server"] = url.host
    if url.port and port_sign:
        pairs["server"] += f"{port_sign}{url.port}"
    elif url.port:
        pairs["port"] = str(url.port)
    pairs["database"] = url.database
    if url.username:
        pairs["uid"] = url.username
    if url.password:
        pairs["pwd"] = str(url.password)
    return pairs


def _sqlite(setting: str, url: "URL") -> Connection:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise _wrong(setting, "names no file; write sqlite:////absolute/path/file.db, with four slashes")
    return Connection(
        setting, "sqlite", "native", url.database, Path(url.database).stem, url.database, facts={"driver": "sqlite3"}
    )


def _postgresql(setting: str, url: "URL", options: dict[str, str], ca_bundle: str | None) -> Connection:
    if not url.database:
        raise _wrong(setting, "names no database; write postgresql://user:password@server/database")
    host = options.get("host") or url.host or ""
    given = dict(options)
    facts: dict[str, object] = {"driver": "libpq", "identity": "login" if url.username else "system user"}
    given, facts["tls"] = _postgresql_tls(given, host, ca_bundle)
    secret = "" if url.password is None else ":" + quote(str(url.password), safe="")
    user = f"{quote(url.username, safe='')}{secret}@" if url.username else ""
    name = f"[{url.host}]" if url.host and ":" in url.host else (url.host or "")
    place = f"{name}:{url.port}" if url.port else name
    query = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in given.items())
    uri = f"postgresql://{user}{place}/{quote(url.database, safe='')}{'?' + query if query else ''}"
    return Connection(setting, "postgresql", "native", place or host, url.database, uri, facts=facts)


def _postgresql_tls(given: dict[str, str], host: str, ca_bundle: str | None) -> tuple[dict[str, str], str]:
    """Certificates are checked unless the setting says otherwise, or the server is on this very machine."""
    mode = given.get("sslmode", "")
    if not mode and (host in _LOCAL or host.startswith("/")):
        return given, "as the server offers it, on this machine"
    if not mode:
        given["sslmode"] = mode = "verify-full"
    if mode in ("verify-full", "verify-ca"):
        if "sslrootcert" not in given and (authorities := ca_bundle or _system_authorities()):
            given["sslrootcert"] = authorities
        return given, "verified" if mode == "verify-full" else "verified but for the server's name"
    return given, f"not verified: sslmode={mode}"


# -- ODBC --------------------------------------------------------------------------------------------------------------


def _pairs(setting: str, text: str) -> dict[str, str]:
    """Keywords, lower case, and values, without braces; the first one counts, as in ODBC."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        if not text[position:].strip(" ;\r\n\t"):
            break
        match = _PAIR.match(text, position)
        if match is None or not match[1]:
            raise _wrong(
                setting,
                f"is neither a URL nor an ODBC connection string (keyword=value;...); write {_EXAMPLE}. A value that "
                "holds ; or starts with { goes into braces, with } doubled: PWD={...}",
            )
        keyword, value = match[1].lower(), match[2]
        if value.startswith("{") and value.endswith("}"):
            value = value[1:-1].replace("}}", "}")
        pairs.setdefault(_SAME.get(keyword, keyword), value)
        position = match.end()
    return pairs


def _from_odbc(
    setting: str, pairs: dict[str, str], ca_bundle: str | None, drivers: Callable[[], Sequence[str]]
) -> Connection:
    driver = pairs.get("driver", "")
    if not driver and "dsn" in pairs:
        raise _wrong(setting, "names a DSN and no driver; write Driver={...} too, which says whose SQL to speak")
    if not driver:
        raise _wrong(
            setting,
            "names no Driver; write Driver={ODBC Driver 18 for SQL Server};Server=...;Database=...;UID=...;PWD=... "
            "(a connection string of ADO.NET or JDBC is not understood)",
        )
    said = driver.rpartition("/")[2].lower()
    if "sql server" in said or "msodbcsql" in said:
        return _odbc(setting, "mssql", pairs, ca_bundle, drivers)
    if "postgresql" in said or "psqlodbc" in said:
        return _odbc(setting, "postgresql", pairs, ca_bundle, drivers)
    raise _wrong(setting, "names a Driver that is neither Microsoft's for SQL Server nor PostgreSQL's; SQLite needs "
                 "none: sqlite:////path/file.db")  # fmt: skip


def _odbc(
    setting: str,
    dialect: DialectName,
    pairs: dict[str, str],
    ca_bundle: str | None,
    drivers: Callable[[], Sequence[str]],
) -> Connection:
    if "server" not in pairs and "dsn" not in pairs:
        raise _wrong(setting, "names no Server")
    facts: dict[str, object] = {}
    pairs = dict(pairs)
    if dialect == "mssql":
        for unknown in ("initial catalog", "data source", "user id"):
            if unknown in pairs:
                raise _wrong(setting, "is a connection string of ADO.NET; ODBC says Server, Database, UID and PWD")
        needs_token = _complete_mssql(setting, pairs, facts, drivers)
    else:
        needs_token = False
        _complete_postgresql(setting, pairs, facts, ca_bundle, drivers)
    text = ";".join(f"{_WRITTEN.get(keyword, keyword)}={_braced(value)}" for keyword, value in pairs.items())
    server = pairs.get("server", "")
    if pairs.get("port"):
        server += f":{pairs['port']}"
    return Connection(setting, dialect, "odbc", server, pairs.get("database", ""), text, needs_token, facts)


def _complete_mssql(
    setting: str, pairs: dict[str, str], facts: dict[str, object], drivers: Callable[[], Sequence[str]]
) -> bool:
    """Source: "DSN and connection string keywords" and "Using Microsoft Entra ID" of Microsoft's ODBC driver."""
    pairs["driver"], facts["driver"] = _mssql_driver(setting, pairs.get("driver", ""), drivers)
    encrypt = pairs.setdefault("encrypt", "yes").lower()
    trust = pairs.setdefault("trustservercertificate", "no").lower()
    if encrypt not in _YES:
        facts["tls"] = f"off: Encrypt={encrypt}"
    elif trust in _YES and encrypt != "strict":
        facts["tls"] = "encrypted, server not verified: TrustServerCertificate=yes"
    else:
        facts["tls"] = "verified"
    # Another value than the app's own may be what the server's administrators look for.
    pairs.setdefault("app", "lakehouse-migration")
    integrated = pairs.get("trusted_connection", "").lower() in _YES
    if pairs.get("authentication"):
        facts["identity"] = pairs["authentication"]
        return False
    if integrated:
        facts["identity"] = "integrated"
        return False
    if pairs.get("uid") or pairs.get("pwd"):
        if not pairs.get("uid"):
            raise _wrong(setting, "has a password (PWD) and no user (UID)")
        facts["identity"] = "login"
        return False
    # The driver refuses a token beside any of these, and beside empty ones too.
    for keyword in ("uid", "pwd", "authentication", "trusted_connection"):
        pairs.pop(keyword, None)
    facts["identity"] = "access token of the app's identity"
    return True


def _mssql_driver(setting: str, wished: str, drivers: Callable[[], Sequence[str]]) -> tuple[str, str]:
    """What to load, and what to call it."""
    if "/" in wished:
        if not Path(wished).is_file():
            raise _wrong(setting, "names a Driver by a path where no file is")
        return wished, wished.rpartition("/")[2]
    installed = list(drivers())
    if wished and wished in installed:
        return wished, wished
    for name in _MSSQL_DRIVERS:
        if name in installed:
            return name, name
    bundled = bundled_driver()
    if bundled is None:
        raise _wrong(
            setting,
            "needs Microsoft's ODBC driver, which is not installed; install 'ODBC Driver 18 for SQL Server', or the "
            "Python package mssql-python-odbc, which brings it",
            code="driver_missing",
        )
    return bundled, f"{_MSSQL_DRIVERS[0]} (of the package mssql-python-odbc)"


def _complete_postgresql(
    setting: str,
    pairs: dict[str, str],
    facts: dict[str, object],
    ca_bundle: str | None,
    drivers: Callable[[], Sequence[str]],
) -> None:
    wished = pairs.get("driver", "")
    if "/" not in wished:
        installed = list(drivers())
        known = [name for name in (wished, *_POSTGRESQL_DRIVERS) if name and name in installed]
        if not known:
            raise _wrong(
                setting,
                "needs PostgreSQL's ODBC driver (psqlodbc), which is not installed; a URL postgresql://... needs none",
                code="driver_missing",
            )
        pairs["driver"] = known[0]
    facts["driver"] = pairs["driver"].rpartition("/")[2]
    facts["identity"] = "login" if pairs.get("uid") else "system user"
    tls = {"sslmode": pairs["sslmode"]} if "sslmode" in pairs else {}
    if "pqopt" in pairs:
        # The user's own options of libpq may say everything about certificates.
        tls["sslrootcert"] = ""
    tls, facts["tls"] = _postgresql_tls(tls, pairs.get("server", ""), ca_bundle)
    if "sslmode" in tls:
        pairs["sslmode"] = tls["sslmode"]
    if tls.get("sslrootcert"):
        pairs["pqopt"] = f"sslrootcert={tls['sslrootcert']}"
    # Rows are fetched as they are read, and sizes tell bounded columns from unbounded ones.
    for keyword, value in (
        ("usedeclarefetch", "1"), ("fetch", "10000"), ("protocol", "7.4-0"),
        ("maxvarcharsize", str(UNBOUNDED_POSTGRESQL)), ("textaslongvarchar", "1"), ("byteaaslongvarbinary", "1"),
        ("boolsaschar", "0"), ("unknownsizes", "2"), ("keepalivetime", "60"), ("keepaliveinterval", "15"),
    ):  # fmt: skip
        pairs.setdefault(keyword, value)


def _braced(value: str) -> str:
    if value and not re.search(r"[\[\]{}(),;?*=!@]|^\s|\s$", value):
        return value
    return "{" + value.replace("}", "}}") + "}" if value else ""


def _installed_drivers() -> Sequence[str]:
    try:
        import pyodbc
    except ImportError:
        raise Configuration(
            "ODBC's driver manager is missing; install unixODBC (libodbc.so.2)", code="driver_missing", subject="odbc"
        ) from None
    return list(pyodbc.drivers())


def _linux_families() -> list[str]:
    families = ["debian_ubuntu", "rhel", "suse", "alpine"]
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8").lower()
    except OSError:
        return families
    said = " ".join(re.findall(r"^id(?:_like)?=\"?([^\"\n]*)", release, re.MULTILINE))
    for word, family in (("suse", "suse"), ("rhel", "rhel"), ("fedora", "rhel"), ("mariner", "rhel"),
                         ("azurelinux", "rhel"), ("alpine", "alpine")):  # fmt: skip
        if word in said:
            return [family, *(other for other in families if other != family)]
    return families


def _system_authorities() -> str | None:
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/cert.pem"):
        if path and Path(path).is_file():
            return path
    return None


def _wrong(setting: str, sentence: str, *, code: str = "connection_setting") -> Configuration:
    return Configuration(f"the setting {setting} {sentence}", code=code, subject=setting)
