"""Migrate files: plan -> transfer -> retry -> verify -> ledger -> manifest.

1. ``prepare_run`` resolves names, proves that source and target can be reached, and decides what this run does.
2. ``index_source`` reads sources that do not list themselves in the order of paths; ``survey_target`` lists the target
   once, where the plan needs to know what is there.
3. ``plan_page`` turns the source into pages of batches; while it goes on, a window of ``transfer_page``
   sub-orchestrations moves the pages that are planned.
4. Batches that hold items with transient failures are tried again on durable timers, those items only.
5. ``survey_target`` lists the target again, and ``verify_page`` compares every page with it.
6. ``commit_ledger`` remembers what was moved; ``write_manifest`` writes down what became of every item. Both happen
   however the run ended.

The history of one generation stays under 1,000 tasks: once ``PAGES_PER_GENERATION`` pages were planned and moved, tried
again or verified in it, the orchestration continues as new, with its state as input. Cancelling is an external event
here and a marker in the run store that batches see.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from azure.durable_functions import DurableOrchestrationContext
from azure.durable_functions.models.Task import TaskBase

from orchestrators.durable import Aborted, Steps, activity, bug_of, opened, pause, sliding_window, step
from shared.model.steps import (
    Abort,
    MigrateFilesInput,
    PlanPageRequest,
    RetryPolicy,
    State,
    TransferPageRequest,
    VerificationReport,
    VerifyPageOutcome,
    VerifyPageRequest,
    add_changes,
    add_counts,
    no_counts,
    no_verification,
)
from shared.names import (
    CANCEL_EVENT,
    COMMIT_LEDGER,
    INDEX_SOURCE,
    PLAN_PAGE,
    PREPARE_RUN,
    SURVEY_TARGET,
    TRANSFER_PAGE,
    VERIFY_PAGE,
    WRITE_MANIFEST,
    page_instance_id,
    page_name,
)
from shared.policy.backoff import durable_delay_s

PAGES_PER_GENERATION = 300
# Pages in transfer at once: the next one fills the window while the last batches of the one before come in.
_PAGES_IN_FLIGHT = 2
_PAGES_AHEAD = 100
_VERIFY_PARALLEL = 4
# Before the run has decided anything, and after it has ended, these hold.
_RETRY: RetryPolicy = {"attempts": 5, "first_delay_s": 2.0}


class MigrationFailed(Exception):
    """Ends the orchestration as failed, once the manifest is written."""


def migrate_files(context: DurableOrchestrationContext) -> Steps:
    """Orchestration of ``kind: files``; see the module's protocol."""
    given: MigrateFilesInput = context.get_input()
    migration = _Migration(context, given)
    error: Abort | None = None
    try:
        if given["state"] is None:
            yield from migration.prepare()
        done = yield from migration.transfer()
        done = done and (yield from migration.retry())
        done = done and (yield from migration.verify())
        if not done:
            context.continue_as_new({**given, "state": migration.state})
            return None
    except Aborted as aborted:
        error = aborted.abort
    except Exception as bug:  # noqa: BLE001 - whatever it is, the manifest must still say what was moved
        error = bug_of(bug)
    return (yield from migration.finish(error))


class _Migration:
    """The state of a run and the steps that change it. A step returns False if it wants a new generation."""

    def __init__(self, context: DurableOrchestrationContext, given: MigrateFilesInput) -> None:
        self.context = context
        self.run = given["run"]
        self.round = given["round"]
        self.state: State = given["state"] or {
            "phase": "planning",
            "decisions": {"survey": False, "dry_run": False, "verify": "none", "sample_items": 0,
                          "parallel_batches": 1, "retry": _RETRY},
            "cursor": None, "planning_done": False, "next_page": 1, "counts": no_counts(), "waiting": {}, "due": {},
            "attempt": 1, "retry_after_s": None, "verified_pages": 0, "unverified": [], "verification": None,
            "cancelled": False,
        }  # fmt: skip
        self.cancel = context.wait_for_external_event(CANCEL_EVENT)
        self.failure: Abort | None = None
        self.pages_here = 0
        self.listed = 0

    def room(self) -> int:
        """How many pages this generation's history still takes."""
        return PAGES_PER_GENERATION - self.pages_here

    # -- the steps -----------------------------------------------------------------------------------------------

    def prepare(self) -> Steps:
        self.show()
        request = {"run": self.run, "round": self.round}
        self.state["decisions"] = yield from step(self.context, PREPARE_RUN, request, _RETRY)
        for source in self.state["decisions"].get("index", []):
            yield from self.index(source)
            if self.is_cancelled():
                return
        if self.state["decisions"]["survey"]:
            yield from self.survey("before")

    def index(self, source: int) -> Steps:
        """Read one source to its end, a minute at a time."""
        before = self.listed
        while True:
            request = {"run": self.run, "round": self.round, "source": source}
            outcome = yield from step(self.context, INDEX_SOURCE, request, self.state["decisions"]["retry"])
            self.listed = before + outcome["items"]
            self.state["cancelled"] = self.state["cancelled"] or outcome.get("cancelled", False)
            self.show()
            if outcome["done"] or self.is_cancelled():
                return

    def survey(self, name: str) -> Steps:
        continuation, chunk = None, 0
        while True:
            request = {"run": self.run, "round": self.round, "survey": name, "chunk": chunk,
                       "continuation": continuation}  # fmt: skip
            outcome = yield from step(self.context, SURVEY_TARGET, request, self.state["decisions"]["retry"])
            continuation, chunk = outcome["continuation"], chunk + 1
            if continuation is None:
                return

    def transfer(self) -> Steps:
        """Plan and transfer, overlapping."""
        state = self.state
        if state["phase"] not in ("planning", "transferring"):
            return True
        ready: deque[tuple[str, int]] = deque()
        running: dict[TaskBase, str] = {}
        planning: TaskBase | None = None
        while True:
            stopped = state["cancelled"] or self.failure is not None
            while ready and len(running) < _PAGES_IN_FLIGHT and not stopped:
                page, batches = ready.popleft()
                running[self.transfer_page(page, range(batches), attempt=1)] = page
            full = self.room() <= 0 or len(ready) >= _PAGES_AHEAD
            if planning is None and not state["planning_done"] and not full and not stopped:
                planning = activity(self.context, PLAN_PAGE, self.plan_request())
                self.pages_here += 1
            waiting = [*running, *([planning] if planning else [])]
            if not waiting:
                break
            self.show(running.values())
            winner = yield self.context.task_any([*waiting, *([] if stopped else [self.cancel])])
            if winner is self.cancel:
                state["cancelled"] = True
            elif planning is not None and winner is planning:
                result, planning = planning.result, None
                ready.extend((yield from self.planned(result)))
            elif self.transferred(running.pop(winner), winner.result):
                # Nothing of a whole page went through: the service is down, so do not run on into it.
                yield from self.wait(state["retry_after_s"])
        self.raise_failure()
        if not state["planning_done"] and not state["cancelled"]:
            return False
        state["phase"] = "retrying"
        return True

    def retry(self) -> Steps:
        """Try items with transient failures again, with growing pauses."""
        state = self.state
        policy = state["decisions"]["retry"]
        while state["phase"] == "retrying":
            again = state["waiting"] and state["attempt"] < policy["attempts"]
            if again and not state["due"] and not self.is_cancelled():
                self.show()
                state["attempt"] += 1
                if not (yield from self.wait(state["retry_after_s"])):
                    state["due"], state["waiting"], state["retry_after_s"] = state["waiting"], {}, None
            if self.is_cancelled() or not state["due"]:
                state["phase"] = "verifying"
                return True
            if self.room() <= 0:
                return False
            pages = {page: state["due"].pop(page) for page in sorted(state["due"])[: self.room()]}
            self.pages_here += len(pages)
            attempt = state["attempt"]
            running: list[str] = []

            def schedule(
                page: str, pages: dict[str, list[int]] = pages, attempt: int = attempt, running: list[str] = running
            ) -> TaskBase:
                running.append(page)
                self.show(running)
                return self.transfer_page(page, pages[page], attempt=attempt)

            def settle(page: str, result: Any, running: list[str] = running) -> bool:
                running.remove(page)
                self.transferred(page, result)
                self.show(running)
                return not state["cancelled"] and self.failure is None

            yield from sliding_window(self.context, _PAGES_IN_FLIGHT, sorted(pages), schedule, settle)
            self.raise_failure()
        return True

    def verify(self) -> Steps:
        """Compare the lake with the records."""
        state = self.state
        decisions = state["decisions"]
        mode = decisions["verify"]
        if mode == "none" or decisions["dry_run"] or self.is_cancelled():
            return True
        self.show()
        survey = f"after{self.round}"
        if state["verification"] is None:
            state["verification"] = no_verification()
            yield from self.survey(survey)
        if self.is_cancelled():
            return True
        counts = state["counts"]
        total = counts["uploaded"] + counts["skipped"] + counts.get("renamed", 0)
        share = {"listing": 0.0, "all": 1.0}.get(mode, min(1.0, decisions["sample_items"] / max(1, total)))
        while state["unverified"] or state["verified_pages"] < state["next_page"] - 1:
            room = self.room()
            if room <= 0:
                return False
            places = [(number, position) for number, position in state["unverified"][:room]]
            first = state["verified_pages"] + 1
            last = min(state["next_page"] - 1, state["verified_pages"] + room - len(places))
            state["unverified"] = state["unverified"][room:]
            yield from self.verify_places([*places, *((number, 0) for number in range(first, last + 1))], survey, share)
            if self.is_cancelled():
                return True
            state["verified_pages"] = last
        return True

    def verify_places(self, places: list[tuple[int, int]], survey: str, share: float) -> Steps:
        """Verify one step from each of these places on: a page's number and a position in it."""
        self.pages_here += len(places)
        failed: list[tuple[int, int]] = []

        def request(place: tuple[int, int]) -> VerifyPageRequest:
            number, position = place
            return {"run": self.run, "round": self.round, "page": page_name(number, self.round), "survey": survey,
                    "position": position, "sample_share": share}  # fmt: skip

        def schedule(place: tuple[int, int]) -> TaskBase:
            return activity(self.context, VERIFY_PAGE, request(place))

        def settle(place: tuple[int, int], envelope: Any) -> bool:
            outcome = self.taken(envelope)
            if outcome is None:
                failed.append(place)
            else:
                self.verified(place, outcome)
            return self.failure is None and not self.is_cancelled()

        yield from sliding_window(self.context, _VERIFY_PARALLEL, places, schedule, settle)
        self.raise_failure()
        for place in failed:
            if self.is_cancelled():
                return
            self.pages_here += 1
            retry = self.state["decisions"]["retry"]
            self.verified(place, (yield from step(self.context, VERIFY_PAGE, request(place), retry)))

    def finish(self, error: Abort | None) -> Steps:
        """Ledger, manifest, and the orchestration's result."""
        state = self.state
        state["phase"] = "finishing"
        self.show()
        if not state["decisions"]["dry_run"]:
            try:
                yield from step(self.context, COMMIT_LEDGER, {"run": self.run, "round": self.round}, _RETRY)
            except Aborted as aborted:
                error = error or aborted.abort
            except Exception as bug:  # noqa: BLE001 - the manifest must still say what was moved
                error = error or bug_of(bug)
        status = self.outcome(error)
        manifest: dict[str, Any] = {
            "run": self.run, "round": self.round, "status": status, "error": error, "verification": self.report(),
            "ended_at": self.context.current_utc_datetime.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        if "concurrency_changes" in state:
            manifest["concurrency_changes"] = state["concurrency_changes"]
        # Before the wait, not after it alone: what is shown together with a failure is not kept by every host.
        self.show(status=status, error=error)
        totals = yield from step(self.context, WRITE_MANIFEST, manifest, _RETRY)
        self.show(status=status, error=error, totals=totals)
        if error is not None:
            raise MigrationFailed(f"{error['code']}: {error['detail']}")
        return {"status": status, "counts": state["counts"], "verification": self.report()}

    # -- their parts ---------------------------------------------------------------------------------------------

    def plan_request(self) -> PlanPageRequest:
        number = self.state["next_page"]
        self.state["next_page"] += 1
        page = page_name(number, self.round)
        return {"run": self.run, "round": self.round, "page": page, "cursor": self.state["cursor"]}

    def planned(self, envelope: Any) -> Steps:
        """Take in a page's plan; the page with its number of batches, if it has any."""
        outcome = self.taken(envelope)
        if self.failure is not None:
            return []
        if outcome is None:
            self.state["next_page"] -= 1
            retry = self.state["decisions"]["retry"]
            try:
                outcome = yield from step(self.context, PLAN_PAGE, self.plan_request(), retry)
            except Aborted as aborted:
                # Not out of here: pages are being moved, and what they did belongs into ledger and manifest.
                self.fail(aborted.abort)
                return []
            except Exception as bug:  # noqa: BLE001 - an activity's failure, whatever its type was over there
                self.fail(bug_of(bug))
                return []
        self.state["phase"] = "transferring"
        add_counts(self.state["counts"], outcome["counts"])
        self.state["cursor"] = outcome["cursor"]
        self.state["planning_done"] = outcome["cursor"] is None
        return [(outcome["page"], outcome["batches"])] if outcome["batches"] else []

    def transfer_page(self, page: str, batches: Iterable[int], *, attempt: int) -> TaskBase:
        decisions = self.state["decisions"]
        request: TransferPageRequest = {
            "run": self.run, "round": self.round, "page": page, "batches": list(batches), "attempt": attempt,
            "final": attempt >= decisions["retry"]["attempts"],
            "parallel": -(-decisions["parallel_batches"] // _PAGES_IN_FLIGHT),
        }  # fmt: skip
        child = page_instance_id(self.run, page, attempt)
        return self.context.call_sub_orchestrator(TRANSFER_PAGE, request, child)

    def transferred(self, page: str, outcome: Any) -> bool:
        """Take in a page's outcome; whether nothing at all went through."""
        state = self.state
        if isinstance(outcome, Exception):
            self.fail(bug_of(outcome))
            return False
        add_counts(state["counts"], outcome["counts"])
        if "concurrency_changes" in outcome:
            state["concurrency_changes"] = add_changes(
                state.get("concurrency_changes", []), outcome["concurrency_changes"]
            )
        if outcome["retry"]:
            state["waiting"][page] = outcome["retry"]
            state["retry_after_s"] = max(state["retry_after_s"] or 0.0, outcome["retry_after_s"] or 0.0) or None
        state["cancelled"] = state["cancelled"] or outcome["cancelled"]
        if outcome["abort"] is not None:
            self.fail(outcome["abort"])
            return False
        counts = outcome["counts"]
        settled = ("uploaded", "skipped", "renamed", "failed", "deleted")
        return bool(outcome["retry"]) and not any(counts.get(name) for name in settled)

    def verified(self, place: tuple[int, int], outcome: VerifyPageOutcome) -> None:
        """Take in what a step of verification found, and from where it has to go on."""
        total = self.state["verification"]
        assert total is not None
        for name in no_verification():
            total[name] += outcome["result"][name]  # type: ignore[literal-required]
        add_counts(self.state["counts"], outcome["counts"])
        if outcome["position"] is not None:
            self.state["unverified"].append((place[0], outcome["position"]))

    def taken(self, envelope: Any) -> Any:
        """An activity's outcome, or None; what must stop the run is kept until everything that runs has ended."""
        try:
            return opened(envelope)
        except Aborted as aborted:
            self.fail(aborted.abort)
        except Exception as bug:  # noqa: BLE001 - an activity's failure, whatever its type was over there
            self.fail(bug_of(bug))
        return None

    def fail(self, abort: Abort) -> None:
        self.failure = self.failure or abort

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise Aborted(self.failure)

    def wait(self, asked_s: float | None) -> Steps:
        """The pause before the next attempt; whether somebody cancelled meanwhile."""
        policy = self.state["decisions"]["retry"]
        delay_s = durable_delay_s(max(2, self.state["attempt"]), policy["first_delay_s"], asked_s)
        if (yield from pause(self.context, delay_s, self.cancel)):
            self.state["cancelled"] = True
        return self.state["cancelled"]

    def report(self) -> VerificationReport | None:
        sums = self.state["verification"]
        if sums is None:
            return None
        wrong = sum(sums[name] for name in ("missing", "size_mismatches", "hash_mismatches", "unreadable"))
        is_whole = self.state["verified_pages"] >= self.state["next_page"] - 1 and not self.state["unverified"]
        verdict = "failed" if wrong else "passed" if is_whole else "incomplete"
        return {**sums, "mode": self.state["decisions"]["verify"], "verdict": verdict}

    def outcome(self, error: Abort | None) -> str:
        if error is not None:
            return "failed"
        if self.state["cancelled"]:
            return "cancelled"
        left = self.state["counts"]["failed"] or self.state["waiting"] or self.state["due"]
        return "completed_with_failures" if left else "completed"

    def is_cancelled(self) -> bool:
        """Whether somebody cancelled by now, in the order of history."""
        self.state["cancelled"] = self.state["cancelled"] or bool(self.cancel.is_completed)
        return self.state["cancelled"]

    def show(
        self,
        running: Iterable[str] = (),
        *,
        status: str | None = None,
        error: Abort | None = None,
        totals: dict[str, int] | None = None,
    ) -> None:
        """Publish where the run stands, as custom status; ``totals`` are those of the manifest, once it is written."""
        state = self.state
        self.context.set_custom_status({
            "phase": state["phase"], "status": status, "counts": state["counts"],
            "planning_done": state["planning_done"], "listed": self.listed,
            "concurrency_changes": state.get("concurrency_changes", []),
            "error": error, "verification": self.report(), "totals": totals,
            "waiting": sum(len(batches) for batches in state["waiting"].values()), "attempt": state["attempt"],
            "children": [page_instance_id(self.run, page, state["attempt"]) for page in running],
        })  # fmt: skip
