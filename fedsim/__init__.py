"""fedsim: federated-learning simulation with Flower strategies on Ray-scheduled clients.

    run = fedsim.run("experiments/quickstart.yaml", set={"client.lr": 0.05})
    run.metrics; run.clients; run.model()

Names are imported on first use, so ``import fedsim`` is instant.
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
    from fedsim.training.local_sgd import Fit, LocalSGD

_EXPORTS = {
    "fedsim.api": ("features", "partition", "resume", "run"),
    "fedsim.client": ("Client", "ClientContext", "Update"),
    "fedsim.components.lookup": ("register",),
    "fedsim.engine.client_app": ("client_data",),
    "fedsim.errors": ("InputError", "RunFailed"),
    "fedsim.params": ("Params",),
    "fedsim.report.compare": ("compare",),
    "fedsim.report.domains": ("domain_matrix", "domains_figure"),
    "fedsim.runs.results": ("Run", "load_run", "load_runs"),
    "fedsim.strategy": ("Payload", "ServerContext", "Strategy"),
    "fedsim.sweeps.sweep": ("sweep",),
    "fedsim.training.local_sgd": ("Fit", "LocalSGD"),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "Client",
    "ClientContext",
    "Fit",
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
