"""Checkpoints: what comes back, onto which mesh, and what is kept."""

import jax
import numpy as np
import pytest

from uniwav_jax.errors import Refused, UserError
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.program import abstract_state, state_maker
from uniwav_jax.training.record import read_run


def restored(folder, config, devices, **axes):
    """Checkpoint 6 on a mesh of the first `devices` devices."""
    with config.unlocked():
        config.parallel.update({"data": 1, "fsdp": 1, "tensor": 1} | axes)
    mesh = make_mesh(config.parallel, jax.devices()[:devices])
    with Checkpoints(folder / "checkpoints", config) as checkpoints:
        return checkpoints.restore(6, abstract_state(config, mesh))


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_any_mesh_restores_the_same_state(small_run, axes):
    config = read_run(small_run)["config"]
    one = restored(small_run, config, 1)
    many = restored(small_run, config, 8, **axes)
    query = many.params["uniwav"]["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert not query.sharding.is_fully_replicated
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in (one, many)]
    for (path, a), (_, b) in zip(*leaves, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_what_is_not_wanted_of_the_optimizer_is_not_read(small_run):
    config = read_run(small_run)["config"]
    abstract = abstract_state(config, make_mesh(config.parallel, jax.devices()[:1]))
    with Checkpoints(small_run / "checkpoints", config) as checkpoints:
        whole = checkpoints.restore(6, abstract)
        part = checkpoints.restore(6, abstract, optimizer=False)
    assert {leaf for leaf in jax.tree.leaves(part.opt_state)} == {...}
    for a, b in zip(*(jax.tree.leaves((s.params, s.slots)) for s in (whole, part)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("keep_every", "kept"), [(4, [4, 6, 7]), (0, [6, 7])])
def test_the_newest_are_kept_and_those_of_every_so_many_steps(
    tmp_path, small_run, keep_every, kept
):
    config = read_run(small_run)["config"]
    with config.unlocked():
        config.checkpoint.update(every=1, keep=2, keep_every=keep_every)
    state = jax.jit(state_maker(config))()
    with Checkpoints(tmp_path / "c", config, writer=True) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, state, {"position": step}, {"note": f"step {step}"})
    with Checkpoints(tmp_path / "c", config) as checkpoints:
        assert checkpoints.steps == kept
        for step in kept:
            assert checkpoints.meta(step)["note"] == f"step {step}"
            assert checkpoints.data(step)["position"] == step
        with pytest.raises(UserError, match=f"has no checkpoint 5; it has {str(kept)[1:-1]}"):
            checkpoints.meta(5)


def test_a_save_that_fails_is_said_and_may_go_well_the_next_time(tmp_path, small_run):
    """A folder that is gone, as a mount; unlike a full disk, which nobody but the user mends."""
    config = read_run(small_run)["config"]
    state = jax.jit(state_maker(config))()
    checkpoints = Checkpoints(tmp_path / "c", config, writer=True)
    (tmp_path / "c").rmdir()
    (tmp_path / "c").write_text("no folder")
    with pytest.raises(Refused, match="checkpoint 1 could not be saved in .*c: "), checkpoints:
        checkpoints.save(1, state, {"position": 1}, {})


def test_the_meta_says_where_the_numbers_come_from(small_run):
    with Checkpoints(small_run / "checkpoints", read_run(small_run)["config"]) as checkpoints:
        meta = checkpoints.meta(6)
    assert meta["format"] == 1 and meta["licences"] == ["CC0-1.0"]
    assert meta["corpora"] == ["synthetic"] and meta["versions"]["jax"] == jax.__version__
    assert len(meta["statistics"]["mean"]) == 80 and min(meta["statistics"]["deviation"]) >= 1e-3
