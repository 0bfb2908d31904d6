"""Azure ML behind Azure Resource Manager: workspaces, datastores, data containers and data versions.

The calls are those that azure-ai-ml 1.35.2 makes (docs/protocols/azureml.md, section 1) and the deletions of the
same API. Resource Manager checks token, tenant and role before Azure ML sees a call, and its errors look different.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import quote, unquote

import jwt

from local.emulators.azureml.errors import IMMUTABLE, Refusal, error_response, json_response, user_error
from local.emulators.azureml.estate import AzureMLClient, AzureMLEstate, Tenant
from local.emulators.azureml.registry import Conflict, Document, ListView, Registered, Registry
from local.emulators.azureml.uris import parse
from local.emulators.faults import FaultRule
from local.emulators.pipeline import Call, retry_after_header
from local.emulators.tokens import TokenAuthority, TokenRefused
from local.emulators.wire import Request, Response

MANAGEMENT_AUDIENCE = "https://management.azure.com"
_AUDIENCES = ("https://management.core.windows.net", MANAGEMENT_AUDIENCE)
_PROVIDER = "Microsoft.MachineLearningServices"
_BODY_LIMIT_BYTES = 4 * 1024 * 1024
_API_VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9\-_]{0,254}")
_VERSION = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9\-_.]{0,254}")
_DATA_TYPES = ("mltable", "uri_file", "uri_folder")
_SCHEMES = ("azureml", "https", "http", "wasbs", "wasb", "abfss", "abfs", "adl")
_SAS_LIFETIME = datetime.timedelta(hours=1)


@dataclass
class Behaviour:
    """Where the service is not known, what the emulator does instead; changed through the switchboard.

    Attributes:
        conflict_status: of a PUT that would change a version's data URI.
        expirable_secrets: what listSecrets gives for an account key when asked for an expirable secret.
    """

    conflict_status: Literal[400, 409] = 400
    expirable_secrets: Literal["AccountKey", "Sas"] = "AccountKey"

    def change(self, document: Any) -> None:
        """Takes over what the document names.

        Raises:
            ValueError: an unknown key or value; nothing is changed.
        """
        if not isinstance(document, dict) or set(document) - {"conflict_status", "expirable_secrets"}:
            raise ValueError("Only conflict_status and expirable_secrets can be set.")
        if document.get("conflict_status", 400) not in (400, 409):
            raise ValueError("conflict_status is 400 or 409.")
        if document.get("expirable_secrets", "Sas") not in ("AccountKey", "Sas"):
            raise ValueError("expirable_secrets is AccountKey or Sas.")
        for name, value in document.items():
            setattr(self, name, value)


class AzureML:
    """Answers the control plane of all tenants of an estate.

    Args:
        authorities: who issues the tokens of a tenant, by the tenant's name.
        page_items: entries of one page of every listing; the reference names no figure.
    """

    name = "azureml"

    def __init__(
        self,
        estate: AzureMLEstate,
        authorities: Mapping[str, TokenAuthority],
        registry: Registry,
        behaviour: Behaviour,
        page_items: int = 100,
    ) -> None:
        self._estate = estate
        self._authorities = authorities
        self._registry = registry
        self._behaviour = behaviour
        self._page_items = page_items

    def classify(self, request: Request) -> Call:
        """Names the call; its path begins with the workspace's name: ``ws/data/name/versions/1``."""
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        below = parts[7:] if len(parts) > 7 else parts
        path = "/".join(below)
        match request.method:
            case "PUT" | "PATCH":
                return Call("create", path)
            case "DELETE":
                return Call("delete", path)
            case "POST":
                return Call("read", path)
            case _:
                # Collections stand at even places: workspaces, ws/datastores, ws/data, ws/data/name/versions.
                return Call("list" if len(parts) % 2 else "properties", path)

    def refuse(self, request: Request, call: Call, rule: FaultRule) -> Response:
        """Answers as Resource Manager or Azure ML does under a fault."""
        match rule.fault:
            case "throttle":
                refusal = Refusal(
                    429, "TooManyRequests", "The request is being throttled as the limit has been reached."
                )
            case "unavailable":
                refusal = Refusal(503, "ServiceUnavailable", "The service is temporarily unavailable.")
            case "expired_token":
                refusal = _expired(0)
            case _:
                refusal = Refusal(500, "ServiceError", "InternalServerError", from_service=True)
        response = error_response(refusal)
        response.headers |= retry_after_header(rule.retry_after_s)
        return response

    async def handle(self, request: Request, call: Call) -> Response:
        """Answers one request."""
        # ``$skip`` and its like arrive in either spelling.
        request.query = {unquote(name): value for name, value in request.query.items()}
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return error_response(refusal)

    # Resource Manager

    async def _answer(self, request: Request) -> Response:
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        tenant, client = self._caller(request, parts)
        if not _API_VERSION.fullmatch(version := request.query.get("api-version", "")):
            if not version:
                raise Refusal(
                    400,
                    "MissingApiVersionParameter",
                    "The api-version query parameter (?api-version=) is required for all requests.",
                )
            raise Refusal(400, "InvalidApiVersionParameter", f"The api-version '{version}' is invalid.")
        lower = [part.lower() for part in parts]
        in_group = lower[2:3] == ["resourcegroups"]
        at = 4 if in_group else 2
        if lower[at : at + 3] != ["providers", _PROVIDER.lower(), "workspaces"]:
            raise Refusal(404, "InvalidResourceType", f"The resource type at '{request.path}' could not be found.")
        rest = parts[at + 3 :]
        if not rest:
            return self._list_workspaces(request, client, parts[1], parts[3] if in_group else None)
        if not in_group:
            raise Refusal(404, "InvalidResourceType", f"The resource type at '{request.path}' could not be found.")
        self._authorize(request, client, parts, rest)
        registered = self._registry.find(parts[1], parts[3], rest[0])
        if registered is None or registered.workspace.tenant != tenant.name:
            raise Refusal(
                404,
                "ResourceNotFound",
                f"The Resource '{_PROVIDER}/workspaces/{rest[0]}' under resource group '{parts[3]}' was not found. For "
                "more details please go to https://aka.ms/ARMResourceNotFoundFix",
            )
        return await self._dispatch(request, client, registered, rest[1:])

    def _caller(self, request: Request, parts: list[str]) -> tuple[Tenant, AzureMLClient]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthorized("AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
        if len(parts) < 2 or parts[0].lower() != "subscriptions":
            raise Refusal(404, "InvalidResourceType", f"The resource type at '{request.path}' could not be found.")
        owner = next(
            (
                registered.workspace.tenant
                for registered in self._registry.workspaces.values()
                if registered.workspace.subscription_id.lower() == parts[1].lower()
            ),
            None,
        )
        tenants = [self._estate.tenant(owner)] if owner else self._estate.tenants
        refused: TokenRefused | None = None
        for tenant in tenants:
            try:
                principal = self._authorities[tenant.name].check(token.strip(), MANAGEMENT_AUDIENCE)
            except TokenRefused as error:
                refused = error
                continue
            client = tenant.client(principal.client_id)
            if owner is None or client is None:
                raise Refusal(404, "SubscriptionNotFound", f"The subscription '{parts[1]}' could not be found.")
            return tenant, client
        raise _not_accepted(token.strip(), str(refused), tenants[0].tenant_id)

    def _authorize(self, request: Request, client: AzureMLClient, parts: list[str], rest: list[str]) -> None:
        role = client.role(parts[3], rest[0])
        reads = request.method in ("GET", "HEAD")
        if role == "contributor" or (role == "reader" and reads):
            return
        kinds = [rest[1]] if len(rest) > 1 else []
        if rest[1:2] == ["data"] and len(rest) > 3:
            kinds.append("versions")
        verb = {"PUT": "write", "PATCH": "write", "DELETE": "delete", "POST": "listSecrets/action"}
        action = "/".join([_PROVIDER, "workspaces", *kinds, verb.get(request.method, "read")])
        object_id = uuid.uuid5(uuid.NAMESPACE_URL, client.id)
        raise Refusal(
            403,
            "AuthorizationFailed",
            f"The client '{client.id}' with object id '{object_id}' does not have authorization to perform action "
            f"'{action}' over scope '{unquote(request.path)}' or the scope is invalid. If access was recently granted, "
            "please refresh your credentials.",
        )

    # Azure ML

    def _list_workspaces(
        self, request: Request, client: AzureMLClient, subscription_id: str, resource_group: str | None
    ) -> Response:
        found = [
            _workspace(registered)
            for registered in self._registry.workspaces.values()
            if registered.workspace.subscription_id.lower() == subscription_id.lower()
            and (resource_group is None or registered.workspace.resource_group.lower() == resource_group.lower())
            and client.role(registered.workspace.resource_group, registered.workspace.name)
        ]
        return self._page(request, found)

    async def _dispatch(
        self, request: Request, client: AzureMLClient, registered: Registered, rest: list[str]
    ) -> Response:
        who = client.name
        match [request.method, *rest]:
            case ["GET"]:
                return json_response(200, _workspace(registered))
            case ["GET", "datastores"]:
                return self._list_datastores(request, registered)
            case ["GET", "datastores", name]:
                return json_response(200, _datastore(registered, name, _found_datastore(registered, name)))
            case ["PUT", "datastores", name]:
                return await self._put_datastore(request, registered, name, who)
            case ["DELETE", "datastores", name]:
                return Response(200 if self._registry.delete_datastore(registered, name) else 204)
            case ["POST", "datastores", name, "listSecrets" | "listsecrets"]:
                return await self._list_secrets(request, registered, name)
            case ["GET", "data"]:
                found = self._registry.containers(registered, _view(request))
                return self._page(request, [_container(registered, name, document) for name, document in found])
            case ["GET", "data", name]:
                if (document := self._registry.container(registered, name)) is None:
                    raise user_error(404, f"{name} container was not found.")
                return json_response(200, _container(registered, name, document))
            case ["PUT", "data", name]:
                return await self._put_container(request, registered, name, who)
            case ["DELETE", "data", name]:
                return Response(200 if self._registry.delete_container(registered, name) else 204)
            case ["GET", "data", name, "versions"]:
                return self._list_versions(request, registered, name)
            case ["GET", "data", name, "versions", version]:
                if (document := self._registry.version(registered, name, version)) is None:
                    raise user_error(404, f"Data version {name}:{version} (dataContainerName:version) not found.")
                return json_response(200, _version(registered, name, version, document))
            case ["PUT", "data", name, "versions", version]:
                return await self._put_version(request, registered, name, version, who)
            case ["DELETE", "data", name, "versions", version]:
                return Response(200 if self._registry.delete_version(registered, name, version) else 204)
            case _:
                raise Refusal(404, "InvalidResourceType", f"The resource type at '{request.path}' could not be found.")

    def _list_datastores(self, request: Request, registered: Registered) -> Response:
        query = request.query
        names = query["names"].split(",") if "names" in query else None
        documents = [
            _datastore(registered, name, document)
            for name, document in sorted(registered.datastores.items())
            if (query.get("isDefault", "").lower() != "true" or document["properties"]["isDefault"])
            and (names is None or name in names)
            and query.get("searchText", "") in name
        ]
        return self._page(request, documents, _count(query.get("count")))

    async def _put_datastore(self, request: Request, registered: Registered, name: str, who: str) -> Response:
        properties = await _properties(request)
        kind = properties.get("datastoreType")
        keeps = "containerName" if kind == "AzureBlob" else "filesystem"
        credentials = properties.get("credentials")
        if (
            not isinstance(credentials, dict)
            or credentials.get("credentialsType") not in ("AccountKey", "Sas", "None")
            or not properties.get("accountName")
            or not properties.get(keeps)
        ):
            raise user_error(400, "The datastore needs credentials, an account name and a container or file system.")
        # Secrets are taken and never given back with the datastore.
        kept = {**properties, "credentials": {"credentialsType": credentials["credentialsType"]}}
        document, is_new = self._registry.put_datastore(registered, name, kept, who)
        return json_response(201 if is_new else 200, _datastore(registered, name, document))

    async def _list_secrets(self, request: Request, registered: Registered, name: str) -> Response:
        properties = _found_datastore(registered, name)["properties"]
        body = await _body(request) if request.body.length else {}
        kind = properties["credentials"]["credentialsType"]
        account = next((found for found in self._estate.accounts if found.name == properties["accountName"]), None)
        if kind == "None" or account is None:
            raise user_error(400, f"The datastore {name} holds no credentials.")
        if kind == "AccountKey" and self._behaviour.expirable_secrets == "Sas" and body.get("expirableSecret"):
            kind = "Sas"
        if kind == "AccountKey":
            return json_response(200, {"secretsType": "AccountKey", "key": account.key})
        container = properties.get("containerName") or properties["filesystem"]
        return json_response(
            200, {"secretsType": "Sas", "sasToken": _container_sas(account.name, account.key, container)}
        )

    async def _put_container(self, request: Request, registered: Registered, name: str, who: str) -> Response:
        properties = _without_read_only(await _properties(request))
        _check_names(name)
        _check_type(properties, required=name not in registered.data)
        try:
            document, is_new = self._registry.put_container(registered, name, properties, who)
        except Conflict:
            raise user_error(
                self._behaviour.conflict_status, "The data type of a container cannot be changed."
            ) from None
        return json_response(201 if is_new else 200, _container(registered, name, document))

    def _list_versions(self, request: Request, registered: Registered, name: str) -> Response:
        if self._registry.container(registered, name) is None:
            raise user_error(404, f"{name} container was not found.")
        found = self._registry.versions(registered, name, _view(request))
        order = request.query.get("$orderBy", "createdtime desc").lower().split()
        if order[-1:] == ["asc"]:
            found.reverse()
        if tags := request.query.get("$tags"):
            wanted = [tag.partition("=") for tag in tags.split(",")]
            found = [
                (version, document)
                for version, document in found
                if all(
                    key in document["properties"]["tags"]
                    and (not equals or document["properties"]["tags"][key] == value)
                    for key, equals, value in wanted
                )
            ]
        documents = [_version(registered, name, version, document) for version, document in found]
        return self._page(request, documents, _count(request.query.get("$top")))

    async def _put_version(
        self, request: Request, registered: Registered, name: str, version: str, who: str
    ) -> Response:
        properties = _without_read_only(await _properties(request))
        check_version(registered, name, version, properties)
        try:
            document, is_new = self._registry.put_version(registered, name, version, properties, who)
        except Conflict:
            raise user_error(self._behaviour.conflict_status, IMMUTABLE) from None
        return json_response(201 if is_new else 200, _version(registered, name, version, document))

    def _page(self, request: Request, documents: list[Document], count: int | None = None) -> Response:
        start = _position(request.query.get("$skip"), len(documents))
        end = start + min(count or self._page_items, self._page_items)
        page: dict[str, Any] = {"value": documents[start:end]}
        if end < len(documents):
            token = base64.urlsafe_b64encode(f"from:{end}".encode()).decode()
            query = "&".join(
                f"{quote(name, safe='$')}={quote(value, safe='')}"
                for name, value in {**request.query, "$skip": token}.items()
            )
            page["nextLink"] = f"https://{request.headers.get('host', '')}{request.path}?{query}"
        return json_response(200, page)


# what a token is refused for


def _unauthorized(code: str, message: str, tenant_id: str = "common") -> Refusal:
    challenge = (
        f'Bearer authorization_uri="https://login.microsoftonline.com/{tenant_id}", error="invalid_token", '
        f'error_description="{message}"'
    )
    return Refusal(401, code, message, headers={"WWW-Authenticate": challenge})


def _expired(expires_at_s: float) -> Refusal:
    def clock(moment: datetime.datetime) -> str:
        return f"{moment.month}/{moment.day}/{moment.year} {moment:%I:%M:%S %p}"

    expiry = clock(datetime.datetime.fromtimestamp(expires_at_s, datetime.UTC))
    now = clock(datetime.datetime.now(datetime.UTC))
    return _unauthorized(
        "ExpiredAuthenticationToken",
        f"The access token expiry UTC time '{expiry}' is earlier than current UTC time '{now}'.",
    )


def _not_accepted(token: str, reason: str, tenant_id: str) -> Refusal:
    """Resource Manager's words for what the token authority found."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        claims = {}
    if reason.startswith("Issuer"):
        return _unauthorized(
            "InvalidAuthenticationTokenTenant",
            f"The access token is from the wrong issuer '{claims.get('iss')}'. It must match the tenant "
            f"'https://sts.windows.net/{tenant_id}/' associated with this subscription. Please use the authority (URL) "
            f"'https://login.windows.net/{tenant_id}' to get the token. Note, if the subscription is transferred to "
            "another tenant there is no impact to the services, but information about new tenant could take time to "
            "propagate (up to an hour). If you just transferred your subscription and see this error message, please "
            "try back later.",
            tenant_id,
        )
    if reason.startswith("Audience"):
        allowed = ",".join(f"'{audience}/','{audience}'" for audience in _AUDIENCES)
        return _unauthorized(
            "InvalidAuthenticationTokenAudience",
            f"The access token has been obtained for wrong audience or resource '{claims.get('aud')}'. It should "
            f"exactly match with one of the allowed audiences {allowed}.",
            tenant_id,
        )
    if reason.startswith("Lifetime"):
        return _expired(float(claims.get("exp", 0)))
    return _unauthorized("InvalidAuthenticationToken", "The access token is invalid.", tenant_id)


# what a request says


async def _body(request: Request) -> Document:
    if request.body.length > _BODY_LIMIT_BYTES:
        raise Refusal(413, "RequestContentTooLarge", "The request content size exceeds the maximum size of 4 MB.")
    try:
        document = json.loads(await request.body.read())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Refusal(
            400,
            "InvalidRequestContent",
            "The request content was invalid and could not be deserialized: 'Unexpected character encountered'.",
        )
    return document


async def _properties(request: Request) -> Document:
    properties = (await _body(request)).get("properties")
    if not isinstance(properties, dict):
        raise user_error(400, "The Properties field is required.")
    for key in ("tags", "properties"):
        value = properties.get(key)
        if value is not None and not (
            isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        ):
            raise user_error(400, f"The {key} of an asset are strings by name.")
    if not isinstance(properties.get("isArchived", False), bool):
        raise user_error(400, "isArchived is true or false.")
    return {key: value for key, value in properties.items() if value is not None}


def _without_read_only(properties: Document) -> Document:
    """What an SDK sends back of an answer and the service does not take."""
    return {key: value for key, value in properties.items() if key not in ("latestVersion", "nextVersion", "stage")}


def check_version(registered: Registered, name: str, version: str, properties: Document) -> None:
    """Looks at what is to be registered.

    Raises:
        Refusal: Azure ML would not take it.
    """
    _check_names(name, version)
    _check_type(properties, required=True)
    _check_uri(registered, properties.get("dataUri"))


def _check_names(name: str, version: str | None = None) -> None:
    if not _NAME.fullmatch(name):
        raise user_error(
            400,
            f"The name '{name}' is invalid. It may hold alphanumeric characters, dashes and underscores, begins with "
            "an alphanumeric character and has at most 255 characters.",
        )
    if version is not None and not _VERSION.fullmatch(version):
        raise user_error(
            400,
            f"The version '{version}' is invalid. It may hold alphanumeric characters, dashes, underscores and dots "
            "and begins with an alphanumeric character.",
        )


def _check_type(properties: Document, *, required: bool) -> None:
    kind = properties.get("dataType")
    if kind not in _DATA_TYPES and (required or kind is not None):
        raise user_error(400, f"The data type '{kind}' is not one of {', '.join(_DATA_TYPES)}.")


def _check_uri(registered: Registered, data_uri: Any) -> None:
    scheme, separator, _ = data_uri.partition(":") if isinstance(data_uri, str) else ("", "", "")
    if not separator or scheme not in _SCHEMES:
        raise user_error(400, f"The data uri '{data_uri}' is not valid.")
    if scheme == "azureml":
        uri = parse(data_uri)
        if uri is None:
            raise user_error(400, f"The data uri '{data_uri}' is not valid.")
        at_home = uri.scope is None or uri.scope.matches(registered.scope)
        if at_home and uri.datastore not in registered.datastores:
            raise user_error(400, f"Could not find datastore: {uri.datastore}")


def _view(request: Request) -> ListView:
    view = request.query.get("listViewType", "ActiveOnly")
    for known in get_args(ListView):
        if known == view:
            found: ListView = known
            return found
    raise user_error(400, f"The list view type '{view}' is not one of {', '.join(get_args(ListView))}.")


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise user_error(400, f"'{text}' is not a number of entries.")
    return int(text)


def _position(token: str | None, count: int) -> int:
    if token is None:
        return 0
    try:
        position = int(base64.urlsafe_b64decode(token).decode().removeprefix("from:"))
    except (binascii.Error, ValueError):
        position = -1
    if not 0 <= position <= count:
        raise user_error(400, "The continuation token is not valid.")
    return position


def _found_datastore(registered: Registered, name: str) -> Document:
    found = registered.datastores.get(name)
    if found is None:
        raise user_error(404, f"Could not find datastore: {name}")
    return found


# what is answered


def _id(registered: Registered) -> str:
    workspace = registered.workspace
    return (
        f"/subscriptions/{workspace.subscription_id}/resourceGroups/{workspace.resource_group}/providers/{_PROVIDER}"
        f"/workspaces/{workspace.name}"
    )


def _resource(path: str, name: str, kind: str) -> Callable[[Registered, Document], Document]:
    def made(registered: Registered, document: Document) -> Document:
        return {
            "id": f"{_id(registered)}/{path}",
            "name": name,
            "type": f"{_PROVIDER}/workspaces/{kind}",
            "properties": document["properties"],
            "systemData": document["systemData"],
        }

    return made


def _datastore(registered: Registered, name: str, document: Document) -> Document:
    return _resource(f"datastores/{name}", name, "datastores")(registered, document)


def _container(registered: Registered, name: str, document: Document) -> Document:
    return _resource(f"data/{name}", name, "data")(registered, document)


def _version(registered: Registered, name: str, version: str, document: Document) -> Document:
    return _resource(f"data/{name}/versions/{version}", version, "data/versions")(registered, document)


def _workspace(registered: Registered) -> Document:
    workspace = registered.workspace
    group = f"/subscriptions/{workspace.subscription_id}/resourceGroups/{workspace.resource_group}"
    return {
        "id": _id(registered),
        "name": workspace.name,
        "type": f"{_PROVIDER}/workspaces",
        "location": workspace.location,
        "kind": "Default",
        "sku": {"name": "Basic", "tier": "Basic"},
        "tags": {},
        "identity": {
            "type": "SystemAssigned",
            "principalId": str(uuid.uuid5(uuid.NAMESPACE_URL, workspace.id)),
        },
        "properties": {
            "friendlyName": workspace.name,
            "description": "",
            "workspaceId": workspace.id,
            "provisioningState": "Succeeded",
            "storageAccount": f"{group}/providers/Microsoft.Storage/storageAccounts/{workspace.account}",
            "keyVault": f"{group}/providers/Microsoft.KeyVault/vaults/kv-{workspace.name}",
            "applicationInsights": f"{group}/providers/Microsoft.Insights/components/ai-{workspace.name}",
            "hbiWorkspace": False,
            "publicNetworkAccess": "Enabled",
        },
    }


def _container_sas(account: str, key: str, container: str) -> str:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    now = datetime.datetime.now(datetime.UTC)
    return generate_container_sas(
        account,
        container,
        account_key=key,
        permission=ContainerSasPermissions(read=True, add=True, create=True, write=True, delete=True, list=True),
        start=now - datetime.timedelta(minutes=5),
        expiry=now + _SAS_LIFETIME,
    )
