"""What a database's errors mean, by SQLSTATE and the server's own number.

What drivers say may hold a value of a row or a part of the connection, so it is repeated only for the errors that are
about the text of a statement; SQLSTATE and number are always told.
"""

import re
from dataclasses import dataclass

from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ConnectionLost,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    SourceMissing,
    Throttled,
    TransientError,
    Unsupported,
)

# pyodbc writes every record as "[state] text (number)", behind the first one the function's name.
_RECORD = re.compile(r"\[(\w{5})\] (.*?) ?\((-?\d+)\)(?: \(SQL\w+\))?(?=; \[\w{5}\]|\s*$)", re.DOTALL)
_ORIGIN = re.compile(r"^(?:\[[^\]]*\])+\s*")

# Source: "Database Engine events and errors" of SQL Server, "Troubleshoot connectivity issues" of Azure SQL Database.
_BUSY_S = {
    1205: 2.0, 3960: 2.0, 1222: 5.0, 701: 30.0, 802: 30.0, 8645: 30.0, 8651: 30.0, 1204: 30.0, 40501: 20.0,
    40544: 60.0, 40549: 30.0, 40550: 30.0, 40551: 30.0, 40552: 30.0, 40553: 30.0, 10928: 10.0, 10929: 10.0,
    10936: 10.0, 49918: 10.0, 49919: 10.0, 49920: 10.0, 17809: 10.0, 3958: 30.0, 3966: 5.0, 3967: 30.0,
}  # fmt: skip
_AWAY = (40197, 40613, 40143, 40166, 40540, 42108, 42109, 615, 926, 921, 922, 983, 978, 976, 9001, 6005, 18401, 233)
_REFUSED = (18456, 18452, 18470, 18486, 18487, 18488, 18461, 4064, 40532, 40607)
_DENIED = (229, 230, 262, 297, 300, 371, 916, 15247, 22850, 22981)
_UNCERTIFIED = ("certificate", "ssl provider", "tls", "ssl routines")
# Of TLS as of any connection, where it breaks: OpenSSL's words, and libpq's about them.
TORN = re.compile(
    r"SSL SYSCALL error|unexpected eof|SSL connection has been closed|bad record mac|connection (was )?(reset|closed)"
    r"|timed out|broken pipe",
    re.IGNORECASE,
)
_OF_THE_STATEMENT = (
    102, 103, 105, 107, 116, 130, 147, 156, 164, 170, 174, 178, 189, 195, 201, 205, 206, 207, 209, 213, 241, 242, 245,
    249, 305, 306, 319, 402, 406, 409, 421, 446, 468, 529, 1033, 1038, 4104, 4121, 8114, 8116, 8117, 8120, 8127, 8155,
    8156,
)  # fmt: skip
# These quote a value of a row, not only words of the statement.
_WITH_VALUES = (241, 242, 245, 8114)


@dataclass(frozen=True, slots=True)
class Record:
    """One of the records that a driver leaves behind: ``08001``, 0, and its words."""

    state: str
    native: int
    text: str


class DriverError(Exception):
    """What a driver said, where no library made an exception of it."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__("; ".join(f"{record.state} ({record.native})" for record in records))
        self.records = records


def records_of(error: BaseException) -> list[Record]:
    """The records of an ODBC error, first the gravest as the driver has it."""
    if isinstance(error, DriverError):
        return error.records
    text = str(error.args[-1]) if error.args else ""
    found = [Record(match[1], int(match[3]), _ORIGIN.sub("", match[2])) for match in _RECORD.finditer(text)]
    if not found:
        state = str(error.args[0]) if error.args and re.fullmatch(r"\w{5}", str(error.args[0])) else ""
        found = [Record(state, 0, "")]
    return found


def classify_mssql(error: BaseException, *, setting: str, subject: str = "") -> MigrationError:
    """What an error of SQL Server's driver means.

    Args:
        error: As pyodbc raised it, or a DriverError.
        setting: The setting that holds the connection, for what is to be changed there.
        subject: What was read: a table, or nothing.
    """
    records = records_of(error)
    numbers = {record.native for record in records}
    said = _said(records)
    subject = subject or setting
    if error_of := _by_number(numbers, records, said, setting, subject):
        return error_of
    return _by_state(records, said, setting, subject)


def classify_postgresql_odbc(error: BaseException, *, setting: str, subject: str = "") -> MigrationError:
    """What an error of PostgreSQL's ODBC driver means; its states are the server's own."""
    from shared.clients.sql.postgresql import classify_postgresql

    records = records_of(error)
    words = " ".join(record.text for record in records)
    if _is_driver_missing(records):
        return _by_state(records, _said(records), setting, subject or setting)
    return classify_postgresql(records[0].state or None, words, setting=setting, subject=subject or setting)


def _is_driver_missing(records: list[Record]) -> bool:
    words = " ".join(record.text for record in records).lower()
    return "can't open lib" in words or records[0].state in ("IM002", "IM003", "IM004", "IM005")


def _by_number(
    numbers: set[int], records: list[Record], said: str, setting: str, subject: str
) -> MigrationError | None:
    for number in numbers:
        if number in _BUSY_S:
            reason = "chose this statement as a deadlock's victim" if number == 1205 else "is at a limit"
            return Throttled(f"the database {reason} ({said})", subject=subject, retry_after_s=_BUSY_S[number])
    if numbers & set(_AWAY):
        return ServiceUnavailable(f"the database is moving or restarting ({said})", subject=subject, retry_after_s=10.0)
    if 47073 in numbers or 40615 in numbers or 40914 in numbers:
        return Configuration(
            f"the database server's firewall does not let this app in ({said}); allow its outgoing addresses, or give "
            "it a private endpoint",
            code="database_firewall", subject=setting,
        )  # fmt: skip
    if numbers & set(_REFUSED):
        return Authentication(
            f"the database refuses the login ({said}); check user and password in the setting {setting}, that the "
            "login is neither disabled nor expired, and, for an identity of Microsoft Entra, that the database has "
            "a user for it (CREATE USER [name] FROM EXTERNAL PROVIDER)",
            code="login_refused", subject=setting,
        )  # fmt: skip
    if numbers & {4060, 911}:
        return SourceMissing(
            f"the login cannot open the database ({said}); check its name in the setting {setting}, and that the login "
            "has a user in it",
            code="database_missing", subject=setting,
        )  # fmt: skip
    if numbers & set(_DENIED):
        return AccessDenied(
            f"the login may not read this ({said}); grant SELECT (and a user in each database that a view reads), for "
            "tracked changes VIEW CHANGE TRACKING too, and for CDC membership in the capture's role",
            subject=subject,
        )
    if 208 in numbers or 2812 in numbers or 4902 in numbers:
        return NotFound(f"there is no such table, view or function: {_words(records)} ({said})", subject=subject)
    if 3961 in numbers:
        return SourceChanged(f"the table's definition changed while it was read ({said})", subject=subject)
    if numbers & {3952, 41332, 3951, 3953, 3956, 3957}:
        return Unsupported(
            f"the database gives no snapshot ({said}); run ALTER DATABASE ... SET ALLOW_SNAPSHOT_ISOLATION ON, or set "
            "source.consistency: slice",
            code="no_snapshot", subject=subject,
        )  # fmt: skip
    if numbers & {22105, 22106, 4998, 22115, 22117}:
        return Unsupported(
            f"Change Tracking does not cover this ({said}); run ALTER DATABASE ... SET CHANGE_TRACKING = ON and ALTER "
            "TABLE ... ENABLE CHANGE_TRACKING",
            code="not_tracked", subject=subject,
        )  # fmt: skip
    if 313 in numbers or 22837 in numbers:
        # "An insufficient number of arguments were supplied" is how cdc.fn_cdc_get_* says that an LSN is out of range.
        return Unsupported(
            f"changes of this range are no longer, or not yet, in the capture ({said}); the table has to be read anew",
            code="position_expired", subject=subject,
        )  # fmt: skip
    if numbers & set(_OF_THE_STATEMENT):
        detail = "" if numbers & set(_WITH_VALUES) else f": {_words(records)}"
        return ItemError(
            f"SQL Server does not take a statement for this table{detail} ({said}); check query and rules of the job",
            code="statement_refused", subject=subject,
        )  # fmt: skip
    return None


def _by_state(records: list[Record], said: str, setting: str, subject: str) -> MigrationError:
    state = records[0].state
    words = " ".join(record.text for record in records).lower()
    is_torn = TORN.search(words) is not None
    if any(word in words for word in _UNCERTIFIED) and state[:2] in ("08", "01", "HY") and not is_torn:
        return Configuration(
            f"the certificate of the database's server is not trusted ({said}); add the authority that issued it to "
            "the system's certificates (or name a file of authorities in SSL_CERT_FILE), and see that the server's "
            f"name in the setting {setting} is the certificate's (HostnameInCertificate=...). "
            "TrustServerCertificate=yes would let anybody in between read along",
            code="certificate_not_trusted", subject=setting,
        )  # fmt: skip
    if _is_driver_missing(records):
        return Configuration(
            f"the ODBC driver that the setting {setting} names cannot be loaded ({said}); install it with the "
            "libraries it needs (Kerberos, OpenSSL), or leave Driver to the app",
            code="driver_missing", subject=setting,
        )  # fmt: skip
    if state == "HY008" or state == "57014":
        return TransientError(f"the statement was ended ({said})", code="cancelled", subject=subject)
    if state == "HYT00" and "login" not in words:
        return TransientError(
            f"a statement took longer than source.statement_timeout_s ({said}); smaller slices (partition.rows) take "
            "less",
            code="statement_timeout", subject=subject, retry_after_s=30.0,
        )  # fmt: skip
    if state in ("HYT00", "HYT01") or (state[:2] == "08" and state != "08004") or is_torn:
        return ConnectionLost(
            f"no connection to the database, or it broke ({said}); if this stays, check server and port in the setting "
            f"{setting} and the network's way there",
            subject=subject,
        )
    if state == "28000" or state == "28P01" or state == "08004":
        return Authentication(
            f"the database refuses the login ({said}); check user and password in the setting {setting}",
            code="login_refused", subject=setting,
        )  # fmt: skip
    if state == "3D000":
        return SourceMissing(f"there is no such database ({said}); check the setting {setting}", subject=setting)
    if state in ("40001", "40P01", "55P03", "53300", "53200") or state[:2] == "53":
        return Throttled(f"the database is at a limit ({said})", subject=subject, retry_after_s=5.0)
    if state in ("57P01", "57P02", "57P03", "HY117"):
        return ServiceUnavailable(f"the database is restarting ({said})", subject=subject, retry_after_s=10.0)
    if state == "42501":
        return AccessDenied(f"the login may not read this ({said}); grant SELECT", subject=subject)
    if state in ("42P01", "42S02", "3F000"):
        return NotFound(f"there is no such table or view ({said})", subject=subject)
    if state in ("FA004", "FA005", "FA006", "FA007"):
        return Configuration(
            f"the driver does not take this way of logging in ({said}); give UID and PWD, or Authentication=..., or "
            f"neither in the setting {setting}",
            code="connection_setting", subject=setting,
        )  # fmt: skip
    return ItemError(f"the database does not answer as expected ({said})", code="database_error", subject=subject)


def _said(records: list[Record]) -> str:
    first = records[0]
    numbers = [str(record.native) for record in records if record.native]
    number = f", error {', '.join(dict.fromkeys(numbers))}" if numbers else ""
    return f"SQLSTATE {first.state or 'unknown'}{number}"


def _words(records: list[Record]) -> str:
    return " ".join(records[0].text.split())[:300].rstrip(". ")
