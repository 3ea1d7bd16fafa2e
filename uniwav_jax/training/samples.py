"""Pictures and sounds of a fixed validation set as training goes: RUN/samples/."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from data_pipelines.files import atomic_write
from uniwav_jax.parallel.mesh import replicated
from uniwav_jax.recipes.inference import Inference, noise
from uniwav_jax.training import pictures
from uniwav_jax.training.data import validation_batches
from uniwav_jax.training.telemetry import Telemetry


class Samples:
    """Resynthesises the first rows of the validation set, always with the same noise."""

    def __init__(
        self,
        config,
        inference: Inference,
        validation,
        mesh,
        workdir: pathlib.Path,
        telemetry: Telemetry,
    ):
        self.rows = None
        self.count = config.telemetry.samples if config.objective.decoder_weight else 0
        self.config = config
        self.inference = inference
        self.folder = workdir / "samples"
        self.telemetry = telemetry
        if validation is not None and self.count:
            with validation_batches(config, validation) as loaded:
                batch = next(loaded)
            self.rows = {name: values[: self.count] for name, values in batch.items()}
        self.everywhere = replicated(mesh)
        self._generate = jax.jit(self._resynthesize, out_shardings=self.everywhere)

    def write(self, step: int, params, constants) -> None:
        """RUN/samples/step-N-K.png (true above, generated below) and .wav, and TensorBoard.

        Every process takes part in the computation, one writes. `constants` are the step's.
        """
        if self.rows is None:
            return
        rows = jax.device_put(self.rows, self.everywhere)
        true, generated, waveform = jax.device_get(self._generate(params, constants, rows))
        if not self.telemetry.writer:
            return
        self.folder.mkdir(exist_ok=True)
        rate = self.config.features.sample_rate
        for k in range(len(true)):
            samples = int(self.rows["samples"][k])
            frames = int(self.inference.feature.frames(samples))
            stem = self.folder / f"step-{step:07d}-{k}"
            panels = {"true": true[k, :frames], "resynthesised": generated[k, :frames]}
            picture = pictures.spectrograms(
                stem.with_suffix(".png"), panels, rate / self.config.features.hop
            )
            sound = np.clip(waveform[k, :samples], -1.0, 1.0)
            with atomic_write(stem.with_suffix(".wav")) as temporary:
                soundfile.write(temporary, sound, rate, format="WAV", subtype="PCM_16")
            self.telemetry.picture(f"samples/{k}", step, picture)
            self.telemetry.sound(f"samples/{k}", step, sound, rate)

    def _resynthesize(self, params, constants, rows):
        options = self.config.evaluation
        x, valid = self.inference.surface_of_batch(constants, rows)
        draw = jnp.stack([noise(k, x.shape[1], x.shape[2], x.dtype) for k in range(len(x))])
        generated = self.inference.resynthesize(
            params,
            x,
            valid,
            draw,
            width=options.stripe_frames,
            evaluations=options.evaluations,
            guidance=options.guidance,
            solver=options.solver,
        )
        both = x, generated
        sounds = [self.inference.sound(constants, y, valid) for y in both]
        shown = [
            self.inference.spectrogram(constants, y, sound)
            for y, sound in zip(both, sounds, strict=True)
        ]
        return *shown, sounds[1]
