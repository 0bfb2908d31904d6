from tests.support.emulated import emulators, lake, make_onelake, make_tokens
from tests.support.storage_account import make_account, storage

__all__ = ["emulators", "lake", "make_account", "make_onelake", "make_tokens", "storage"]
