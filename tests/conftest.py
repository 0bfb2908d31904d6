"""What all suites have in common."""

import os
import sys

import pytest
from hypothesis import settings

# The suite starts the app and the emulators hundreds of times, and each of them would compile every module anew: a
# third of what a start costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A deadline would be an assertion about the machine's load.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# Files and folders whose tests start hosts, kill them and wait; the rest is done in the meantime.
_LONG = (
    "tests/sql/test_engine_safety", "tests/sql/test_e2e_sql", "tests/contract/test_lake_table_crashes", "tests/e2e/",
    "tests/mltables/", "tests/sql/", "tests/contract/", "tests/emulators/test_azureml", "tests/host/", "tests/tools/",
    "tests/orchestrators/",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that no worker is left alone with it at the end."""

    def place(item: pytest.Item) -> int:
        return next((number for number, path in enumerate(_LONG) if item.nodeid.startswith(path)), len(_LONG))

    items.sort(key=place)
