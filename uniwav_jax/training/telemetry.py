"""Metrics to metrics.jsonl, TensorBoard and, when asked for, Weights & Biases."""

import json
import pathlib
import sys
import time

import numpy as np
from tqdm import tqdm

from data_pipelines.files import atomic_write
from uniwav_jax.errors import UserError


class Telemetry:
    """Writes rows of metrics; each step stands once, also after a restart.

    Args:
      workdir: the run's folder.
      start: rows of later steps are dropped, since they will be computed again.
      steps: length of the run, for the progress bar.
      config: the run's config.
      writer: False on processes that only take part.
    """

    def __init__(self, workdir: pathlib.Path, start: int, steps: int, config, writer: bool = True):
        self.writer = writer
        self.log_every = config.telemetry.log_every
        self._window: list[dict] = []
        self._window_start = time.monotonic()
        self._seconds_of_audio = 0.0
        self._board = self._wandb = None
        # On a terminal a bar; in a log file a line each time metrics are written.
        hidden = None if writer else True
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=hidden, mininterval=1.0)
        self._steps = steps
        if not writer:
            return
        self._path = workdir / "metrics.jsonl"
        drop_rows_after(self._path, start)
        if config.telemetry.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        if config.telemetry.wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError(
                    "telemetry.wandb = True needs a package: pip install 'uniwav-jax[wandb]'."
                ) from error
            self._wandb = wandb.init(
                dir=str(workdir), config=config.to_dict(), id=workdir.name, resume="allow"
            )

    def train(self, step: int, metrics: dict, seconds_of_audio: float) -> None:
        """Takes the host copy of one step's metrics; writes their mean every `log_every` steps."""
        self._bar.update(1)
        self._window.append(metrics)
        self._seconds_of_audio += seconds_of_audio
        if step % self.log_every == 0:
            self._write_window(step)

    def row(self, kind: str, step: int, metrics: dict) -> None:
        """Writes one row of `kind` ("train", "validation")."""
        if not self.writer:
            return
        row = {"step": step, "kind": kind} | {k: plain(v) for k, v in metrics.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        scalars = {f"{kind}/{name}": value for name, value in row.items() if is_number(value)}
        for name, value in scalars.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """An image uint8 [height, width, 3] for TensorBoard and W&B."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(image)}, step=step)

    def sound(self, name: str, step: int, waveform: np.ndarray, sample_rate: int) -> None:
        """A waveform float32 [samples] for TensorBoard and W&B."""
        if self._board is not None:
            self._board.add_audio(name, waveform[:, None], step, sample_rate)
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Audio(waveform, sample_rate=sample_rate)}, step=step)

    def say(self, text: str) -> None:
        """A line above the progress bar, on stderr."""
        if self.writer:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes everything."""
        self._bar.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write_window(self, step: int) -> None:
        seconds = time.monotonic() - self._window_start
        means = {k: np.mean([m[k] for m in self._window], axis=0) for k in self._window[0]}
        means["skipped"] = float(np.sum([m["skipped"] for m in self._window]))
        means["seconds_a_step"] = seconds / len(self._window)
        means["audio_hours_an_hour"] = self._seconds_of_audio / seconds
        self.row("train", step, means)
        shown = {"loss": f"{means['loss']:.3f}"}
        if "perplexity" in means:
            shown["perplexity"] = f"{means['perplexity']:.1f}"
        shown["audio h/h"] = f"{means['audio_hours_an_hour']:.0f}"
        if self._bar.disable:
            left = (self._steps - step) * means["seconds_a_step"] / 60
            words = ", ".join(f"{name} {value}" for name, value in shown.items())
            self.say(f"step {step}: {words}, {left:.0f} min left")
        self._bar.set_postfix(shown)
        self._window, self._seconds_of_audio = [], 0.0
        self._window_start = time.monotonic()


def read_rows(path: pathlib.Path) -> list[dict]:
    """All rows of a metrics.jsonl; a torn last line, as a kill leaves it, is left out."""
    rows = []
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                if number + 1 < len(lines):
                    raise UserError(f"{path}, line {number + 1} is not JSON: {error}.") from error
    return rows


def drop_rows_after(path: pathlib.Path, step: int) -> None:
    """Rewrites metrics.jsonl without rows of later steps."""
    rows = read_rows(path)
    if not rows:
        return
    with atomic_write(path) as temporary:
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= step]
        temporary.write_text("".join(kept), encoding="utf-8")


def plain(value):
    """Arrays and NumPy scalars as lists and Python numbers."""
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def is_number(value) -> bool:
    """Whether TensorBoard can draw it as a curve."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
