"""The steps of the workflows: one module each, a plain body ``run(services, request)``, registered in one line."""

import azure.durable_functions as df

from activities import (
    commit_ledger,
    index_source,
    plan_page,
    prepare_run,
    survey_target,
    transfer_batch,
    verify_page,
    write_manifest,
)
from activities.boundary import bound
from shared import names
from shared.services import Services

ACTIVITIES = {
    names.PREPARE_RUN: prepare_run.run,
    names.INDEX_SOURCE: index_source.run,
    names.SURVEY_TARGET: survey_target.run,
    names.PLAN_PAGE: plan_page.run,
    names.TRANSFER_BATCH: transfer_batch.run,
    names.VERIFY_PAGE: verify_page.run,
    names.COMMIT_LEDGER: commit_ledger.run,
    names.WRITE_MANIFEST: write_manifest.run,
}


def blueprint(services: Services) -> df.Blueprint:
    """All activities, registered under their wire names."""
    bp = df.Blueprint()
    for name, body in ACTIVITIES.items():
        bp.function_name(name)(bp.activity_trigger(input_name="request")(bound(body, services)))
    return bp
