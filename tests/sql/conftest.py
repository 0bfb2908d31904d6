from tests.sql.databases import world
from tests.support.emulated import emulators, lake, make_onelake, make_tokens
from tests.support.postgres import postgres, postgres_server

__all__ = ["emulators", "lake", "make_onelake", "make_tokens", "postgres", "postgres_server", "world"]
