"""Loading an MLTable with the real ``mltable``, in a process of its own.

Its native engine can hang or fall over on what it is given (docs/protocols/azureml.md, section 6), and the data comes
from outside. So it runs with a time limit, a memory limit, none of this process's environment, and ends by itself even
if this process is killed.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from shared.ports import LoadedTable

_SHOWN_CHARACTERS = 300
_GRACE_S = 2.0


class SubprocessTableLoader:
    """Implements ``ports.TableLoader``."""

    async def load(
        self, folder: str, *, head_rows: int, count_rows: int, timeout_s: float, memory_bytes: int
    ) -> LoadedTable:
        with tempfile.TemporaryDirectory(prefix="table-") as beside:
            answer = Path(beside, "answer.json")
            request = {
                "folder": folder, "answer": str(answer), "head_rows": head_rows, "count_rows": count_rows,
                "timeout_s": timeout_s, "memory_bytes": memory_bytes,
            }  # fmt: skip
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "shared.clients.table_loader", json.dumps(request),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                     "HOME": beside, "TMPDIR": beside, "LANG": "C.UTF-8"},
                cwd=beside, start_new_session=True,
            )  # fmt: skip
            try:
                async with asyncio.timeout(timeout_s):
                    status = await process.wait()
            except TimeoutError:
                return _failed(f"loading took more than {timeout_s:g} s and was ended")
            finally:
                if process.returncode is None:
                    # With whatever it has started.
                    os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            try:
                loaded: LoadedTable = json.loads(await asyncio.to_thread(answer.read_bytes))
            except (OSError, ValueError):
                return _failed(_ending(status, memory_bytes))
            return loaded


def _ending(status: int, memory_bytes: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"the engine crashed ({name}); its memory limit is {memory_bytes // 2**20} MiB"
    return f"the engine ended with status {status} and no answer; its memory limit is {memory_bytes // 2**20} MiB"


def _failed(error: str) -> LoadedTable:
    return {"error": error, "rows": 0, "columns": [], "head_digest": "", "sample_digest": ""}


# -- in the process of its own -----------------------------------------------------------------------------------------


def _main() -> None:
    request = json.loads(sys.argv[1])
    import resource

    signal.alarm(int(request["timeout_s"] + _GRACE_S) + 1)
    limit = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _load(request["folder"], request["head_rows"], request["count_rows"])
    except MemoryError:
        answer = _failed(f"the engine needs more than its memory limit of {limit // 2**20} MiB")
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is to hear of it
        text = " ".join(str(error).replace(request["folder"], ".").split())[:_SHOWN_CHARACTERS]
        answer = _failed(f"{type(error).__name__}: {text}")
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    # Not by the usual way: the engine's telemetry would be waited for.
    os._exit(0)


def _load(folder: str, head_rows: int, count_rows: int) -> LoadedTable:
    import hashlib

    import mltable

    frame = mltable.load(folder).take(max(head_rows, count_rows)).to_pandas_dataframe()

    def digest(rows: int) -> str:
        made = hashlib.sha256()
        for row in frame.head(rows).itertuples(index=False):
            made.update(json.dumps([str(value).replace(folder, ".") for value in row]).encode())
        return made.hexdigest()

    columns = [[str(name), str(kind)] for name, kind in frame.dtypes.items()]
    return {
        "error": "", "rows": len(frame), "columns": columns, "head_digest": digest(head_rows),
        "sample_digest": digest(count_rows),
    }  # fmt: skip


if __name__ == "__main__":
    _main()
