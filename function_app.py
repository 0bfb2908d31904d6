"""The Azure Functions app: settings -> services -> blueprints. Composition only."""

import azure.durable_functions as df
import azure.functions as func

import activities
import orchestrators
import triggers
from shared.clients.allocation import share_memory_among_threads
from shared.services import Services

share_memory_among_threads()
services = Services()

app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)
app.register_functions(triggers.blueprint(services))
app.register_functions(orchestrators.blueprint())
app.register_functions(activities.blueprint(services))
