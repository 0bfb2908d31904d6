"""What errors of SQL Server and of its ODBC driver mean, and that nothing is repeated that may be secret."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from shared.clients.sql.classify import DriverError, Record, classify_mssql, records_of
from shared.clients.sql.connection import bundled_driver, parse_connection
from shared.clients.sql.odbc import OdbcDriver, packed_token
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

SERVER = "[Microsoft][ODBC Driver 18 for SQL Server][SQL Server]"
DRIVER = "[Microsoft][ODBC Driver 18 for SQL Server]"


class PyodbcError(Exception):
    """Its arguments are those that pyodbc gives its own errors."""


def said(state: str, text: str, native: int, function: str = "SQLExecDirectW") -> PyodbcError:
    return PyodbcError(state, f"[{state}] {SERVER}{text} ({native}) ({function})")


def understood(error: Exception) -> MigrationError:
    return classify_mssql(error, setting="ERP_DB", subject="dbo.Orders")


@pytest.mark.parametrize(
    ("state", "native", "kind", "code"),
    [
        ("40001", 1205, Throttled, "throttled"),
        ("42000", 3960, Throttled, "throttled"),
        ("42000", 1222, Throttled, "throttled"),
        ("42000", 701, Throttled, "throttled"),
        ("42000", 10928, Throttled, "throttled"),
        ("42000", 10929, Throttled, "throttled"),
        ("42000", 40501, Throttled, "throttled"),
        ("42000", 49918, Throttled, "throttled"),
        ("42000", 49919, Throttled, "throttled"),
        ("42000", 49920, Throttled, "throttled"),
        ("42000", 40197, ServiceUnavailable, "service_unavailable"),
        ("HY000", 40613, ServiceUnavailable, "service_unavailable"),
        ("42000", 40615, Configuration, "database_firewall"),
        ("28000", 18456, Authentication, "login_refused"),
        ("42000", 4060, SourceMissing, "database_missing"),
        ("08004", 916, AccessDenied, "access_denied"),
        ("42000", 229, AccessDenied, "access_denied"),
        ("42000", 230, AccessDenied, "access_denied"),
        ("42000", 300, AccessDenied, "access_denied"),
        ("42S02", 208, NotFound, "not_found"),
        ("42000", 3952, Unsupported, "no_snapshot"),
        ("HY000", 3961, SourceChanged, "source_changed"),
        ("42000", 22105, Unsupported, "not_tracked"),
        ("42000", 22115, Unsupported, "not_tracked"),
        ("42000", 313, Unsupported, "position_expired"),
        ("42S22", 207, ItemError, "statement_refused"),
        ("42000", 102, ItemError, "statement_refused"),
        ("22018", 245, ItemError, "statement_refused"),
        ("42000", 9999, ItemError, "database_error"),
    ],
)
def test_a_number_of_the_server_has_a_meaning(state: str, native: int, kind: type[MigrationError], code: str) -> None:
    error = understood(said(state, "Something that the server says.", native))

    assert type(error) is kind and error.code == code
    assert state in error.detail and str(native) in error.detail
    assert not isinstance(error, Throttled) or (error.retry_after_s or 0) >= 2.0


@pytest.mark.parametrize(
    ("state", "text", "kind", "code"),
    [
        ("08001", "TCP Provider: Error code 0x2749", ConnectionLost, "connection_lost"),
        ("08S01", "Communication link failure", ConnectionLost, "connection_lost"),
        ("HYT00", "Login timeout expired", ConnectionLost, "connection_lost"),
        ("HYT00", "Query timeout expired", TransientError, "statement_timeout"),
        ("HY008", "Operation canceled", TransientError, "cancelled"),
        ("FA005", "Cannot use Access Token with any of the following options", Configuration, "connection_setting"),
        ("08S01", "SSL Provider: [error:0A000126:SSL routines::unexpected eof while reading]", ConnectionLost,
         "connection_lost"),
        ("08001", "SSL Provider: [error:0A000086:SSL routines::certificate verify failed:self-signed certificate]",
         Configuration, "certificate_not_trusted"),
    ],
)  # fmt: skip
def test_a_state_of_the_driver_has_a_meaning(
    state: str, text: str, kind: type[MigrationError], code: str
) -> None:  # fmt: skip
    error = understood(PyodbcError(state, f"[{state}] {DRIVER}{text} (0) (SQLDriverConnect)"))

    assert type(error) is kind and error.code == code
    assert "ERP_DB" in error.detail or code in ("statement_timeout", "cancelled")


def test_an_untrusted_certificate_asks_for_trust_in_its_authority() -> None:
    error = understood(
        PyodbcError("08001", f"[08001] {DRIVER}SSL Provider: certificate verify failed (-1) (SQLDriverConnect)")
    )

    assert "SSL_CERT_FILE" in error.detail and "HostnameInCertificate" in error.detail


def test_all_records_of_an_error_are_read() -> None:
    error = PyodbcError(
        "28000",
        f"[28000] {SERVER}Login failed for user 'sa'. (18456) (SQLDriverConnect); "
        f'[42000] {SERVER}Cannot open database "x (1)" requested by the login. (4060)',
    )

    assert [(record.state, record.native) for record in records_of(error)] == [("28000", 18456), ("42000", 4060)]
    assert records_of(error)[0].text == "Login failed for user 'sa'."


@pytest.mark.parametrize(
    "error",
    [
        said("22018", "Conversion failed when converting the nvarchar value 'Hx9secret' to data type int.", 245),
        said("28000", "Login failed for user 'Hx9secret'.", 18456, "SQLDriverConnect"),
        said("42000", "Cannot open server \"Hx9secret\" requested by the login.", 40615),
        said("HY000", "Hx9secret", 77777),
        PyodbcError("08001", f"[08001] {DRIVER}Hx9secret (0) (SQLDriverConnect)"),
        PyodbcError("Hx9secret"),
        DriverError([Record("HY000", 0, "Hx9secret")]),
    ],
)  # fmt: skip
def test_values_and_logins_are_not_repeated(error: Exception) -> None:
    assert "Hx9secret" not in understood(error).detail


def test_what_is_wrong_with_a_statement_is_told() -> None:
    assert "Invalid column name 'Totl'" in understood(said("42S22", "Invalid column name 'Totl'.", 207)).detail


# -- the real driver ---------------------------------------------------------------------------------------------------

needs_driver = pytest.mark.skipif(
    bundled_driver() is None, reason="mssql-python-odbc brings no driver for this machine"
)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@needs_driver
def test_a_server_that_is_not_there_is_a_lost_connection() -> None:
    value = f"Driver={bundled_driver()};Server=tcp:127.0.0.1,{closed_port()};UID=sa;PWD={{Hx9;}}}}secret}};Database=x"
    driver = OdbcDriver(parse_connection("ERP_DB", value), login_timeout_s=1)

    with pytest.raises(driver.errors) as caught:
        driver.connect()
    error = driver.classify(caught.value, "")

    assert type(error) is ConnectionLost
    assert "HYT00" in error.detail or "08001" in error.detail
    assert "Hx9" not in error.detail and "Hx9" not in str(caught.value)


@needs_driver
def test_a_server_that_hangs_up_is_a_lost_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            for _ in range(2):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.recv(64)
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        value = f"Driver={bundled_driver()};Server=tcp:127.0.0.1,{port};UID=sa;PWD=p;ConnectRetryCount=0"
        driver = OdbcDriver(parse_connection("ERP_DB", value), login_timeout_s=5)
        with pytest.raises(driver.errors) as caught:
            driver.connect()

    assert type(driver.classify(caught.value, "")) is ConnectionLost


@needs_driver
def test_the_driver_takes_a_token_and_goes_on_to_connect() -> None:
    """A driver that did not know the attribute, or found it malformed, would not come as far as the network."""
    asked = []

    def token() -> str:
        asked.append(True)
        return "eyJ0eXAiOiJKV1Qi.payload.signature"

    value = f"Driver={bundled_driver()};Server=tcp:127.0.0.1,{closed_port()};Database=x"
    driver = OdbcDriver(parse_connection("ERP_DB", value), token=token, login_timeout_s=1)
    with pytest.raises(driver.errors) as caught:
        driver.connect()

    assert asked == [True]
    assert type(driver.classify(caught.value, "")) is ConnectionLost


def test_a_token_is_told_with_its_length_and_in_utf_16() -> None:
    assert packed_token("ab") == b"\x04\x00\x00\x00a\x00b\x00"


@needs_driver
def test_a_connection_without_credentials_and_identity_says_what_to_write() -> None:
    driver = OdbcDriver(parse_connection("ERP_DB", f"Driver={bundled_driver()};Server=erp;Database=x"))

    with pytest.raises(Configuration, match="UID and PWD") as caught:
        driver.connect()
    assert caught.value.code == "no_identity"


def test_a_driver_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "libmsodbcsql-18.so"
    broken.write_bytes(b"no library")
    driver = OdbcDriver(parse_connection("ERP_DB", f"Driver={broken};Server=erp;UID=u;PWD=p"))

    with pytest.raises(driver.errors) as caught:
        driver.connect()
    assert driver.classify(caught.value, "").code == "driver_missing"
