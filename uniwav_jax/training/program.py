"""What a config makes of the devices: mesh, recipe, shapes and the compiled step."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from uniwav_jax import config as configs
from uniwav_jax import recipes
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel.axes import check_batch
from uniwav_jax.parallel.sharding import shardings
from uniwav_jax.recipes.interface import Recipe
from uniwav_jax.training import optimizer
from uniwav_jax.training.state import TrainState, initial_state
from uniwav_jax.training.step import make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """The train step of one config on one mesh.

    Attributes:
      mesh: of all devices of all processes.
      recipe: the model with its updates.
      rate: step -> learning rate.
      make_state: () -> the state before step 0.
      abstract: its shapes, dtypes and shardings.
      step: jitted (state, constants, batch) -> (state, metrics); gives its state away.
    """

    mesh: Mesh
    recipe: Recipe
    rate: Callable
    make_state: Callable[[], TrainState]
    abstract: TrainState
    step: Callable

    @property
    def placement(self) -> TrainState:
        """Shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def fresh_state(self) -> TrainState:
        """The state before step 0, on the devices."""
        return jax.jit(self.make_state, out_shardings=self.placement)()


def build(config, devices=None) -> Program:
    """Compiles nothing yet. For the same config and devices it is the same program, so that a
    second run in one process finds it traced and compiled.

    Args:
      config: resolved.
      devices: of the mesh; those of all processes unless given.

    Raises:
      UserError: a mesh that does not fit the devices, or a batch that does not fit the mesh.
    """
    devices = tuple(jax.devices() if devices is None else devices)
    return _build(configs.to_json(config), devices, jax.config.jax_enable_x64)


@functools.lru_cache(maxsize=4)
def _build(config: str, devices: tuple, x64: bool) -> Program:
    del x64  # what is traced depends on it
    config = configs.from_json(config)
    mesh = meshes.make_mesh(config.parallel, devices)
    check_batch(config.training.batch_size, config.training.accumulation, mesh.shape)
    recipe = recipes.build(config, mesh)
    transform = optimizer.build(config.optimizer)
    rate = optimizer.schedule(config.optimizer, config.training.steps)
    abstract = abstract_state(config, mesh)
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jax.jit(
        make_step(recipe, transform, rate),
        donate_argnums=0,
        out_shardings=(placement, meshes.replicated(mesh)),
    )
    return Program(mesh, recipe, rate, state_maker(config), abstract, step)


def state_maker(config) -> Callable[[], TrainState]:
    """() -> the state before step 0; the same function for the same config, so that its shapes and
    the program that makes it are traced once."""
    return _state_maker(configs.to_json(config))


@functools.lru_cache(maxsize=4)
def _state_maker(config: str) -> Callable[[], TrainState]:
    config = configs.from_json(config)
    transform = optimizer.build(config.optimizer)
    return functools.partial(initial_state, recipes.build(config), transform, config.seed)


def abstract_state(config, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a config's state on a mesh: what a restore wants."""
    shapes = jax.eval_shape(state_maker(config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )
