"""A run without `engine.address` starts a Ray of its own, whatever else runs on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from ray.cluster_utils import Cluster
import fedsim
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
changes = {"rounds": 1, "engine.workers": 2}
run = fedsim.run("experiments/quickstart.yaml", set=changes, out=sys.argv[1])
print(run.status, run.rounds_done)
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_foreign_cluster_is_left_alone(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # The foreign cluster has one CPU: two workers fit only on a Ray of the run's own.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=root, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["finished 1"], done.stderr
