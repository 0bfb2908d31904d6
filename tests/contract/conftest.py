from tests.support.emulated import emulators, lake, make_onelake, make_tokens

__all__ = ["emulators", "lake", "make_onelake", "make_tokens"]
