"""The embedded host: runs a Functions app on one machine with its history in one SQLite file.

``python -m local.host`` starts it; `launch` starts it as a child process, for tests and demonstrations.
"""

from local.host.process import HostFailed, RunningHost, launch

__all__ = ["HostFailed", "RunningHost", "launch"]
