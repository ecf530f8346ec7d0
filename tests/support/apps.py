"""Genuine Flower ClientApps, written as Flower's documentation says, and mods of our own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod, message_size_mod

import fedsim


def _sgd(message: Message, context: Context, steps: int = 3) -> RecordDict:
    """Train a linear classifier, which is what the arrays are, and count the rounds."""
    data = fedsim.client_data(context).train
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    state = arrays.to_torch_state_dict()
    weight, bias = state["head.weight"].clone(), state["head.bias"].clone()
    weight.requires_grad_()
    bias.requires_grad_()
    x, y = data.inputs().flatten(1), data.labels()
    noise = float(np.random.rand()) + random.random() + float(torch.rand(()))
    for _ in range(steps):
        features = torch.relu(x @ state["body.1.weight"].T + state["body.1.bias"])
        loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, y)
        gradients = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            weight -= 0.1 * gradients[0]
            bias -= 0.1 * gradients[1]
    state["head.weight"], state["head.bias"] = weight.detach(), bias.detach()
    counter = context.state.metric_records.get("counter", MetricRecord({"rounds": 0}))
    rounds = int(counter["rounds"]) + 1  # type: ignore[arg-type]
    context.state["counter"] = MetricRecord({"rounds": rounds})
    context.state["last"] = ArrayRecord({"bias": Array(bias.detach().numpy())})
    context.state["note"] = ConfigRecord({"tag": f"client {context.node_id}"})
    metrics: dict[str, Any] = {
        "num-examples": len(y),
        "train_loss": float(loss.detach()),
        "rounds": rounds,
        "noise": noise,
        "server_round": message.content.config_records["config"]["server-round"],
        "partition": context.node_config["partition-id"],
    }
    return RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord(metrics)})


def popping_mod(message: Message, context: Context, call_next: Any) -> Message:
    """Take an entry out of the config and write into the arrays, as mods may."""
    config = message.content.config_records["config"]
    number = config.pop("server-round")
    arrays = next(iter(message.content.array_records.values()))
    first = next(iter(arrays))
    kept = arrays.pop(first)
    arrays[first] = kept
    arrays[first].numpy()[...] = 7.0  # a copy of its own: nobody else may see it
    config["server-round"] = number
    return call_next(message, context)


app = ClientApp(mods=[popping_mod, message_size_mod, arrays_size_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    return Message(_sgd(message, context), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    data = fedsim.client_data(context).test
    rounds = context.state.metric_records["counter"]["rounds"] if context.state else 0
    metrics = {"num-examples": len(data), "seen_rounds": rounds}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


clipped = ClientApp(mods=[fixedclipping_mod])


@clipped.train()
def train_clipped(message: Message, context: Context) -> Message:
    return Message(_sgd(message, context), reply_to=message)


broken = ClientApp()


@broken.train()
def train_broken(message: Message, context: Context) -> Message:
    if context.node_id == 3:
        raise RuntimeError("this app is broken")
    return Message(_sgd(message, context), reply_to=message)


nan = ClientApp()


@nan.train()
def train_nan(message: Message, context: Context) -> Message:
    content = _sgd(message, context)
    if context.node_id == 3:
        arrays = content.array_records["arrays"]
        arrays["head.bias"] = Array(np.full(10, np.nan, np.float32))
    return Message(content, reply_to=message)


own_arrays = ClientApp()


@own_arrays.train()
def train_own_arrays(message: Message, context: Context) -> Message:
    """Answer with arrays that are not the model's, which add up from round to round."""
    arrays = message.content.array_records["arrays"]
    total = arrays["total"].numpy() if "total" in arrays else np.zeros(2)
    new = ArrayRecord({"total": Array(np.asarray(total + np.array([1.0, context.node_id])))})
    metrics = MetricRecord({"num-examples": 1, "total": float(total[0])})
    return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)
