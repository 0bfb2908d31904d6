from tests.support.emulated import emulators, lake, make_onelake, make_tokens
from tests.support.sharepoint import sharepoint, sharepoint_emulators
from tests.support.storage_account import make_account, storage

__all__ = [
    "emulators",
    "lake",
    "make_account",
    "make_onelake",
    "make_tokens",
    "sharepoint",
    "sharepoint_emulators",
    "storage",
]
