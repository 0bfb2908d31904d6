"""Object storage for plans, results, ledgers and manifests, through obstore: one code path for disk and Azure Blob."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, LocalStore

from shared.errors import Configuration, StoreUnavailable
from shared.ports import ObjectWriter

_DELETES_AT_ONCE = 32
_STREAM_BLOCK_BYTES = 8 * 1024 * 1024


class ObjectRunStore:
    """Implements ``ports.RunStore`` over an obstore store. A failure of the store stops the run."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def get(self, key: str) -> bytes | None:
        try:
            found = await obstore.get_async(self._store, key)
            return (await found.bytes_async()).to_bytes()
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None

    async def put(self, key: str, data: bytes) -> None:
        try:
            await obstore.put_async(self._store, key, data)
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None

    async def put_new(self, key: str, data: bytes) -> bool:
        try:
            await obstore.put_async(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None
        return True

    async def list(self, prefix: str) -> list[str]:
        try:
            return sorted([found["path"] for found in await obstore.list(self._store, prefix).collect_async()])
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None

    async def delete(self, keys: Sequence[str]) -> None:
        waiting = iter(keys)

        async def work() -> None:
            for key in waiting:
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, key)

        try:
            await asyncio.gather(*(work() for _ in range(_DELETES_AT_ONCE)))
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None

    @asynccontextmanager
    async def open_writer(self, key: str) -> AsyncIterator[ObjectWriter]:
        try:
            async with obstore.open_writer_async(self._store, key, buffer_size=_STREAM_BLOCK_BYTES) as writer:
                yield writer
        except (BaseError, OSError) as error:
            raise _unavailable(error) from None


def open_run_store(url: str, base: Path, connection: str) -> ObjectRunStore:
    """Open the store that ``RUN_STORE_URL`` names.

    Args:
        url: ``file:<folder>`` or ``azure://<container>[/<prefix>]``.
        base: What a relative folder is relative to.
        connection: For Azure: a storage connection string, or an account name to be reached with the app's identity.

    Raises:
        Configuration: naming the setting and the form.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc:
        folder = Path(base, parts.path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Configuration(f"RUN_STORE_URL: the folder cannot be made ({error.strerror})",
                                subject="RUN_STORE_URL") from None  # fmt: skip
        return ObjectRunStore(LocalStore(prefix=folder))
    if parts.scheme == "azure" and parts.netloc:
        options = _azure_options(connection)
        prefix = parts.path.strip("/") or None
        return ObjectRunStore(AzureStore(parts.netloc, prefix=prefix, **options))
    raise Configuration(
        f"RUN_STORE_URL is {url!r}; write file:<folder> or azure://<container>[/<prefix>]", subject="RUN_STORE_URL"
    )


def _azure_options(connection: str) -> dict[str, Any]:
    if connection.strip().lower() == "usedevelopmentstorage=true":
        # Azurite's well-known account; object_store knows its name, key and port.
        return {"config": {"use_emulator": True}, "client_options": {"allow_http": True}}
    if "=" not in connection:
        if not connection:
            raise Configuration(
                "RUN_STORE_URL names Azure storage; RUN_STORE_CONNECTION or AzureWebJobsStorage must say which",
                subject="RUN_STORE_CONNECTION",
            )
        from obstore.auth.azure import AzureCredentialProvider

        return {"config": {"account_name": connection}, "credential_provider": AzureCredentialProvider()}
    fields = dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
    try:
        config = {"account_name": fields["AccountName"], "account_key": fields["AccountKey"]}
    except KeyError as error:
        raise Configuration(f"RUN_STORE_CONNECTION lacks {error.args[0]}", subject="RUN_STORE_CONNECTION") from None
    endpoint = fields.get("BlobEndpoint")
    options: dict[str, Any] = {"config": config}
    if endpoint:
        config["endpoint"] = endpoint
        if endpoint.startswith("http://"):
            options["client_options"] = {"allow_http": True}
    return options


def _unavailable(error: Exception) -> StoreUnavailable:
    # The text of an object_store error goes on with debug output of several lines, which may hold a signed URL.
    name = type(error).__name__
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else name
    return StoreUnavailable(f"the run store cannot be used ({reason}); check RUN_STORE_URL, its space and its rights")
