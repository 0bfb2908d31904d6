"""What one service needs to read an item from another one by itself, without the bytes passing through this process."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field


class CopyingLearned:
    """What this process learned about copying from one account on the target's side.

    A refusal before anything was ever copied is about the account: who may read it, a firewall, a service that does
    not copy at all. After a success it is about the one item, and the next may be tried again.
    """

    def __init__(self) -> None:
        self.has_copied = False
        """Whether a file has been seen to arrive."""
        self.refusal = ""
        """Why nothing more is tried; empty as long as there is no reason."""

    def copied(self) -> None:
        self.has_copied = True

    def refused(self, why: str) -> None:
        if not self.has_copied:
            self.refusal = self.refusal or why


@dataclass(frozen=True, slots=True)
class CopySource:
    """One version of one item, to be read by another service.

    Attributes:
        account: Scheme, host and, for path-style addresses, account; for messages.
        etag: Without quotes; what is copied is this version or nothing.
        size_bytes: Of that version.
        md5: Hex, as the source's own promise; empty where it makes none.
        headers: Makes ``x-ms-copy-source`` and, where a token is needed, ``x-ms-copy-source-authorization``, for use at
            once. They hold secrets (a token, or a SAS in the URL): never to be kept, logged or put into an error.
        learned: Shared by all items of the account.
    """

    account: str
    etag: str
    size_bytes: int
    md5: str
    headers: Callable[[], Awaitable[Mapping[str, str]]] = field(repr=False)
    learned: CopyingLearned = field(repr=False, compare=False)
