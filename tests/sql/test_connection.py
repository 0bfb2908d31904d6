"""A setting's value as a connection: what is understood, what is added, and that no secret ever shows."""

from __future__ import annotations

import traceback
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from shared.clients.sql.connection import Connection, bundled_driver, parse_connection
from shared.errors import Configuration

SECRET = "Hx9!;}{'=\"@ü"
DRIVER_18, DRIVER_17 = "ODBC Driver 18 for SQL Server", "ODBC Driver 17 for SQL Server"
BOTH = (DRIVER_17, DRIVER_18, "PostgreSQL Unicode")


def parsed(value: str, drivers: tuple[str, ...] = BOTH, ca_bundle: str | None = None) -> Connection:
    return parse_connection("ERP_DB", value, drivers=lambda: drivers, ca_bundle=ca_bundle)


def pairs(connection: Connection) -> dict[str, str]:
    """Keywords and values, taken apart by other means than the code's own."""
    found, rest = {}, connection.text
    while rest:
        keyword, _, rest = rest.partition("=")
        if rest.startswith("{"):
            end = 1
            while rest[end : end + 1] != "}" or rest[end : end + 2] == "}}":
                end += 2 if rest[end : end + 2] == "}}" else 1
            found[keyword], rest = rest[1:end].replace("}}", "}"), rest[end + 1 :].removeprefix(";")
        else:
            found[keyword], _, rest = rest.partition(";")
    return found


def test_a_url_becomes_an_odbc_string_with_verified_tls() -> None:
    found = parsed("mssql+pyodbc://loader:pw@erp.example.org:1533/Sales")

    assert found.dialect == "mssql" and found.transport == "odbc"
    assert (found.server, found.database, found.needs_token) == ("erp.example.org,1533", "Sales", False)
    assert pairs(found) == {
        "Driver": DRIVER_18, "Server": "erp.example.org,1533", "Database": "Sales", "UID": "loader", "PWD": "pw",
        "Encrypt": "yes", "TrustServerCertificate": "no", "APP": "lakehouse-migration",
    }  # fmt: skip
    assert found.facts == {"driver": DRIVER_18, "tls": "verified", "identity": "login"}


@pytest.mark.parametrize(
    "value",
    [
        f"mssql+pyodbc://loader:{quote_plus(SECRET)}@erp/Sales",
        f"mssql://loader:{quote_plus(SECRET)}@erp/Sales?driver=ODBC+Driver+18+for+SQL+Server",
        "Driver={ODBC Driver 18 for SQL Server};SERVER=erp;Database=Sales;Uid=loader;Pwd={"
        + SECRET.replace("}", "}}")
        + "}",
        "mssql+pyodbc:///?odbc_connect="
        + quote_plus(
            "Driver={ODBC Driver 18 for SQL Server};Server=erp;Database=Sales;UID=loader;PWD={"
            + SECRET.replace("}", "}}")
            + "};"
        ),
    ],
)
def test_a_password_of_odd_signs_arrives_whole_and_never_shows(value: str) -> None:
    found = parsed(value)

    assert pairs(found)["PWD"] == SECRET
    assert pairs(found)["UID"] == "loader"
    for shown in (repr(found), str(found), f"{found}", repr(found.facts)):
        assert SECRET not in shown and "Hx9" not in shown


@pytest.mark.parametrize(
    ("value", "about"),
    [
        ("", "is empty"),
        ("mssql+pyodbc://u:Hx9secret@erp:12x/Sales", "no URL that can be read"),
        ("mssql+pyodbc://u:Hx9secret@erp", "names no database"),
        ("mssql+pyodbc://u:Hx9secret@/Sales", "names no server"),
        ("oracle://u:Hx9secret@erp/Sales", "not known"),
        ("Server=erp;Database=Sales;UID=u;PWD=Hx9secret", "names no Driver"),
        ("Data Source=erp;Initial Catalog=Sales;User ID=u;Password=Hx9secret", "names no Driver"),
        ("Driver={ODBC Driver 18 for SQL Server};Data Source=erp;PWD=Hx9secret", "names no Server"),
        ("Driver={ODBC Driver 18 for SQL Server};Server=erp;User ID=u;PWD=Hx9secret", "ADO.NET"),
        ("Driver={MySQL ODBC 8.0};Server=erp;PWD=Hx9secret", "neither Microsoft's"),
        ("Driver={ODBC Driver 18 for SQL Server};Server=erp;PWD={Hx9secret", "neither a URL nor"),
        ("Hx9secret", "neither a URL nor"),
        ("Driver=/nowhere/libmsodbcsql-18.so;Server=erp;UID=u;PWD=Hx9secret", "no file is"),
        ("Driver={ODBC Driver 18 for SQL Server};Server=erp;PWD=Hx9secret", "no user"),
        ("DSN=erp;UID=u;PWD=Hx9secret", "Driver={...} too"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("postgresql://u:Hx9secret@pg", "names no database"),
        ("@Microsoft.KeyVault(SecretUri=https://v.vault.azure.net/secrets/Hx9secret)", "Key Vault Secrets User"),
        ("@microsoft.keyvault(VaultName=v;SecretName=Hx9secret)", "still a reference"),
    ],
)
def test_what_cannot_be_understood_is_said_of_the_setting_without_its_value(value: str, about: str) -> None:
    with pytest.raises(Configuration) as caught:
        parsed(value)

    assert about in caught.value.detail
    assert "ERP_DB" in caught.value.detail and caught.value.subject == "ERP_DB"
    assert "Hx9secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("given", "tls"),
    [
        ("", "verified"),
        (";Encrypt=Mandatory", "verified"),
        (";Encrypt=strict;TrustServerCertificate=yes", "verified"),
        (";TrustServerCertificate=yes", "encrypted, server not verified: TrustServerCertificate=yes"),
        (";Encrypt=no", "off: Encrypt=no"),
        (";Encrypt=Optional", "off: Encrypt=optional"),
    ],
)
def test_less_tls_than_usual_is_told(given: str, tls: str) -> None:
    assert parsed(f"Driver={{{DRIVER_18}}};Server=erp;UID=u;PWD=p{given}").facts["tls"] == tls


@pytest.mark.parametrize(
    ("given", "token", "identity"),
    [
        ("", True, "access token of the app's identity"),
        (";UID=;PWD=", True, "access token of the app's identity"),
        (";UID=u;PWD=p", False, "login"),
        (";Trusted_Connection=yes", False, "integrated"),
        (";Trusted_Connection=no", True, "access token of the app's identity"),
        (";Authentication=ActiveDirectoryMsi;UID=1234", False, "ActiveDirectoryMsi"),
    ],
)
def test_without_credentials_a_token_is_needed_and_nothing_beside_it(given: str, token: bool, identity: str) -> None:
    found = parsed(f"Driver={{{DRIVER_18}}};Server=erp.database.windows.net;Database=Sales{given}")

    assert found.needs_token is token
    assert found.facts["identity"] == identity
    if token:
        assert not {"UID", "PWD", "Authentication", "Trusted_Connection"} & set(pairs(found))


def test_the_url_of_azure_sql_without_a_user_needs_a_token() -> None:
    assert parsed("mssql+pyodbc://erp.database.windows.net/Sales").needs_token


@pytest.mark.parametrize(
    ("wished", "installed", "taken"),
    [
        (f"{{{DRIVER_18}}}", (DRIVER_17, DRIVER_18), DRIVER_18),
        (f"{{{DRIVER_17}}}", (DRIVER_17, DRIVER_18), DRIVER_17),
        (f"{{{DRIVER_18}}}", (DRIVER_17,), DRIVER_17),
        (f"{{{DRIVER_17}}}", (DRIVER_18,), DRIVER_18),
    ],
)
def test_the_driver_that_is_there_is_taken(wished: str, installed: tuple[str, ...], taken: str) -> None:
    found = parsed(f"Driver={wished};Server=erp;UID=u;PWD=p", installed)

    assert pairs(found)["Driver"] == taken
    assert found.facts["driver"] == taken


def test_without_an_installed_driver_the_package_brings_it() -> None:
    library = bundled_driver()
    if library is None:
        pytest.skip("the package mssql-python-odbc brings no driver for this machine")
    found = parsed("mssql://u:p@erp/Sales", ())

    assert pairs(found)["Driver"] == library and Path(library).is_file()
    assert "mssql-python-odbc" in str(found.facts["driver"])


def test_a_machine_without_any_driver_says_what_to_install(tmp_path: Path) -> None:
    assert bundled_driver(tmp_path) is None
    with pytest.raises(Configuration, match="psqlodbc") as caught:
        parsed("postgresql+pyodbc://u:p@pg/shop", ())
    assert caught.value.code == "driver_missing"


def test_postgresql_is_native_unless_odbc_is_asked_for() -> None:
    native = parsed("postgresql+psycopg://u%40x:p%2Fw@127.0.0.1:5433/sh%20op?application_name=x")
    assert (native.dialect, native.transport, native.database) == ("postgresql", "native", "sh op")
    assert native.text == "postgresql://u%40x:p%2Fw@127.0.0.1:5433/sh%20op?application_name=x"

    for value in (
        "postgresql+pyodbc://u:p@127.0.0.1:5433/shop",
        "Driver={PostgreSQL Unicode};Server=127.0.0.1;Port=5433;Database=shop;UID=u;PWD=p",
    ):
        odbc = parsed(value)
        assert (odbc.dialect, odbc.transport, odbc.server) == ("postgresql", "odbc", "127.0.0.1:5433")
        assert pairs(odbc)["UseDeclareFetch".lower()] == "1"


def test_a_far_postgresql_is_verified_unless_the_setting_says_otherwise(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    far = parsed("postgresql://u:p@pg.example.org/shop", ca_bundle=str(bundle))
    assert "sslmode=verify-full" in far.text and "ca.pem" in far.text
    assert far.facts["tls"] == "verified"

    lax = parsed("postgresql://u:p@pg.example.org/shop?sslmode=require")
    assert lax.facts["tls"] == "not verified: sslmode=require"
    assert "verify" not in lax.text

    odbc = parsed("Driver={PostgreSQL Unicode};Server=pg.example.org;Database=shop;UID=u;PWD=p", ca_bundle=str(bundle))
    assert pairs(odbc)["SSLmode"] == "verify-full" and pairs(odbc)["pqopt"] == f"sslrootcert={bundle}"


def test_a_file_of_sqlite() -> None:
    found = parsed("sqlite:////data/shop.db")
    assert (found.dialect, found.text, found.database) == ("sqlite", "/data/shop.db", "shop")


def test_the_first_of_two_values_counts_as_in_odbc() -> None:
    found = parsed(f"Driver={{{DRIVER_18}}};Server=first;server=second;UID=u;PWD=p;;")
    assert found.server == "first"
