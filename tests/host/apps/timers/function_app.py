"""Sample app: timer triggers that write down what they were given."""

import json
import os
from pathlib import Path

import azure.functions as func

app = func.FunctionApp()


def note(name: str, timer: func.TimerRequest) -> None:
    seen = {"past_due": timer.past_due, "status": timer.schedule_status, "schedule": timer.schedule}
    with (Path(os.environ["TRACES"]) / name).open("a") as file:
        file.write(json.dumps(seen) + "\n")


@app.timer_trigger(schedule="* * * * * *", arg_name="timer")
def every_second(timer: func.TimerRequest) -> None:
    note("every_second", timer)


@app.timer_trigger(schedule="0 0 0 1 1 *", arg_name="timer", run_on_startup=True)
async def on_startup(timer: func.TimerRequest, context: func.Context) -> None:
    note(context.function_name, timer)


@app.timer_trigger(schedule="%YEARLY%", arg_name="timer")
def yearly(timer: func.TimerRequest) -> None:
    note("yearly", timer)


@app.timer_trigger(schedule="0 0 0 1 1 *", arg_name="timer", use_monitor=False)
def unmonitored(timer: func.TimerRequest) -> None:
    note("unmonitored", timer)
    raise RuntimeError("on purpose")
