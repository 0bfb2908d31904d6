"""What the demo shows, step by step, and the report at the end.

1. Make the sample files.
2. Start emulators and host.
3. Migrate over HTTP; with kills, SIGKILL the host on the way and start it again.
4. Compare lake and source on disk, and the manifest with digests of its own.
5. Start the same job again: nothing is uploaded.
6. Change one file and start once more: that file alone moves. Compare again.
7. Migrate a library of the emulated SharePoint, and then what was changed in it (`local.demo.library`).
8. Migrate a shop's database into Delta tables, and then what was changed in it (`local.demo.tables`).
9. Migrate MLTables between two tenants (`local.demo.mltables`).
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any, Final

from local.demo.comparison import Comparison, check_manifest, compare_folders
from local.demo.invoices import SPECIAL_NAMES, Sources, make_sources, write_invoice
from local.demo.library import estate_with_library, migrate_library
from local.demo.mltables import migrate_mltables, why_not
from local.demo.platform import LAKEHOUSE, WORKSPACE, Platform, StepFailed
from local.demo.shop import open_shop
from local.demo.stage import Run, Stage, listed, require_identical
from local.demo.tables import migrate_tables
from shared.policy.progress_line import LiveLine, settled_items
from shared.policy.quantities import show_bytes, show_duration

_JOB: Final = "demo"
_TARGET: Final = f"Files/{_JOB}"
_CHANGED: Final = "special/invoice #7.pdf"
# What a sample file takes on average, twice (source and lake), with room for history and records.
_DISK_BYTES_A_FILE: Final = 480 * 1024
_DISK_BYTES_MORE: Final = 64 * 1024 * 1024
# The first kill is at once, while the run is planned; the others somewhere in these parts of the way.
_KILL_SPANS: Final = ((0.0, 0.0), (0.15, 0.4), (0.45, 0.65), (0.7, 0.9))
# With kills every call takes as long as on a network, so that there is a way on which to be killed.
_LATENCY_WITH_KILLS_MS: Final = 25.0
# Operations of the lake that bring bytes or put them in place; every run also makes sure of its folder.
_WRITES: Final = frozenset({"append", "append_flush", "flush", "rename"})


class Story:
    """One demo.

    Args:
        work: Where everything lies; empty.
        files: How many sample files are asked for.
        seed: Of the sample files and of the moments of the kills.
        kills: Whether to kill the host on the way.
        line: Where to print.
        is_unicode: Whether a progress bar may have block characters.
    """

    def __init__(self, work: Path, *, files: int, seed: int, kills: bool, line: LiveLine, is_unicode: bool) -> None:
        self._work = work
        self._sources = work / "sources"
        self._shop = work / "shop.db"
        self._files = files
        self._seed = seed
        self._kills = kills
        self._stage = Stage(line, is_unicode=is_unicode)
        self._kills_survived = 0

    @property
    def step(self) -> str:
        """What is being done, for who has to say where it failed."""
        return self._stage.step

    def logs(self) -> dict[str, Path]:
        """Where to look after a failure."""
        return {
            "host": self._work / "host" / "host.log",
            "emulators": self._work / "emulators" / "emulators.log",
            "everything": self._work,
        }

    def tell(self, *, keep: bool) -> None:
        """Carry out all steps and print the report; with ``keep`` serve until Ctrl-C then.

        Raises:
            StepFailed: Something is not as it must be.
        """
        started_s = time.monotonic()
        self._stage.say("OneLake migration, demonstrated on this machine alone: no account, no network.\n")
        made = self._make_sources()
        with self._start_platform(wants_usual_port=keep) as platform:
            first = self._migrate(platform)
            found = self._compare(platform, first)
            self._migrate_again(platform)
            self._change_one(platform)
            migrate_library(self._stage, platform)
            migrate_tables(self._stage, platform, self._shop, self._seed)
            migrate_mltables(self._stage, platform, self._no_azureml, self._seed)
            if not keep:
                self._stage.begin("stopping")
                platform.stop()
            self._report(platform, made, first, found, time.monotonic() - started_s, keep=keep)
            if keep:
                self._serve(platform)

    # -- the steps -------------------------------------------------------------------------------------------------

    def _make_sources(self) -> Sources:
        self._stage.begin("making sample files")
        if self._files < len(SPECIAL_NAMES):
            self._stage.say(
                f"    {self._files} files were asked for; the {len(SPECIAL_NAMES)} with special names are made."
            )
        needed_bytes = self._files * _DISK_BYTES_A_FILE + _DISK_BYTES_MORE
        free_bytes = shutil.disk_usage(self._work).free
        if free_bytes < needed_bytes:
            raise StepFailed(
                f"this needs about {show_bytes(needed_bytes)} of disk, and {self._work} has {show_bytes(free_bytes)}; "
                "ask for fewer with --files, or give another folder with --work"
            )
        began_s = time.monotonic()
        made = make_sources(self._sources, self._files, self._seed, self._stage.counting("files written"))
        self._stage.done(
            f"{made.files:,} PDF invoices, {show_bytes(made.size_bytes)}, seed {self._seed}", time.monotonic() - began_s
        )
        self._stage.say(
            "    among them: no bytes at all, a large scan, # % + & ' and spaces in names, emoji, other scripts,"
        )
        self._stage.say(
            "    composed and decomposed accents, a name of 200 characters, eight levels, Case.pdf and case.pdf"
        )
        for note in made.notes:
            self._stage.say(f"    {note}")
        open_shop(self._shop, self._seed)
        return made

    def _start_platform(self, *, wants_usual_port: bool) -> Platform:
        self._stage.begin("starting emulators and host")
        began_s = time.monotonic()
        latency_ms = _LATENCY_WITH_KILLS_MS if self._kills else 0.0
        self._no_azureml = why_not()
        platform = Platform(
            self._work, self._sources, self._shop, estate=estate_with_library(self._seed),
            azureml=self._no_azureml is None, latency_ms=latency_ms, wants_usual_port=wants_usual_port,
        )  # fmt: skip
        try:
            platform.call("GET", "/health")
        except BaseException:
            with platform:
                raise
        self._stage.done(f"emulators and host are up; the API is {platform.api_url}", time.monotonic() - began_s)
        if latency_ms:
            self._stage.say(f"    every call to the lake takes {latency_ms:g} ms more, as over a network")
        return platform

    def _migrate(self, platform: Platform) -> Run:
        self._stage.begin("migrating")
        draw = random.Random(f"{self._seed}/kills")  # noqa: S311 - moments of a demonstration, not a secret
        moments = [draw.uniform(*span) for span in _KILL_SPANS] if self._kills else []
        run = self._run_job(platform, moments)
        progress = run.progress
        if progress["uploaded"] + progress["skipped"] != progress["planned"] or progress["failed"]:
            raise StepFailed(f"not every file was moved: {progress}")
        self._stage.done(
            f"{progress['uploaded']:,} files uploaded, {show_bytes(progress['bytes_done'])}", run.elapsed_s
        )
        return run

    def _compare(self, platform: Platform, run: Run) -> Comparison:
        self._stage.begin("comparing every byte")
        began_s = time.monotonic()
        found = compare_folders(self._sources, platform.lake_files / _JOB, self._stage.counting("files read"))
        require_identical(found)
        manifest = platform.call("GET", run.document["links"]["manifest"])
        wrong = check_manifest(manifest, found.source, _TARGET)
        if wrong:
            raise StepFailed("the manifest does not agree with the files:\n" + listed(wrong))
        self._stage.done(
            f"lake and source are the same: {found.files:,} files, {show_bytes(found.size_bytes)}, by size and sha256",
            time.monotonic() - began_s,
        )
        self._stage.say("    the manifest names every file once, with the md5 that its bytes really have")
        return found

    def _migrate_again(self, platform: Platform) -> None:
        self._stage.begin("starting the same job again")
        platform.emulators.reset_stats()
        run = self._run_job(platform, [])
        progress = run.progress
        writes = self._writes_seen(platform)
        if progress["uploaded"] or progress["bytes_done"] or progress["skipped"] != progress["planned"] or writes:
            raise StepFailed(f"the second run was to upload nothing: {progress}, and the lake saw {writes} writes")
        self._stage.done(f"{progress['skipped']:,} files recognised, 0 bytes uploaded", run.elapsed_s)
        self._stage.rows.append(
            ("Started again", f"nothing uploaded: all {progress['skipped']:,} files were recognised")
        )

    def _change_one(self, platform: Platform) -> None:
        self._stage.begin("changing one file")
        write_invoice(self._sources, _CHANGED, self._seed, revision=1)
        run = self._run_job(platform, [])
        progress = run.progress
        if progress["uploaded"] != 1 or progress["skipped"] != progress["planned"] - 1:
            raise StepFailed(f"the third run was to upload one file: {progress}")
        found = compare_folders(self._sources, platform.lake_files / _JOB, self._stage.counting("files read"))
        require_identical(found)
        self._stage.done(
            f"{_CHANGED!r} was amended; it alone moved ({show_bytes(progress['bytes_done'])})", run.elapsed_s
        )
        self._stage.rows.append(
            ("One file changed", "that one moved, and lake and source are the same again, every byte")
        )

    # -- their parts -----------------------------------------------------------------------------------------------

    def _run_job(self, platform: Platform, moments: list[float]) -> Run:
        """Start the job and follow it to its end; at these shares of the way, kill the host."""
        moments = sorted(moments)

        def kill_in_time(document: dict[str, Any]) -> bool:
            if not moments or _share(document) < moments[0]:
                return False
            del moments[0]
            self._kill(platform, document)
            return True

        # Small batches only so that the bar moves smoothly; a real job keeps the defaults.
        batch_items = max(2, min(25, self._files // 12))
        spec = {
            "kind": "files", "name": _JOB, "source": {"type": "folder", "path": str(self._sources)},
            "target": {"workspace": WORKSPACE, "lakehouse": LAKEHOUSE, "path": _TARGET}, "verify": "sample",
            "limits": {"batch_items": batch_items, "parallel_batches": 4},
        }  # fmt: skip
        return self._stage.follow(platform, spec, kill_in_time)

    def _kill(self, platform: Platform, document: dict[str, Any]) -> None:
        pid = platform.host.pid
        platform.kill_host()
        began_s = time.monotonic()
        where = f"{settled_items(document):,} of {document['progress']['planned']:,} files"
        self._stage.say(f"    SIGKILL to the host (process {pid}) while {document['status']}, at {where}")
        platform.restart_host()
        after = platform.call("GET", document["links"]["self"])
        elapsed_s = time.monotonic() - began_s
        if settled_items(after) < settled_items(document):
            raise StepFailed(f"progress was lost: {settled_items(document)} files before, {settled_items(after)} after")
        self._kills_survived += 1
        self._stage.say(
            f"    up again after {elapsed_s:.1f} s (process {platform.host.pid}); it goes on from "
            f"{settled_items(after):,} files"
        )

    def _writes_seen(self, platform: Platform) -> int:
        lake = platform.emulators.stats().get("onelake", {})
        return sum(sum(statuses.values()) for operation, statuses in lake.items() if operation in _WRITES)

    def _serve(self, platform: Platform) -> None:
        self._stage.step = "serving"
        try:
            while platform.host.exit_code is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            self._stage.say("\nStopping.")
            platform.stop()
            return
        raise StepFailed(f"the host has ended by itself, with status {platform.host.exit_code}")

    # -- the report -----------------------------------------------------------------------------------------------

    def _report(
        self, platform: Platform, made: Sources, run: Run, found: Comparison, elapsed_s: float, *, keep: bool
    ) -> None:
        checked = run.document["verification"]
        rows = [
            ("Moved", f"{run.progress['uploaded']:,} files, {show_bytes(run.progress['bytes_done'])}, from a folder to "
             f"{WORKSPACE}/{LAKEHOUSE}/{_TARGET}"),
            ("Rate", f"{made.files / run.elapsed_s:,.0f} files/s, {show_bytes(made.size_bytes / run.elapsed_s)}/s "
             f"over {run.elapsed_s:.1f} s" + (", kills and restarts included" if self._kills_survived else "")),
        ]  # fmt: skip
        if self._kills:
            rows.append(("Kills survived", f"{self._kills_survived} times SIGKILL; no file lost, none moved in part"))
        rows += [
            ("Every byte", f"the same in {found.files:,} of {found.files:,} files; none missing, none extra"),
            ("Manifest", f"{found.files:,} records, each with the hash computed independently"),
            ("The app's own check", f"{checked['verdict']}: {checked['listed']:,} files listed, "
             f"{checked['hashes_checked']:,} read back"),
            *self._stage.rows,
            ("All of it took", show_duration(elapsed_s)),
        ]  # fmt: skip
        self._stage.say("\nReport")
        self._stage.table(rows)
        if not keep:
            self._stage.say(f"\nAll is well. {self._work} is removed; with --keep it stays, and goes on running.")
            return
        links = run.document["links"]
        self._stage.say("\nAll is well. It goes on running until Ctrl-C:")
        self._stage.table([
            ("API", platform.api_url),
            ("Health", f"{platform.api_url}/health"),
            ("All runs", f"{platform.api_url}/migrations"),
            ("The run", links["self"]),
            ("Manifest to read", f"{links['manifest']}?format=html"),
            ("Manifest as data", f"{links['manifest']}?format=json   (also csv, md)"),
            ("Files in the lake", str(platform.lake_files / _JOB)),
            ("Files in the source", str(self._sources)),
            ("Logs", f"{platform.logs['host']}, {platform.logs['emulators']}"),
        ])  # fmt: skip


def _share(document: dict[str, Any]) -> float:
    planned = document["progress"]["planned"]
    return settled_items(document) / planned if planned else 0.0
