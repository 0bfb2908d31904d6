"""Azure ML in two tenants with the real azure-ai-ml, and its blobs on Azurite with the real azure-storage-blob."""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import json
import os
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.constants import ListViewType
from azure.ai.ml.entities import AccountKeyConfiguration, AzureBlobDatastore, Data
from azure.ai.ml.exceptions import MlException
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import ClientSecretCredential
from azure.storage.blob import (
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    generate_container_sas,
)

from local.emulators.azureml.azurite import AzuriteMissing, install
from local.emulators.azureml.seeding import SampleAsset, sample_assets, seed_workspace
from local.emulators.launch import EmulatorsFailed, RunningEmulators, azureml_settings, launch
from tests.emulators.wire_client import credential as lake_credential

MANAGEMENT = "https://management.azure.com/.default"
STORAGE = "https://storage.azure.com/.default"
DATA_API = "2023-04-01-preview"
IMMUTABLE = "the existing asset's data uri cannot be changed"


@pytest.fixture(scope="session")
def azureml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulators]:
    try:
        install()
    except AzuriteMissing as missing:
        pytest.skip(str(missing))
    with launch(tmp_path_factory.mktemp("azureml"), azureml=True, page_items=2, journal=True) as running:
        yield running


@pytest.fixture(autouse=True)
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "azureml" in request.fixturenames:
        running: RunningEmulators = request.getfixturevalue("azureml")
        running.set_faults([])
        running.set_azureml(conflict_status=400, expirable_secrets="AccountKey")


def credential(azureml: RunningEmulators, tenant: str = "source", client: str = "migrator") -> ClientSecretCredential:
    found = azureml.addresses["azureml"]["tenants"][tenant]
    registration = found["clients"][client]
    return ClientSecretCredential(
        found["tenant_id"],
        registration["client_id"],
        registration["client_secret"],
        authority=azureml.addresses["authority_url"],
        disable_instance_discovery=True,
        connection_verify=azureml.addresses["ca_bundle"],
        retry_total=0,
    )


def workspace_of(azureml: RunningEmulators, tenant: str = "source") -> dict[str, Any]:
    found: dict[str, Any] = azureml.addresses["azureml"]["workspaces"][f"ws-{tenant}"]
    return found


MakeClient = Callable[..., MLClient]


@pytest.fixture
def ml(azureml: RunningEmulators, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """Makes clients of azure-ai-ml: of a tenant's workspace, with a credential of that tenant or of another."""
    monkeypatch.setenv("AZUREML_DEV_URL_MFE", azureml.addresses["azureml"]["url"])
    # The client leaves its cloud in the environment.
    monkeypatch.setenv("AZUREML_CURRENT_CLOUD", "AzureCloud")

    def make(
        tenant: str = "source", client: str = "migrator", *, tokens_of: str | None = None, **options: Any
    ) -> MLClient:
        workspace = workspace_of(azureml, tenant)
        return MLClient(
            credential(azureml, tokens_of or tenant, client),
            workspace["subscription_id"],
            options.pop("resource_group", workspace["resource_group"]),
            options.pop("name", workspace["name"]),
            enable_telemetry=False,
            connection_verify=azureml.addresses["ca_bundle"],
            **options,
        )

    return make


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """An asset of this test alone."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:80]


def register(azureml: RunningEmulators, name: str, *versions: str, kind: str = "mltable") -> None:
    azureml.register_assets(
        [
            {
                "workspace": "ws-source",
                "name": name,
                "version": version,
                "properties": {"dataType": kind, "dataUri": f"azureml://datastores/workspaceblobstore/paths/{name}/"},
            }
            for version in versions
        ]
    )


def base(azureml: RunningEmulators, tenant: str = "source") -> str:
    workspace = workspace_of(azureml, tenant)
    return (
        f"/subscriptions/{workspace['subscription_id']}/resourceGroups/{workspace['resource_group']}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{workspace['name']}"
    )


def send(
    azureml: RunningEmulators,
    method: str,
    target: str,
    body: Any = None,
    *,
    token: str | None = None,
) -> tuple[int, Any, dict[str, str]]:
    """One request to the control plane, as the source's migrator or with another token; an empty one sends none."""
    url = urllib.parse.urlsplit(azureml.addresses["azureml"]["url"])
    context = ssl.create_default_context(cafile=azureml.addresses["ca_bundle"])
    with contextlib.closing(
        http.client.HTTPSConnection(url.hostname or "", url.port, context=context, timeout=20)
    ) as connection:
        if token is None:
            token = credential(azureml).get_token(MANAGEMENT).token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, target, content, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None, {k.lower(): v for k, v in answer.getheaders()}


# workspaces and datastores


def test_workspaces(ml: MakeClient) -> None:
    source, target = ml(), ml("target")
    assert source.workspaces.get("ws-source").location == "westeurope"
    assert [found.name for found in source.workspaces.list()] == ["ws-source"]
    assert [found.name for found in target.workspaces.list()] == ["ws-target"]
    assert list(ml(client="outsider").workspaces.list()) == []


def test_a_workspace_that_is_not_there(ml: MakeClient) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        ml(name="nope").workspaces.get("nope")
    assert caught.value.error is not None
    assert caught.value.error.code == "ResourceNotFound"
    with pytest.raises(HttpResponseError) as forbidden:
        ml(resource_group="nope").workspaces.get("ws-source")
    assert forbidden.value.status_code == 403


def test_datastores(azureml: RunningEmulators, ml: MakeClient) -> None:
    client = ml()
    kinds = {found.name: type(found.credentials).__name__ for found in client.datastores.list()}
    assert kinds == {
        "identity_store": "NoneCredentialConfiguration",
        "sas_store": "SasTokenConfiguration",
        "workspaceblobstore": "AccountKeyConfiguration",
    }
    default = client.datastores.get_default(include_secrets=True)
    assert (default.name, default.account_name) == ("workspaceblobstore", "amlsourcestore")
    assert default.container_name == workspace_of(azureml)["datastores"][0]["container"]
    assert default.credentials.account_key == azureml.addresses["azureml"]["account_keys"]["amlsourcestore"]
    assert "sig=" in client.datastores.get("sas_store", include_secrets=True).credentials.sas_token
    assert client.datastores.get("workspaceblobstore").credentials.account_key is None
    with pytest.raises(ResourceNotFoundError, match="Could not find datastore: nope"):
        client.datastores.get("nope")


def test_an_expirable_secret_may_be_a_signature(azureml: RunningEmulators, ml: MakeClient) -> None:
    azureml.set_azureml(expirable_secrets="Sas")
    status, secrets, _ = send(
        azureml,
        "POST",
        f"{base(azureml)}/datastores/workspaceblobstore/listSecrets?api-version=2024-10-01-preview",
        {"expirableSecret": True, "expireAfterHours": 1},
    )
    assert (status, secrets["secretsType"]) == (200, "Sas")
    status, secrets, _ = send(
        azureml,
        "POST",
        f"{base(azureml)}/datastores/workspaceblobstore/listSecrets?api-version=2024-10-01-preview",
    )
    assert (status, secrets["secretsType"]) == (200, "AccountKey")
    status, refusal, _ = send(
        azureml,
        "POST",
        f"{base(azureml)}/datastores/identity_store/listSecrets?api-version=2024-10-01-preview",
        {"expirableSecret": True},
    )
    assert (status, refusal["error"]["code"]) == (400, "UserError")


def test_a_datastore_made_by_the_client(azureml: RunningEmulators, ml: MakeClient) -> None:
    client = ml()
    made = AzureBlobDatastore(
        name="made",
        account_name="amlsourcestore",
        container_name="by-sas",
        credentials=AccountKeyConfiguration(account_key="c2VjcmV0"),
    )
    assert client.datastores.create_or_update(made).container_name == "by-sas"
    assert client.datastores.get("made").credentials.account_key is None
    client.datastores.delete("made")
    assert "made" not in [found.name for found in client.datastores.list()]


# data


def test_versions(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    register(azureml, name, "1", "2", "10", "2024-05-01", "3")
    client = ml()
    found = client.data.get(name, "10")
    workspace = workspace_of(azureml)
    assert (found.name, found.version, found.type) == (name, "10", "mltable")
    assert found.path == (
        f"azureml://subscriptions/{workspace['subscription_id']}/resourcegroups/{workspace['resource_group']}"
        f"/workspaces/{workspace['name']}/datastores/workspaceblobstore/paths/{name}/"
    )
    assert found.id == f"{base(azureml)}/data/{name}/versions/10"
    assert found.creation_context is not None
    assert found.creation_context.created_at
    assert [one.version for one in client.data.list(name)] == ["3", "2024-05-01", "10", "2", "1"]
    assert client.data.get(name, label="latest").version == "3"
    containers = {one.name: one.latest_version for one in client.data.list()}
    assert containers[name] == "3"
    _, container, _ = send(azureml, "GET", f"{base(azureml)}/data/{name}?api-version={DATA_API}")
    assert container["properties"]["nextVersion"] == "11"


def test_what_is_not_registered(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    client = ml()
    with pytest.raises(ResourceNotFoundError) as caught:
        client.data.get(name, "1")
    assert caught.value.error is not None
    assert (caught.value.status_code, caught.value.error.code) == (404, "UserError")
    # The label is looked up in the container, and the client makes an error of its own of the 404.
    with pytest.raises(MlException, match="does not exist in workspace"):
        client.data.get(name, label="latest")
    with pytest.raises(ResourceNotFoundError):
        list(client.data.list(name))
    register(azureml, name, "1")
    with pytest.raises(ResourceNotFoundError):
        client.data.get(name, "2")


def test_archived_versions(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    register(azureml, name, "1", "2", "3")
    client = ml()

    def listed(view: ListViewType) -> list[str | None]:
        return [one.version for one in client.data.list(name, list_view_type=view)]

    before = client.data.get(name, "2")
    client.data.archive(name, "2")
    assert listed(ListViewType.ACTIVE_ONLY) == ["3", "1"]
    assert listed(ListViewType.ARCHIVED_ONLY) == ["2"]
    assert listed(ListViewType.ALL) == ["3", "2", "1"]
    assert client.data.get(name, "2").path == before.path
    client.data.restore(name, "2")
    assert listed(ListViewType.ACTIVE_ONLY) == ["3", "2", "1"]
    client.data.archive(name)
    assert listed(ListViewType.ACTIVE_ONLY) == []
    assert name not in [one.name for one in client.data.list()]
    assert name in [one.name for one in client.data.list(list_view_type=ListViewType.ARCHIVED_ONLY)]
    assert client.data.get(name, "3").version == "3"


def test_registering(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    client = ml("target")
    path = f"azureml://datastores/workspaceblobstore/paths/{name}/"
    made = client.data.create_or_update(Data(name=name, version="9_m1", type="uri_folder", path=path, tags={"a": "1"}))
    workspace = workspace_of(azureml, "target")
    long = f"azureml://subscriptions/{workspace['subscription_id']}/resourcegroups/rg-target/workspaces/ws-target/"
    assert made.path == client.data.get(name, "9_m1").path == f"{long}datastores/workspaceblobstore/paths/{name}/"
    # Nothing is a number among the versions so far.
    assert client.data.create_or_update(Data(name=name, type="uri_folder", path=path)).version == "1"
    assert client.data.create_or_update(Data(name=name, type="uri_folder", path=path)).version == "2"
    effects = [entry["status"] for entry in azureml.journal() if name in entry["path"]]
    assert effects == [201, 201, 201]


@pytest.mark.parametrize(("status", "error"), [(400, HttpResponseError), (409, ResourceExistsError)])
def test_the_path_of_a_version_cannot_change(
    azureml: RunningEmulators, ml: MakeClient, name: str, status: int, error: type[HttpResponseError]
) -> None:
    azureml.set_azureml(conflict_status=status)
    client = ml()
    path = f"azureml://datastores/workspaceblobstore/paths/{name}/"
    client.data.create_or_update(Data(name=name, version="1", type="uri_folder", path=path, tags={"a": "1"}))
    other = Data(name=name, version="1", type="uri_folder", path=f"{path}elsewhere/", tags={"a": "2"})
    with pytest.raises(error, match=IMMUTABLE) as caught:
        client.data.create_or_update(other)
    assert type(caught.value) is error
    assert caught.value.error is not None
    assert (caught.value.status_code, caught.value.error.code) == (status, "UserError")
    assert client.data.get(name, "1").tags == {"a": "1"}
    with pytest.raises(error):
        client.data.create_or_update(Data(name=name, version="1", type="uri_file", path=path))


def test_what_may_change_of_a_version(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    register(azureml, name, "1", kind="uri_folder")
    client = ml()
    before = client.data.get(name, "1")
    long = before.path.replace("ws-source", "WS-Source").replace("rg-source", "RG-SOURCE")
    changed = Data(name=name, version="1", type="uri_folder", path=long, tags={"b": "2"}, description="new")
    after = client.data.create_or_update(changed)
    assert (after.tags, after.description, after.path) == ({"b": "2"}, "new", before.path)


def test_deleting(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    register(azureml, name, "1", "2")
    target = f"{base(azureml)}/data/{name}/versions/1?api-version={DATA_API}"
    assert send(azureml, "DELETE", target)[0] == 200
    assert send(azureml, "DELETE", target)[0] == 204
    assert [one.version for one in ml().data.list(name)] == ["2"]
    assert send(azureml, "DELETE", f"{base(azureml)}/data/{name}?api-version={DATA_API}")[0] == 200
    assert send(azureml, "GET", f"{base(azureml)}/data/{name}?api-version={DATA_API}")[0] == 404


def test_pages(azureml: RunningEmulators, name: str) -> None:
    register(azureml, name, "1", "2", "3", "4", "5")
    target = f"{base(azureml)}/data/{name}/versions?api-version={DATA_API}&listViewType=All&%24orderBy=createdtime+asc"
    pages = []
    while target:
        _, page, _ = send(azureml, "GET", target)
        pages.append([one["name"] for one in page["value"]])
        link = urllib.parse.urlsplit(page.get("nextLink", ""))
        target = f"{link.path}?{link.query}" if link.path else ""
    assert pages == [["1", "2"], ["3", "4"], ["5"]]
    _, page, _ = send(azureml, "GET", f"{base(azureml)}/data/{name}/versions?api-version={DATA_API}&%24top=1")
    assert [one["name"] for one in page["value"]] == ["5"]
    for wrong in ("listViewType=Some", "%24skip=x", "%24top=0"):
        status, refusal, _ = send(
            azureml, "GET", f"{base(azureml)}/data/{name}/versions?api-version={DATA_API}&{wrong}"
        )
        assert (status, refusal["error"]["code"]) == (400, "UserError")


GOOD = {"dataType": "mltable", "dataUri": "azureml://datastores/workspaceblobstore/paths/x/"}


@pytest.mark.parametrize(
    ("called", "body", "told"),
    [
        ("good/versions/1", b"{", "could not be deserialized"),
        ("good/versions/1", {}, "Properties field is required"),
        ("good/versions/1", {"properties": {**GOOD, "dataType": "table"}}, "data type 'table'"),
        ("good/versions/1", {"properties": {"dataType": "mltable"}}, "data uri 'None'"),
        ("good/versions/1", {"properties": {**GOOD, "dataUri": "./x"}}, "is not valid"),
        (
            "good/versions/1",
            {"properties": {**GOOD, "dataUri": "azureml://datastores/no/paths/x"}},
            "find datastore: no",
        ),
        ("good/versions/1", {"properties": {**GOOD, "tags": {"a": 1}}}, "are strings"),
        ("_bad/versions/1", {"properties": GOOD}, "The name '_bad' is invalid"),
        ("good/versions/a%20b", {"properties": GOOD}, "The version 'a b' is invalid"),
    ],
)
def test_what_cannot_be_registered(azureml: RunningEmulators, called: str, body: Any, told: str) -> None:
    status, refusal, _ = send(azureml, "PUT", f"{base(azureml)}/data/{called}?api-version={DATA_API}", body)
    assert status == 400
    assert told in refusal["error"]["message"]
    status, _, _ = send(azureml, "GET", f"{base(azureml)}/data/{called}?api-version={DATA_API}")
    assert status == 404


def test_the_version_of_the_api(azureml: RunningEmulators) -> None:
    for query, code in (("", "MissingApiVersionParameter"), ("?api-version=1", "InvalidApiVersionParameter")):
        status, refusal, _ = send(azureml, "GET", f"{base(azureml)}/data{query}")
        assert (status, refusal["error"]["code"]) == (400, code)
    status, refusal, _ = send(azureml, "GET", f"{base(azureml)}/jobs?api-version={DATA_API}")
    assert (status, refusal["error"]["code"]) == (404, "InvalidResourceType")


# who may do what


def test_a_token_of_the_other_tenant(azureml: RunningEmulators, ml: MakeClient) -> None:
    for tenant, other in (("source", "target"), ("target", "source")):
        with pytest.raises(ClientAuthenticationError, match="InvalidAuthenticationTokenTenant") as caught:
            ml(tenant, tokens_of=other).data.get("x", "1")
        own = azureml.addresses["azureml"]["tenants"][tenant]["tenant_id"]
        assert f"must match the tenant 'https://sts.windows.net/{own}/'" in str(caught.value)


def test_other_tokens(azureml: RunningEmulators) -> None:
    target = f"{base(azureml)}?api-version=2024-10-01-preview"
    wrong = credential(azureml).get_token(STORAGE).token
    claims = jwt.decode(credential(azureml).get_token(MANAGEMENT).token, options={"verify_signature": False})
    key = (azureml.root / "state" / "token-key").read_bytes()
    for token, code in (
        ("", "AuthenticationFailed"),
        ("nonsense", "InvalidAuthenticationToken"),
        (jwt.encode(claims, b"another key of thirty-two bytes!", algorithm="HS256"), "InvalidAuthenticationToken"),
        (jwt.encode({**claims, "exp": claims["nbf"]}, key, algorithm="HS256"), "ExpiredAuthenticationToken"),
        (wrong, "InvalidAuthenticationTokenAudience"),
    ):
        status, refusal, headers = send(azureml, "GET", target, token=token)
        assert (status, refusal["error"]["code"]) == (401, code)
        assert "Bearer" in headers["www-authenticate"]
    status, refusal, _ = send(azureml, "GET", "/subscriptions/none/resourceGroups/x?api-version=2024-10-01-preview")
    assert (status, refusal["error"]["code"]) == (404, "SubscriptionNotFound")


def test_tenants_of_the_issuer(azureml: RunningEmulators) -> None:
    tenants = azureml.addresses["azureml"]["tenants"]
    for tenant, found in tenants.items():
        claims = jwt.decode(
            credential(azureml, tenant).get_token(MANAGEMENT).token, options={"verify_signature": False}
        )
        assert claims["tid"] == found["tenant_id"]
        assert claims["iss"] == f"https://sts.windows.net/{found['tenant_id']}/"
        assert claims["aud"] == "https://management.azure.com"
    stranger = ClientSecretCredential(
        tenants["target"]["tenant_id"],
        tenants["source"]["clients"]["migrator"]["client_id"],
        tenants["source"]["clients"]["migrator"]["client_secret"],
        authority=azureml.addresses["authority_url"],
        disable_instance_discovery=True,
        connection_verify=azureml.addresses["ca_bundle"],
    )
    with pytest.raises(ClientAuthenticationError, match="AADSTS700016"):
        stranger.get_token(MANAGEMENT)


def test_roles(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    register(azureml, name, "1", kind="uri_folder")
    reader, outsider = ml(client="reader"), ml(client="outsider")
    path = reader.data.get(name, "1").path
    refused: list[tuple[str, Callable[[], Any]]] = [
        (
            "data/versions/write",
            lambda: reader.data.create_or_update(Data(name=name, version="2", type="uri_folder", path=path)),
        ),
        ("datastores/listSecrets/action", lambda: reader.datastores.get_default(include_secrets=True)),
        ("data/versions/read", lambda: outsider.data.get(name, "1")),
        ("workspaces/read", lambda: outsider.workspaces.get("ws-source")),
    ]
    for action, call in refused:
        with pytest.raises(HttpResponseError) as caught:
            call()
        assert caught.value.error is not None
        assert (caught.value.status_code, caught.value.error.code) == (403, "AuthorizationFailed")
        assert f"{action}'" in str(caught.value)


# blobs


def blobs(azureml: RunningEmulators, given: Any, account: str = "amlsourcestore", **options: int) -> BlobServiceClient:
    return BlobServiceClient(
        azureml.addresses["azureml"]["storage_urls"][account],
        credential=given,
        connection_verify=azureml.addresses["ca_bundle"],
        retry_total=0,
        **options,
    )


def key_of(azureml: RunningEmulators, account: str = "amlsourcestore") -> str:
    found: str = azureml.addresses["azureml"]["account_keys"][account]
    return found


def test_blobs_with_key_token_and_signature(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    signature = ml().datastores.get("sas_store", include_secrets=True).credentials.sas_token
    for number, given in enumerate((key_of(azureml), credential(azureml), signature)):
        container = blobs(azureml, given).get_container_client("by-sas")
        content = f"{name} {number}".encode() * 1000
        container.upload_blob(f"{name}/ü %41 &+/{number}", content, validate_content=True)
        assert container.download_blob(f"{name}/ü %41 &+/{number}").readall() == content
    assert [one.name for one in container.list_blobs(name_starts_with=f"{name}/")] == [
        f"{name}/ü %41 &+/{number}" for number in range(3)
    ]
    block = os.urandom(5_000_000)
    small_blocks = {"max_single_put_size": 1_000_000, "max_block_size": 1_000_000}
    client = blobs(azureml, key_of(azureml), **small_blocks).get_blob_client("by-sas", f"{name}/large")
    client.upload_blob(block)
    assert client.download_blob().readall() == block


def test_who_may_read_and_write_blobs(azureml: RunningEmulators, name: str) -> None:
    blobs(azureml, key_of(azureml)).get_blob_client("by-sas", name).upload_blob(b"here")
    reader = blobs(azureml, credential(azureml, client="reader")).get_blob_client("by-sas", name)
    assert reader.download_blob().readall() == b"here"
    for client in (reader, blobs(azureml, credential(azureml, client="outsider")).get_blob_client("by-sas", name)):
        with pytest.raises(HttpResponseError) as caught:
            client.upload_blob(b"not here", overwrite=True)
        assert (caught.value.status_code, caught.value.error_code) == (403, "AuthorizationPermissionMismatch")
    other_key = blobs(azureml, key_of(azureml, "amltargetstore")).get_blob_client("by-sas", name)
    with pytest.raises(HttpResponseError):
        other_key.download_blob()


def test_an_account_takes_tokens_of_its_own_tenant(azureml: RunningEmulators) -> None:
    found = azureml.addresses["azureml"]["tenants"]["target"]

    class Fixed:
        def get_token(self, *scopes: str, **options: Any) -> Any:
            return credential(azureml, "target").get_token(STORAGE)

    client = blobs(azureml, Fixed())
    with pytest.raises(ClientAuthenticationError) as caught:
        client.get_service_properties()
    assert caught.value.error_code == "InvalidAuthenticationInfo"
    assert "Issuer validation failed" in str(caught.value)
    assert found["tenant_id"] not in str(caught.value)


def test_public_blobs(azureml: RunningEmulators, name: str) -> None:
    service = blobs(azureml, key_of(azureml))
    public = service.get_blob_client("public", name)
    public.upload_blob(b"for all")
    assert blobs(azureml, None).get_blob_client("public", name).download_blob().readall() == b"for all"
    service.get_blob_client("by-sas", name).upload_blob(b"for some")
    with pytest.raises(HttpResponseError):
        blobs(azureml, None).get_blob_client("by-sas", name).download_blob()


def test_a_copy_between_tenants_needs_a_signature_for_the_source(azureml: RunningEmulators, name: str) -> None:
    source = blobs(azureml, key_of(azureml)).get_blob_client("by-sas", name)
    source.upload_blob(b"across")
    signature = generate_container_sas(
        "amlsourcestore",
        "by-sas",
        account_key=key_of(azureml),
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
    )
    target = blobs(azureml, credential(azureml, "target"), "amltargetstore").get_blob_client("by-sas", name)
    with pytest.raises(HttpResponseError) as caught:
        target.start_copy_from_url(source.url)
    assert caught.value.error_code == "CannotVerifyCopySource"
    assert target.start_copy_from_url(f"{source.url}?{signature}")["copy_status"] == "success"
    assert target.download_blob().readall() == b"across"


def test_a_signature_by_user_delegation(azureml: RunningEmulators, name: str) -> None:
    service = blobs(azureml, credential(azureml, client="reader"))
    blobs(azureml, key_of(azureml)).get_blob_client("by-sas", name).upload_blob(b"x")
    now = datetime.datetime.now(datetime.UTC)
    start, end = now - datetime.timedelta(minutes=5), now + datetime.timedelta(hours=1)
    signature = generate_container_sas(
        "amlsourcestore",
        "by-sas",
        user_delegation_key=service.get_user_delegation_key(start, end),
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=end,
    )
    with ContainerClient.from_container_url(
        f"{azureml.addresses['azureml']['storage_urls']['amlsourcestore']}/by-sas?{signature}",
        connection_verify=azureml.addresses["ca_bundle"],
    ) as container:
        assert container.download_blob(name).readall() == b"x"


@pytest.fixture
def local_names(azureml: RunningEmulators, monkeypatch: pytest.MonkeyPatch) -> None:
    """``*.localhost`` is this machine (RFC 6761), which not every resolver knows."""
    resolve = socket.getaddrinfo

    def found(host: Any, *args: Any, **options: Any) -> Any:
        is_local = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if is_local else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", azureml.addresses["ca_bundle"])


@pytest.mark.parametrize(
    ("datastore", "seen"),
    [("sas_store", ["./a.csv"]), ("identity_store", ["./a.csv"]), ("workspaceblobstore", None)],
)
def test_what_the_sdk_reads_before_it_registers(
    azureml: RunningEmulators, ml: MakeClient, name: str, local_names: None, datastore: str, seen: list[str] | None
) -> None:
    """With an account key the SDK needs an account name that it takes from Azure's own hosts only."""
    addresses = azureml.addresses["azureml"]
    service = blobs(azureml, key_of(azureml))
    containers = {found["name"]: found["container"] for found in workspace_of(azureml)["datastores"]}
    blueprint = b"type: mltable\npaths:\n  - file: ./a.csv\n"
    service.get_blob_client(containers[datastore], f"{name}/MLTable").upload_blob(blueprint)
    service.get_blob_client("public", "schema.json").upload_blob(b"{}", overwrite=True)
    client = ml(
        cloud="Emulated",
        cloud_metadata={
            "azure_portal": "https://portal.azure.com/",
            "resource_manager": "https://management.azure.com/",
            "active_directory": azureml.addresses["authority_url"],
            "aml_resource_id": "https://management.azure.com/",
            "storage_endpoint": addresses["storage_endpoint"],
            "registry_discovery_endpoint": "https://127.0.0.1:1/",
        },
    )
    azureml.reset_stats()
    made = client.data.create_or_update(
        Data(
            name=name,
            version="1",
            type="mltable",
            path=f"azureml://datastores/{datastore}/paths/{name}/",
            mltable_schema_url=f"{addresses['storage_urls']['amlsourcestore']}/public/schema.json",
        )
    )
    assert made._referenced_uris == seen
    assert "azureml_blob" in azureml.stats() or seen is None


# faults


def test_faults_of_the_control_plane(azureml: RunningEmulators, ml: MakeClient, name: str) -> None:
    register(azureml, name, "1")
    client = ml()
    azureml.reset_stats()
    # The client tries again, at once where it is told to.
    azureml.set_faults(
        [
            {"service": "azureml", "fault": "throttle", "retry_after_s": 0, "times": 1, "path": f"*/data/{name}/*"},
            {"service": "azureml", "fault": "unavailable", "retry_after_s": 0, "times": 1, "operation": "properties"},
        ]
    )
    assert client.data.get(name, "1").version == "1"
    assert azureml.stats()["azureml"]["properties"] == {"200": 1, "429": 1, "503": 1}
    target = f"{base(azureml)}/data/{name}/versions/1?api-version={DATA_API}"
    azureml.set_faults(
        [
            {"service": "azureml", "fault": "expired_token", "times": 1},
            {"service": "azureml", "fault": "throttle", "times": 1, "retry_after_s": 7},
            {"service": "azureml", "fault": "server_error", "times": 1},
        ]
    )
    found = [send(azureml, "GET", target) for _ in range(4)]
    assert [(status, document.get("error", {}).get("code")) for status, document, _ in found] == [
        (401, "ExpiredAuthenticationToken"),
        (429, "TooManyRequests"),
        (500, "ServiceError"),
        (200, None),
    ]
    assert found[1][2]["retry-after"] == "7"


def test_a_registration_whose_answer_is_lost(azureml: RunningEmulators, name: str) -> None:
    azureml.set_faults([{"service": "azureml", "operation": "create", "fault": "reset_after", "times": 1}])
    target = f"{base(azureml)}/data/{name}/versions/1?api-version={DATA_API}"
    with pytest.raises((ConnectionError, http.client.HTTPException, ssl.SSLError)):
        send(azureml, "PUT", target, {"properties": GOOD})
    assert send(azureml, "PUT", target, {"properties": GOOD})[0] == 200


def test_faults_of_the_blobs(azureml: RunningEmulators, name: str) -> None:
    client = blobs(azureml, key_of(azureml)).get_blob_client("by-sas", name)
    client.upload_blob(b"data")
    rule = {"service": "azureml_blob", "path": f"amlsourcestore/by-sas/{name}", "times": 1}
    for fault, status, code in (
        ("unavailable", 503, "ServerBusy"),
        ("throttle", 429, "ServerBusy"),
        ("server_error", 500, "InternalError"),
        ("expired_token", 401, "InvalidAuthenticationInfo"),
    ):
        azureml.set_faults([{**rule, "fault": fault}])
        with pytest.raises(HttpResponseError) as caught:
            client.download_blob()
        assert (caught.value.status_code, caught.value.error_code) == (status, code)
    azureml.set_faults([{**rule, "fault": "reset_before"}])
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        client.download_blob()
    azureml.set_faults([{**rule, "fault": "corrupt_body", "operation": "read"}])
    assert client.download_blob().readall() == bytes([ord("d") ^ 0xFF]) + b"ata"
    azureml.set_faults([{**rule, "fault": "corrupt_body", "operation": "append_flush"}])
    with pytest.raises(HttpResponseError) as caught:
        client.upload_blob(b"other", overwrite=True, validate_content=True)
    assert caught.value.error_code == "Md5Mismatch"
    assert client.download_blob().readall() == b"data"


# the sample assets


def samples(**options: int) -> list[SampleAsset]:
    workspace = {"subscription_id": "s", "resource_group": "g", "name": "w"}
    return sample_assets(workspace, "https://127.0.0.1/public", **options)


def test_one_seed_one_set_of_assets() -> None:
    assert samples() == samples()
    assert samples() != samples(seed=1)
    assert len({(asset.name, asset.version) for asset in samples()}) == len(samples())


def test_the_sample_assets_load(tmp_path: Path) -> None:
    import mltable

    rows = {}
    for asset in samples(rows=5):
        folder = asset.write_to(tmp_path)
        if asset.trait not in ("long uris", "public path", "broken yaml", "no blueprint", "other type"):
            rows[asset.name] = len(mltable.load(str(folder)).to_pandas_dataframe())
    assert rows == {
        "customer_profiles": 10,
        "orders_daily": 15,
        "clickstream": 20,
        "shared_lookup": 10,
        "sales_delta": 5,
        "regional_stock": 5,
        "retired_report": 5,
        "forgotten_table": 5,
    }


def test_a_seeded_workspace(azureml: RunningEmulators, ml: MakeClient) -> None:
    assets = seed_workspace(azureml.addresses, rows=5)
    assert seed_workspace(azureml.addresses, rows=5) == assets
    client = ml()
    containers = {found["name"]: found["container"] for found in workspace_of(azureml)["datastores"]}
    service = blobs(azureml, key_of(azureml))
    for asset in assets:
        container = service.get_container_client(containers[asset.datastore])
        found = {one.name: one.size for one in container.list_blobs(name_starts_with=f"{asset.root}/")}
        assert found == {name: len(data) for name, data in asset.blobs().items() if name.startswith(f"{asset.root}/")}
        if not asset.registered:
            with pytest.raises(ResourceNotFoundError):
                client.data.get(asset.name, asset.version)
            continue
        registered = client.data.get(asset.name, asset.version)
        assert (registered.type, registered.tags) == (asset.type, dict(asset.tags))
        assert registered.path is not None
        assert registered.path.endswith(f"/datastores/{asset.datastore}/paths/{asset.root}/")
    assert [one.version for one in client.data.list("orders_daily")] == ["12", "9"]
    assert "retired_report" not in [one.name for one in client.data.list() if list(client.data.list(one.name))]
    public = next(asset for asset in assets if asset.trait == "public path")
    url = next(line.split(" ")[-1] for line in public.files["MLTable"].decode().splitlines() if "https://" in line)
    account, container_name, blob = urllib.parse.urlsplit(url).path.lstrip("/").split("/", 2)
    anonymous = blobs(azureml, None, account).get_blob_client(container_name, blob)
    assert anonymous.download_blob().readall().startswith(b"code,name\n")
    azureml.clear_assets("ws-source")
    assert list(client.data.list()) == []


# the launcher's promises


def test_settings(azureml: RunningEmulators) -> None:
    environment = azureml.environment()
    assert environment.items() >= azureml_settings(azureml.addresses).items()
    assert json.loads(environment["AZUREML_STORAGE_URLS"]) == azureml.addresses["azureml"]["storage_urls"]
    stated = {name: json.loads(value) for name, value in environment.items() if name.startswith("CREDENTIAL_AZUREML_")}
    assert set(stated) == {"CREDENTIAL_AZUREML_SOURCE", "CREDENTIAL_AZUREML_TARGET"}
    assert stated["CREDENTIAL_AZUREML_SOURCE"]["tenant_id"] != stated["CREDENTIAL_AZUREML_TARGET"]["tenant_id"]


def test_started_again_it_knows_the_same(azureml: RunningEmulators, tmp_path: Path) -> None:
    first = launch(tmp_path, azureml=True)
    try:
        register(first, "kept", "1")
        blobs(first, key_of(first)).get_blob_client("by-sas", "kept").upload_blob(b"kept")
        token = credential(first).get_token(MANAGEMENT).token
    finally:
        first.kill()
    with launch(tmp_path, azureml=True) as second:
        assert second.addresses["azureml"] == first.addresses["azureml"]
        target = f"{base(second)}/data/kept/versions/1?api-version={DATA_API}"
        assert send(second, "GET", target, token=token)[0] == 200
        assert blobs(second, key_of(second)).get_blob_client("by-sas", "kept").download_blob().readall() == b"kept"


def test_another_estate(azureml: RunningEmulators, tmp_path: Path) -> None:
    config = tmp_path / "azureml.yaml"
    document = f"""
tenants:
  - name: only
    tenant_id: {azureml.addresses["tenant_id"]}
    clients: [{{name: migrator, id: someone, secret: hush, roles: {{team: contributor}}}}]
accounts: [{{name: teamstore, key: {base64.b64encode(b"k" * 64).decode()}, tenant: only}}]
workspaces:
  - name: team
    tenant: only
    subscription_id: 22222222-2222-4222-8222-222222222222
    resource_group: rg
    id: 33333333-3333-4333-8333-333333333333
    account: teamstore
    datastores: [{{name: workspaceblobstore, account: teamstore, container: blobs, is_default: true}}]
"""
    config.write_text(document)
    with launch(tmp_path / "root", azureml=True, azureml_config=config) as running:
        assert list(running.addresses["azureml"]["storage_urls"]) == ["teamstore"]
        service = blobs(running, key_of(running, "teamstore"), "teamstore")
        assert [found.name for found in service.list_containers()] == ["blobs"]
        # Their tenant is that of OneLake, and has the clients of both.
        assert credential(running, "only").get_token(MANAGEMENT).token
        assert lake_credential(running).get_token(STORAGE).token
    config.write_text(document.replace("account: teamstore,", "account: other,"))
    with pytest.raises(EmulatorsFailed, match=r"^The configuration .* uses an unknown account 'other'$"):
        launch(tmp_path / "root", azureml=True, azureml_config=config)


def test_wrong_use_of_the_switchboard(azureml: RunningEmulators) -> None:
    with pytest.raises(EmulatorsFailed, match="conflict_status is 400 or 409"):
        azureml.set_azureml(conflict_status=418)
    with pytest.raises(EmulatorsFailed, match="Only conflict_status"):
        azureml.set_azureml(colour="red")
    with pytest.raises(EmulatorsFailed, match="nowhere/x:1: there is no such workspace"):
        azureml.register_assets([{"workspace": "nowhere", "name": "x", "version": "1", "properties": GOOD}])
    with pytest.raises(EmulatorsFailed, match="ws-source/x:1: The data type 'None'"):
        azureml.register_assets([{"workspace": "ws-source", "name": "x", "version": "1", "properties": {}}])
