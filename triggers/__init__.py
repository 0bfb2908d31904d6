"""How the world reaches the app: the HTTP API, and the timer that starts schedules that are due."""

from typing import Any

import azure.durable_functions as df
import azure.functions as func

from shared import names
from shared.services import Services
from triggers import about, migrations, schedules
from triggers.answers import bound

ROUTES = (
    (names.START_MIGRATION, "migrations", "POST", migrations.start),
    (names.LIST_MIGRATIONS, "migrations", "GET", migrations.list_runs),
    (names.GET_MIGRATION, "migrations/{id}", "GET", migrations.get),
    (names.CONTROL_MIGRATION, "migrations/{id}/{action}", "POST", migrations.control),
    (names.PURGE_MIGRATION, "migrations/{id}", "DELETE", migrations.purge),
    (names.GET_MANIFEST, "migrations/{id}/manifest", "GET", migrations.manifest),
    (names.LIST_ITEMS, "migrations/{id}/items", "GET", migrations.items),
    (names.LIST_SCHEDULES, "schedules", "GET", schedules.list_all),
    (names.PUT_SCHEDULE, "schedules/{name}", "PUT", schedules.put),
    (names.DELETE_SCHEDULE, "schedules/{name}", "DELETE", schedules.delete),
    (names.RUN_SCHEDULE, "schedules/{name}/run", "POST", schedules.run_now),
    (names.HEALTH, "health", "GET", about.health),
    (names.OPENAPI, "openapi.json", "GET", about.openapi),
)


def blueprint(services: Services) -> df.Blueprint:
    """All triggers, registered under their wire names."""
    bp = df.Blueprint(http_auth_level=func.AuthLevel.FUNCTION)
    for name, route, method, body in ROUTES:
        registered: Any = bound(body, services)
        registered = bp.durable_client_input(client_name="client")(registered)
        registered = bp.route(route=route, methods=[method])(registered)
        bp.function_name(name)(registered)

    async def start_due_schedules(timer: func.TimerRequest, client: str) -> None:
        await schedules.start_due(services, client)

    timed: Any = bp.durable_client_input(client_name="client")(start_due_schedules)
    timed = bp.timer_trigger(arg_name="timer", schedule="%SCHEDULE_TICK%", run_on_startup=False)(timed)
    bp.function_name(names.START_DUE_SCHEDULES)(timed)
    return bp
