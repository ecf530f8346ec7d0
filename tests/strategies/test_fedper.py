from pathlib import Path

import pytest

import fedsim
from fedsim.api import build_model
from fedsim.errors import InputError
from tests.support.runs import tiny


def test_bodies_travel_and_heads_stay(tmp_path: Path) -> None:
    experiment = tiny(strategy={"name": "fedper"}, rounds=2)
    run = fedsim.run(experiment, out=tmp_path)
    saved = run.arrays()
    module = build_model(run.config)
    body = {n: t for n, t in module.state_dict().items() if n.startswith("body.")}
    assert set(saved) == set(body)
    with pytest.raises(InputError, match=r"no whole global model: fedper leaves head\.bias, head"):
        run.model()
    clients = run.clients
    up = clients[clients["name"] == "bytes_up"]["value"]
    assert set(up) == {float(sum(t.numel() * t.element_size() for t in body.values()))}
    names = set(clients[clients["split"] == "test"]["name"])
    assert {"personal/accuracy", "personal/loss"} <= names
    # Without a head there is no generic model to be scored.
    assert not any(name.startswith("generic/") for name in names)
    assert "generic/accuracy" not in set(run.metrics["name"])


def test_with_one_client_it_is_local_sgd(tmp_path: Path) -> None:
    """The one client gets back what it sent: the same as FedAvg with that client."""
    changes = {"partition": {"name": "iid", "clients": 1}, "participation": 1.0, "rounds": 3}
    own = fedsim.run(tiny(strategy={"name": "fedper"}, name="own", **changes), out=tmp_path)
    plain = fedsim.run(
        tiny(strategy={"name": "fedavg"}, client={"vectorise": False}, name="plain", **changes),
        out=tmp_path,
    )
    whole = plain.arrays()
    for name, tensor in own.arrays().items():
        assert tensor.equal(whole[name]), name
    first = own.client_values("test", "personal/accuracy", last=True)["value"].tolist()
    assert first == plain.client_values("test", "generic/accuracy", last=True)["value"].tolist()
