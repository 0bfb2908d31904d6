"""Azure ML's data assets through the real ``azure-ai-ml``, which is synchronous: every call runs in a thread.

Facts: docs/protocols/azureml.md. The package is imported by the first call, since that takes a second or two.
"""

import asyncio
import logging
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceNotFoundError

from shared.clients.credentials import TokenSource
from shared.errors import (
    Authentication,
    Configuration,
    ConnectionLost,
    ItemError,
    MigrationError,
    ServiceUnavailable,
    TargetConflict,
    Throttled,
    TransientError,
)
from shared.policy.asset_uri import WorkspaceName
from shared.policy.backoff import transport_delay_s
from shared.ports import BlobDatastore, DataContainer, DataVersion

_T = TypeVar("_T")
_log = logging.getLogger("migration.azureml")

_TOKEN_WITHIN_S = 60.0
_SHOWN_CHARACTERS = 300
_ATTEMPTS = 4
_LONGEST_WAIT_S = 20.0
# The SDK reads the address of the service from the environment while a client is made.
_ENDPOINT_VARIABLE = "AZUREML_DEV_URL_MFE"
_MAKING = threading.Lock()


class AzureMLRegistry:
    """Implements ``ports.AssetRegistry`` for one workspace. Belongs to one event loop.

    Args:
        workspace: Which.
        side: ``source`` or ``target``; stands in messages.
        tokens: Makes the source of tokens for a scope, of the credential for this workspace.
        url: Where Azure ML is, or empty for its own address.
        ca_bundle: A PEM file to trust in place of the system's, or None.
    """

    def __init__(
        self,
        workspace: WorkspaceName,
        side: str,
        tokens: Callable[[str], TokenSource],
        *,
        url: str = "",
        ca_bundle: str | None = None,
    ) -> None:
        self._workspace = workspace
        self._side = side
        self._tokens = tokens
        self._url = url
        self._ca_bundle = ca_bundle
        self._client: Any = None
        self._credential: _ThreadCredential | None = None

    async def default_datastore(self) -> BlobDatastore:
        def ask(client: Any) -> Any:
            client.workspaces.get(self._workspace.name)
            return client.datastores.get_default()

        try:
            found = await self._call(ask, "the workspace")
        except _Missing:
            raise Configuration(
                f"the {self._side} workspace {self._workspace.name!r} is not there, or its default datastore is not; "
                f"check subscription_id, resource_group and workspace_name of {self._side}_workspace_config",
                code="workspace_not_found",
                subject=f"{self._side}_workspace_config",
            ) from None
        container = getattr(found, "container_name", None)
        if str(found.type).lower().replace("_", "") not in ("azureblob", "datastoretype.azureblob") or not container:
            raise Configuration(
                f"the default datastore of the {self._side} workspace is {found.name!r} of type {found.type}; only "
                "blob containers are supported",
                code="datastore_unsupported",
                subject=f"{self._side}_workspace_config",
            )
        endpoint = str(getattr(found, "endpoint", "") or "core.windows.net")
        return BlobDatastore(str(found.name), str(found.account_name), str(container), endpoint)

    async def datastores(self) -> list[BlobDatastore]:
        def ask(client: Any) -> list[BlobDatastore]:
            # The SDK's own listing fails as a whole over one datastore of a kind that it does not know.
            listed = client.datastores._operation.list(self._workspace.resource_group, self._workspace.name)
            return [store for one in listed if (store := _blob_datastore(one)) is not None]

        try:
            return await self._call(ask, "the datastores")
        except _Missing:
            return []

    async def containers(self) -> list[DataContainer]:
        def ask(client: Any) -> list[DataContainer]:
            # The SDK's own objects leave out the description.
            return [
                _container(one, archived)
                for archived in (False, True)
                for one in client.data._container_operation.list(
                    self._workspace.resource_group, self._workspace.name, list_view_type=_views()[archived]
                )
            ]

        found = await self._call(ask, "the data assets")
        return sorted(found, key=lambda one: one.name)

    async def container(self, name: str) -> DataContainer | None:
        def ask(client: Any) -> DataContainer:
            found = client.data._container_operation.get(self._workspace.resource_group, self._workspace.name, name)
            return _container(found, bool(found.properties.is_archived))

        try:
            return await self._call(ask, name)
        except _Missing:
            return None

    async def describe(self, name: str, description: str | None, tags: Mapping[str, str]) -> None:
        def ask(client: Any) -> None:
            # As the SDK archives an asset: what is there, with what is to change.
            where = (self._workspace.resource_group, self._workspace.name, name)
            found = client.data._container_operation.get(*where)
            found.properties.description = description
            found.properties.tags = dict(tags)
            client.data._container_operation.create_or_update(*where, body=found)

        try:
            await self._call(ask, name)
        except _Missing:
            raise ItemError("there is no such asset", code="registration_refused", subject=name) from None

    async def versions(self, name: str, *, archived: bool) -> list[DataVersion]:
        def ask(client: Any) -> list[DataVersion]:
            return [_version(one) for one in client.data.list(name, list_view_type=_views()[archived])]

        try:
            return await self._call(ask, name)
        except _Missing:
            return []

    async def get(self, name: str, version: str) -> DataVersion | None:
        try:
            return await self._call(lambda client: _version(client.data.get(name, version)), f"{name}:{version}")
        except _Missing:
            return None

    async def latest(self, name: str) -> str | None:
        def ask(client: Any) -> str | None:
            from azure.ai.ml.exceptions import MlException

            try:
                return str(client.data.get(name, label="latest").version)
            except MlException:
                # What the SDK makes of an asset that is not there.
                return None

        try:
            return await self._call(ask, name)
        except _Missing:
            return None

    async def register(self, version: DataVersion, referenced_uris: Sequence[str]) -> None:
        def ask(client: Any) -> None:
            from azure.ai.ml.entities import Data

            client.data.create_or_update(
                Data(
                    name=version.name, version=version.version, type=version.type, path=version.uri,
                    description=version.description, tags=dict(version.tags), properties=dict(version.properties),
                    referenced_uris=list(referenced_uris), skip_validation=True,
                )
            )  # fmt: skip

        subject = f"{version.name}:{version.version}"
        try:
            await self._call(ask, subject)
        except _Missing:
            raise ItemError(
                "the target workspace or its datastore is no longer there", code="registration_refused", subject=subject
            ) from None

    async def archive(self, name: str, version: str | None) -> None:
        def ask(client: Any) -> None:
            client.data.archive(name, version) if version is not None else client.data.archive(name)

        try:
            await self._call(ask, name)
        except _Missing:
            raise ItemError("there is nothing to archive", code="registration_refused", subject=name) from None

    # -- parts -----------------------------------------------------------------------------------------------------

    async def _call(self, ask: Callable[[Any], _T], subject: str) -> _T:
        """Run one use of the SDK in a thread, a few times where that may help, once more with a fresh token.

        Everything that is asked here may be asked twice: a registration with the same URI is an update.

        Raises:
            _Missing: the service says 404.
            MigrationError: as :func:`classify` sees it.
        """
        is_fresh = False
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(ask, subject)
            except Authentication as error:
                if error.code != "token_rejected" or self._credential is None or is_fresh:
                    raise
                is_fresh = True
                self._credential.reject()
                # The SDK would go on with the token that it remembers.
                self._client = None
            except TransientError as error:
                delay_s = transport_delay_s(attempt, error.retry_after_s, random.random(), 0.4)  # noqa: S311 - spread
                if attempt >= _ATTEMPTS or delay_s > _LONGEST_WAIT_S:
                    # The durable timers' turn.
                    raise
                await asyncio.sleep(delay_s)

    async def _once(self, ask: Callable[[Any], _T], subject: str) -> _T:
        loop = asyncio.get_running_loop()

        def work() -> _T:
            with _MAKING:
                if self._client is None:
                    self._client = self._connect(loop)
            return ask(self._client)

        try:
            return await asyncio.to_thread(work)
        except ResourceNotFoundError:
            raise _Missing(subject) from None
        except (AzureError, TimeoutError) as error:
            raise classify(error, self._side, subject) from None
        except _sdk_refusals() as error:
            text = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
            raise ItemError(
                f"the SDK of Azure ML refuses: {text}", code="registration_refused", subject=subject
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # What the SDK stumbles over in an answer that is none of Azure ML's: a proxy's page, or half of one.
            _log.warning("Azure ML of the %s: an answer about %s makes no sense", self._side, subject, exc_info=True)
            raise ServiceUnavailable(
                f"Azure ML of the {self._side} answers something that makes no sense ({type(error).__name__})",
                subject=subject,
            ) from None

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Any:
        from azure.ai.ml import MLClient

        # Twenty lines a request, at a level that the app logs at.
        logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)
        before = os.environ.get(_ENDPOINT_VARIABLE)
        if self._url:
            os.environ[_ENDPOINT_VARIABLE] = self._url
        try:
            options: dict[str, Any] = {"connection_verify": self._ca_bundle} if self._ca_bundle else {}
            # Retrying is ours; the SDK's own would be multiplied by it.
            self._credential = _ThreadCredential(loop, self._tokens)
            client = MLClient(
                self._credential, self._workspace.subscription_id, self._workspace.resource_group,
                self._workspace.name, enable_telemetry=False, retry_total=0, **options,
            )  # fmt: skip
        finally:
            if self._url and before is None:
                del os.environ[_ENDPOINT_VARIABLE]
            elif self._url and before is not None:
                os.environ[_ENDPOINT_VARIABLE] = before
        # Before a registration the SDK would read the MLTable file once more, with the account's key, at the public
        # address of the account: a permission that is not needed otherwise, and 84 seconds where that address does not
        # answer. The file was read and judged here, and what the SDK takes from it (referencedUris) is given along.
        client.data._datastore_operation = _NoDatastores()  # type: ignore[assignment]
        return client


class _NoDatastores:
    """Stands where the SDK would look for an account's key; its reader then goes on without the file."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)


class _ThreadCredential:
    """The credential that the SDK asks from its threads, over token sources that live on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tokens: Callable[[str], TokenSource]) -> None:
        self._loop = loop
        self._tokens = tokens
        self._given: dict[str, tuple[TokenSource, AccessToken]] = {}

    def reject(self) -> None:
        """Say that what was given last was refused. To be called on the event loop."""
        for tokens, token in self._given.values():
            tokens.reject(token)

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        async def ask() -> AccessToken:
            tokens = self._tokens(scopes[0])
            token = await tokens.get()
            self._given[scopes[0]] = tokens, token
            return token

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(_TOKEN_WITHIN_S)


class _Missing(Exception):
    """404; each call knows what that means."""


def _sdk_refusals() -> tuple[type[Exception], ...]:
    """What the SDK raises by itself, of arguments and of answers that it does not understand."""
    from azure.ai.ml.exceptions import MlException

    return (MlException,)


def classify(error: Exception, side: str, subject: str) -> MigrationError:
    """What an answer of Azure ML or Resource Manager means. Sources: docs/protocols/azureml.md, sections 2 and 8."""
    if not isinstance(error, HttpResponseError):
        return ConnectionLost(f"Azure ML of the {side} does not answer ({type(error).__name__})", subject=subject)
    status = error.status_code or 0
    code = str(getattr(error.error, "code", "") or "")
    said = f"{status} {code}".rstrip()
    text = " ".join(str(getattr(error.error, "message", "") or error.message or "").split())[:_SHOWN_CHARACTERS]
    if isinstance(error, ClientAuthenticationError) or status == 401:
        return Authentication(
            f"Azure ML of the {side} does not accept the token ({said}): {text} Check that the tenant of the {side}'s "
            "credential is that of the workspace's subscription",
            code="token_rejected",
            subject=subject,
        )
    if status == 403:
        return Authentication(
            f"the {side}'s credential may not do this in the workspace ({said}): {text} Give it the role AzureML Data "
            f"Scientist, or Reader where it is only read",
            code="workspace_permission_denied",
            subject=subject,
        )
    if status == 429:
        return Throttled(f"Azure ML of the {side} asks to slow down", subject=subject, retry_after_s=_wait_s(error))
    if status >= 500 or status == 408:
        return ServiceUnavailable(
            f"Azure ML of the {side} answers {said}", subject=subject, retry_after_s=_wait_s(error)
        )
    if status == 409 or (status == 400 and "already exists" in text):
        return TargetConflict(f"the version exists with another path or type ({said})", code="version_exists",
                              subject=subject)  # fmt: skip
    return ItemError(f"Azure ML of the {side} refuses ({said}): {text}", code="registration_refused", subject=subject)


def _wait_s(error: HttpResponseError) -> float | None:
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 9 else None


def _views() -> dict[bool, Any]:
    from azure.ai.ml.constants import ListViewType

    return {False: ListViewType.ACTIVE_ONLY, True: ListViewType.ARCHIVED_ONLY}


def _blob_datastore(one: Any) -> BlobDatastore | None:
    """A datastore of blobs, or of a file system, which the account shows as a container of blobs as well."""
    told = one.properties
    container = getattr(told, "container_name", None) or getattr(told, "filesystem", None)
    account = getattr(told, "account_name", None)
    kind = str(getattr(told.datastore_type, "value", told.datastore_type))
    if kind not in ("AzureBlob", "AzureDataLakeGen2") or not container or not account:
        return None
    endpoint = str(getattr(told, "endpoint", "") or "core.windows.net")
    return BlobDatastore(str(one.name), str(account), str(container), endpoint)


def _container(one: Any, archived: bool) -> DataContainer:
    told = one.properties
    tags = {str(key): str(value) for key, value in (told.tags or {}).items()}
    kind = str(getattr(told.data_type, "value", told.data_type))
    return DataContainer(str(one.name), kind, archived, told.description or None, tags)


def _version(one: Any) -> DataVersion:
    created: Any = getattr(one.creation_context, "created_at", None)
    return DataVersion(
        name=str(one.name),
        version=str(one.version),
        uri=str(one.path),
        type=str(one.type),
        description=one.description,
        tags={str(key): str(value) for key, value in (one.tags or {}).items()},
        properties={str(key): str(value) for key, value in (one.properties or {}).items()},
        id=str(one.id or ""),
        created_at=created.isoformat() if hasattr(created, "isoformat") else str(created or ""),
    )
