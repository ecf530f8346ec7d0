"""FedDF's client: trains its part's encoder on its own task, and keeps its classifier."""

from __future__ import annotations

from clients._modality_task import OwnTask, TaskClient
from fedsim.client import ClientContext, Tree
from fedsim.data.views import ClientData
from fedsim.params import Params


class FedDF(TaskClient):
    """Sends its encoder, keeps its classifier and its optimiser's moments."""

    needs = frozenset({"encoder"})
    sends = frozenset({"encoder"})

    def shared(self, payload: Tree, data: ClientData, ctx: ClientContext) -> list[Params]:
        return [payload["encoder"]]

    def sent(self, payload: Tree, task: OwnTask) -> Tree:
        return {"encoder": task.model().only(set(payload["encoder"]).__contains__)}
