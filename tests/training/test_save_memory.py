"""What a save costs in memory: a process of its own, a state of 1 GiB, twenty saves."""

import json
import subprocess
import sys

import pytest

from tests import runs

PROGRAM = """
import json, pathlib, sys, threading, time
import jax, jax.numpy as jnp
from configs.common import base
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.state import TrainState

def resident():
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("VmRSS:")[2].split()[0])

peak, ended = 0, False
def sample():
    global peak
    while not ended:
        peak = max(peak, resident())
        time.sleep(0.005)

config = base()
config.checkpoint.update(keep=2, keep_every=1_000_000)
make = jax.jit(lambda x: {f"{k}": x + jnp.arange(2**24, dtype=jnp.float32) for k in range(16)})
threading.Thread(target=sample, daemon=True).start()
found = []
with Checkpoints(sys.argv[1], config, writer=True) as checkpoints:
    for step in range(1, 21):
        state = TrainState(jnp.asarray(step), {}, {}, make(float(step)))
        jax.block_until_ready(state)
        before = peak = resident()
        checkpoints.save(step, state, {"position": step}, {"note": ""})
        while checkpoints.poll() is None:
            time.sleep(0.01)
        found.append([before, peak])
        del state
ended = True
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status (Linux)")
def test_a_save_needs_at_most_as_much_again_and_nothing_is_left_behind(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "c")],
        cwd=runs.ROOT,
        env=runs.environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    state = 2**30
    extra = [(peak - before) / state for before, peak in found]
    growth = found[-1][0] / found[1][0] - 1
    print(f"extra memory of a save, of the state: {max(extra[1:]):.2f}; growth {growth:.3f}")
    assert len(found) == 20 and max(extra[1:]) <= 1.2
    assert growth <= 0.05
