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
from collections.abc import Sequence
from pathlib import Path

from shared.ports import LoadedTable

_SHOWN_CHARACTERS = 300
_GRACE_S = 2.0


class SubprocessTableLoader:
    """Implements ``ports.TableLoader``."""

    async def load(
        self, folders: Sequence[str], *, head_rows: int, count_rows: int, timeout_s: float, memory_bytes: int
    ) -> list[LoadedTable]:
        # Beside the tables: whoever made that folder deletes it, also after a kill.
        with tempfile.TemporaryDirectory(prefix="engine-", dir=Path(folders[0]).parent) as beside:
            answer = Path(beside, "answer.json")
            request = {
                "folders": list(folders), "answer": str(answer), "head_rows": head_rows, "count_rows": count_rows,
                "timeout_s": timeout_s, "memory_bytes": memory_bytes,
            }  # fmt: skip
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "shared.clients.table_loader", json.dumps(request),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                env=_environment(beside), cwd=beside, start_new_session=True,
            )  # fmt: skip
            try:
                async with asyncio.timeout(timeout_s):
                    status = await process.wait()
            except TimeoutError:
                ending = f"loading took more than {timeout_s:g} s and was ended"
            else:
                ending = _ending(status, memory_bytes)
            finally:
                if process.returncode is None:
                    # With whatever it has started.
                    os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            loaded = await asyncio.to_thread(_answered, answer)
            return [*loaded, *(_failed(ending) for _ in folders[len(loaded) :])]


def _answered(answer: Path) -> list[LoadedTable]:
    """What it has written, a line a folder; a line that was cut short is none."""
    try:
        lines = answer.read_text(encoding="utf-8").split("\n")
    except OSError:
        return []
    return [json.loads(line) for line in lines[:-1]]


def _environment(home: str) -> dict[str, str]:
    """What an interpreter needs to find the packages, and nothing that this process was told."""
    places = os.pathsep.join(str(Path(place).resolve()) for place in sys.path if place)
    path = os.environ.get("PATH", "")
    return {"PATH": path, "PYTHONPATH": places, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}


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
    with Path(request["answer"]).open("w", encoding="utf-8") as answers:
        for folder in request["folders"]:
            try:
                answer = _load(folder, request["head_rows"], request["count_rows"])
            except MemoryError:
                answer = _failed(f"the engine needs more than its memory limit of {limit // 2**20} MiB")
            except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is to hear of it
                text = " ".join(str(error).replace(folder, ".").split())[:_SHOWN_CHARACTERS]
                answer = _failed(f"{type(error).__name__}: {text}")
            answers.write(f"{json.dumps(answer)}\n")
            answers.flush()
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
