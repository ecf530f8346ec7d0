"""The client of FedAvg over towers: trains the shared towers of its modalities on its own task, and
keeps its classifier and the scalars of its loss."""

from __future__ import annotations

from clients._modality_task import OwnTask, TaskClient, part_name
from fedsim.client import ClientContext, Tree
from fedsim.data.views import ClientData
from fedsim.params import Params

MODALITIES = ("image", "text")


class MultimodalFedAvg(TaskClient):
    """Sends its towers by modality, nothing of a modality that it lacks.

    It keeps its optimiser's moments, as the methods do that it is compared with.
    """

    needs = frozenset(MODALITIES)
    sends = frozenset(MODALITIES)

    def shared(self, payload: Tree, data: ClientData, ctx: ClientContext) -> list[Params]:
        name = part_name(data, ctx)
        return [payload[m].put_under(f"{name}.{m}") for m in MODALITIES if len(payload[m])]

    def sent(self, payload: Tree, task: OwnTask) -> Tree:
        model = task.model()
        return {m: model.inside(f"{task.name}.{m}") for m in MODALITIES}
