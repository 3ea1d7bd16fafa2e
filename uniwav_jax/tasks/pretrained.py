"""A trained run, opened: what its model gives for utterances of any length."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from uniwav_jax import config as configs
from uniwav_jax import features
from uniwav_jax.errors import UserError
from uniwav_jax.parallel.axes import ANY_NUMBER
from uniwav_jax.parallel.mesh import make_mesh, replicated
from uniwav_jax.recipes.inference import Inference
from uniwav_jax.training import data
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.program import abstract_state, state_maker
from uniwav_jax.training.record import read_run

# Utterances are padded to a multiple of so many frames, so that few programs are compiled.
BUCKET_FRAMES = 128
ROWS = 8
# What `Pretrained.encode` gives unless told otherwise.
OUTPUTS = ("surface", "layers", "z", "codewords")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One checkpoint of a run, or its untrained beginning (step 0).

    Attributes:
      config: the run's.
      step: steps taken.
      params, slots: as in `TrainState`.
      statistics: {"mean", "deviation"} of the run's own training data.
      frozen: of `features.frozen`: the codec of a run on its latents.
    """

    config: Any
    step: int
    params: dict
    slots: dict
    statistics: dict
    frozen: dict = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def inference(self) -> Inference:
        """The functions of the run's config."""
        return _programs(configs.to_json(self.config))[0]

    @property
    def constants(self) -> dict:
        """What a recipe's functions take beside parameters and slots; no corpora are told apart."""
        return {
            "statistics": self.statistics,
            "corpora": np.zeros(0, np.uint32),
            **self.frozen,
        }

    def untrained(self) -> "Pretrained":
        """The same run before its first step, with the same statistics."""
        # Placed like restored arrays, so that both run the same compiled programs.
        abstract = abstract_state(self.config, _mesh(self.config))
        placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = jax.jit(state_maker(self.config), out_shardings=placement)()
        return dataclasses.replace(self, step=0, params=state.params, slots=state.slots)

    def frames(self, samples: int) -> int:
        """Frames of an utterance."""
        return int(self.inference.feature.frames(samples))

    def encode(
        self,
        waveforms: Sequence[np.ndarray],
        names: tuple[str, ...] = OUTPUTS,
        masks: Sequence[np.ndarray] | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """What the student and the teacher make of utterances, in the given order.

        Args:
          waveforms: float32 [samples] each, at the run's sample rate, any length >= 1.
          names: which outputs; the others are not computed.
          masks: bool [frames] each, frames that the student does not see; None for clean input.

        Yields:
          surface [frames, channels], features before they are normalised; layers [depth, frames,
          width], the residual stream after every layer (h0 alone without layers); z [frames, width]
          if the run has a decoder; codewords int32 [targets, frames] if it has a teacher; and, if
          asked for, log_mel [frames, bins].
        """
        encode = _programs(configs.to_json(self.config))[1]
        found: dict[int, dict] = {}
        wanted = itertools.count()
        following = next(wanted)
        for indices, waveform, samples in padded_batches(waveforms, self.inference.feature):
            frames = waveform.shape[1] // self.inference.feature.hop
            hidden = np.zeros((len(waveform), frames), bool)
            for row, index in enumerate(indices if masks is not None else ()):
                hidden[row, : len(masks[index])] = masks[index]
            outputs = jax.device_get(
                encode(self.params, self.slots, self.constants, waveform, samples, hidden, names)
            )
            for row, index in enumerate(indices):
                length = self.frames(len(waveforms[index]))
                found[index] = _row(outputs, row, length)
            while following in found:
                yield found.pop(following)
                following = next(wanted)


def load(workdir, step: int | None = None) -> Pretrained:
    """Opens a checkpoint, the newest one unless told.

    Raises:
      UserError: no run there, no checkpoint, or not that one.
    """
    workdir = pathlib.Path(workdir)
    config = read_run(workdir)["config"]
    # A run may have been trained on more devices than are here, and on others.
    with config.unlocked():
        config.parallel.update(ANY_NUMBER, attention="auto")
    with Checkpoints(workdir / "checkpoints", config) as checkpoints:
        if step is None and checkpoints.latest is None:
            raise UserError(f"{workdir} has no checkpoint yet; train it first.")
        step = checkpoints.latest if step is None else step
        statistics = checkpoints.meta(step)["statistics"]
        state = checkpoints.restore(step, abstract_state(config, _mesh(config)))
    frozen = features.frozen(config)
    constants = data.as_constants(config, statistics, None, replicated(_mesh(config)), frozen)
    return Pretrained(
        config,
        step,
        state.params,
        state.slots,
        constants["statistics"],
        {name: constants[name] for name in frozen},
    )


def steps(workdir) -> list[int]:
    """Steps of a run's checkpoints, ascending."""
    config = read_run(pathlib.Path(workdir))["config"]
    with Checkpoints(pathlib.Path(workdir) / "checkpoints", config) as checkpoints:
        return checkpoints.steps


def padded_batches(waveforms: Sequence[np.ndarray], feature, rows: int = ROWS):
    """Groups utterances of similar length and pads them with zeros.

    Yields:
      (indices into `waveforms`, waveform float32 [rows, samples], samples int32 [rows]); rows
      beyond the indices have samples = 0.
    """
    hop = feature.hop
    buckets = [-(-feature.frames(len(w)) // BUCKET_FRAMES) * BUCKET_FRAMES for w in waveforms]
    order = sorted(range(len(waveforms)), key=lambda i: buckets[i])
    for frames, members in itertools.groupby(order, key=lambda i: buckets[i]):
        for indices in _chunks(list(members), rows):
            waveform = np.zeros((rows, frames * hop), np.float32)
            samples = np.zeros(rows, np.int32)
            for row, index in enumerate(indices):
                waveform[row, : len(waveforms[index])] = waveforms[index]
                samples[row] = len(waveforms[index])
            yield indices, waveform, samples


@functools.lru_cache(maxsize=4)
def _programs(config: str) -> tuple[Inference, Any]:
    """The functions of a config (JSON) and the jitted `encode`.

    Cached, so that a run's other checkpoints and its untrained beginning compile nothing anew.
    """
    inference = Inference(configs.from_json(config))

    def encode(params, slots, constants, waveform, samples, mask, names):
        surface = inference.feature.of_waveform(waveform, samples, constants)
        x, valid = inference.normalized(constants, surface, samples)
        h, streams = inference.encode(params, x, valid, mask)
        outputs = {"surface": surface, "log_mel": inference.log_mel(waveform)}
        outputs["layers"] = h[None] if streams is None else streams
        if inference.config.objective.decoder_weight:
            outputs["z"] = inference.condition(params, x, valid, mask)
        if streams is not None:
            outputs["codewords"] = inference.codewords(params, slots, x, valid)
        return {name: value for name, value in outputs.items() if name in names}

    return inference, jax.jit(encode, static_argnums=6)


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _row(outputs: dict, row: int, length: int) -> dict:
    """One utterance of a batch without its padding; the batch axis lies before the frames."""
    batch_axis = {"surface": 0, "log_mel": 0, "z": 0, "layers": 1, "codewords": 1}
    return {
        name: np.take(value, row, axis=batch_axis[name]).take(range(length), axis=batch_axis[name])
        for name, value in outputs.items()
    }


def _mesh(config):
    return make_mesh(config.parallel, jax.devices()[:1])
