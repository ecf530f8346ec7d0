"""fedsim: federated-learning simulation with Flower strategies on Ray-scheduled clients.

    run = fedsim.run("experiments/quickstart.yaml", set={"client.lr": 0.05})
    run.metrics; run.clients; run.model()

Names are imported at first use, so that ``import fedsim`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.api import features, partition, resume, run
    from fedsim.client import Client, ClientContext, Update
    from fedsim.components.lookup import register
    from fedsim.engine.client_app import client_data
    from fedsim.errors import InputError, RunFailed
    from fedsim.params import Params
    from fedsim.report.compare import compare
    from fedsim.report.domains import domain_matrix, domains_figure
    from fedsim.runs.results import Run, load_run, load_runs
    from fedsim.strategy import Payload, ServerContext, Strategy
    from fedsim.sweeps.sweep import sweep
    from fedsim.training.local_sgd import LocalSGD

_HOMES = {
    "features": "fedsim.api",
    "partition": "fedsim.api",
    "run": "fedsim.api",
    "resume": "fedsim.api",
    "Client": "fedsim.client",
    "ClientContext": "fedsim.client",
    "Update": "fedsim.client",
    "client_data": "fedsim.engine.client_app",
    "InputError": "fedsim.errors",
    "RunFailed": "fedsim.errors",
    "LocalSGD": "fedsim.training.local_sgd",
    "Params": "fedsim.params",
    "register": "fedsim.components.lookup",
    "compare": "fedsim.report.compare",
    "domain_matrix": "fedsim.report.domains",
    "domains_figure": "fedsim.report.domains",
    "Run": "fedsim.runs.results",
    "load_run": "fedsim.runs.results",
    "load_runs": "fedsim.runs.results",
    "Payload": "fedsim.strategy",
    "ServerContext": "fedsim.strategy",
    "Strategy": "fedsim.strategy",
    "sweep": "fedsim.sweeps.sweep",
}

__all__ = [
    "Client",
    "ClientContext",
    "InputError",
    "LocalSGD",
    "Params",
    "Payload",
    "Run",
    "RunFailed",
    "ServerContext",
    "Strategy",
    "Update",
    "client_data",
    "compare",
    "domain_matrix",
    "domains_figure",
    "features",
    "load_run",
    "load_runs",
    "partition",
    "register",
    "resume",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
