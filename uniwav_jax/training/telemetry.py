"""Metrics to metrics.jsonl, TensorBoard and, when asked for, Weights & Biases."""

import json
import pathlib
import sys
import time
import zlib

import numpy as np
from tqdm import tqdm

from data_pipelines.files import FULL, atomic_write, full_disk_error
from uniwav_jax.errors import UserError
from uniwav_jax.recipes.interface import BY_CORPUS

# Name of the field that holds a row's checksum.
CRC = "crc32"


class Telemetry:
    """Writes rows of metrics; each step stands once, also after a restart.

    Args:
      workdir: the run's folder.
      steps: length of the run, for the progress bar.
      config: the run's config.
      corpora: names, in the order of `constants["corpora"]`.
      writer: False on processes that only take part.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, config, corpora=(), writer: bool = True):
        self.writer = writer
        self._corpora = corpora
        self.log_every = config.telemetry.log_every
        self._workdir, self._steps, self._config = workdir, steps, config
        self._path = workdir / "metrics.jsonl"
        # Steps since the last row; after a restart some of them were timed elsewhere.
        self._steps_in_window = self._steps_timed = 0
        self._sums: dict[str, np.ndarray] = {}
        self._window_start = time.monotonic()
        self._seconds_of_audio = 0.0
        self._bar = self._board = self._wandb = None

    def begin(self, first: int, resumed: bool, run_id: str) -> None:
        """Opens what is written to; rows of steps that will be computed again are dropped.

        Only for the writer.

        Args:
          first: steps taken before this start.
          resumed: whether they were taken by this run, so that their rows stay.
          run_id: names the run for W&B, also after a restart.
        """
        self._window_start = time.monotonic()
        # On a terminal a bar; in a log file a line each time metrics are written.
        self._bar = tqdm(
            total=self._steps, initial=first, unit="step", disable=None, mininterval=1.0
        )
        last = first if resumed else -1
        drop_rows_after(self._path, last)
        options = self._config.telemetry
        if options.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=last + 1)
        if options.wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError(
                    "telemetry.wandb = True needs a package: pip install 'uniwav-jax[wandb]'."
                ) from error
            # Replayed steps have the values that W&B already shows: it keeps the first of each.
            self._wandb = wandb.init(
                dir=str(self._workdir),
                config=self._config.to_dict(),
                id=run_id,
                name=self._workdir.resolve().name,
                resume="allow",
            )

    def memory(self) -> dict:
        """The steps since the last row, for `recall` after a restart; JSON."""
        sums = {name: plain(total) for name, total in self._sums.items()}
        return {"steps": self._steps_in_window, "sums": sums}

    def recall(self, memory: dict) -> None:
        """Goes on where a run stopped between two rows."""
        self._steps_in_window = memory["steps"]
        self._sums = {name: np.asarray(v, np.float64) for name, v in memory["sums"].items()}

    def train(self, step: int, metrics: dict, seconds_of_audio: float) -> None:
        """Takes the host copy of one step's metrics; writes their mean every `log_every` steps."""
        if self.writer:
            self._bar.update(1)
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + np.asarray(value, np.float64)
        self._steps_in_window += 1
        self._steps_timed += 1
        self._seconds_of_audio += seconds_of_audio
        if step % self.log_every == 0:
            if self.writer:
                self._write_window(step)
            self._sums, self._steps_in_window = {}, 0
            self._steps_timed, self._seconds_of_audio = 0, 0.0
            self._window_start = time.monotonic()

    def row(self, kind: str, step: int, metrics: dict) -> None:
        """Writes one row of `kind` ("train", "validation")."""
        if not self.writer:
            return
        row = {"step": step, "kind": kind}
        if clash := {*row, CRC} & metrics.keys():
            raise ValueError(f"a metric can't be named {clash.pop()!r}")
        row |= {name: plain(value) for name, value in metrics.items()}
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(as_line(row))
        except OSError as error:
            if error.errno in FULL:
                raise full_disk_error(self._path) from error
            raise
        scalars = {f"{kind}/{name}": value for name, value in row.items() if is_number(value)}
        for name, value in scalars.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def event(self, step: int, event: dict) -> None:
        """Writes down an unusual step, with the examples that it was made of."""
        self.row("event", step, event)
        score = f", {event['score']:.1f} deviations from the median" if "score" in event else ""
        first, end = event["slots"]
        self.say(
            f"step {step}: {event['event']} loss {float(event['loss']):.3f}{score}; its slots are "
            f"{first}:{end}, its records stand in metrics.jsonl; `python -m uniwav_jax replay "
            f"--workdir {self._workdir} --step {step}` tells more"
        )

    def flush(self) -> None:
        """Hands everything written so far to the system, so that a kill does not lose it."""
        if self._board is not None:
            self._board.flush()

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
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write_window(self, step: int) -> None:
        seconds = time.monotonic() - self._window_start
        means = {name: total / self._steps_in_window for name, total in self._sums.items()}
        for name in [name for name in means if name.endswith(BY_CORPUS)]:
            means |= self._told_apart(name, means.pop(name))
        means |= {name: self._sums[name] for name in ("skipped", "replaced")}
        means["seconds_a_step"] = seconds / max(1, self._steps_timed)
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

    def _told_apart(self, name: str, sums: np.ndarray) -> dict:
        """[2, corpora] sums and weights as one ratio a corpus; nothing if there is only one."""
        if len(self._corpora) < 2:
            return {}
        kind, pairs = name.removesuffix(BY_CORPUS), zip(self._corpora, *sums, strict=True)
        return {f"{kind}/{corpus}": total / weight for corpus, total, weight in pairs if weight}


def as_line(row: dict) -> str:
    """A row as a line of metrics.jsonl; its last field is the CRC-32 of the others."""
    return json.dumps(row | {CRC: zlib.crc32(json.dumps(row).encode())}) + "\n"


def from_line(line: bytes, checked: bool = True) -> dict:
    """Inverse of `as_line`.

    Args:
      checked: False for a row without a checksum.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: the line is damaged.
    """
    row = json.loads(line)
    if checked and row.pop(CRC) != zlib.crc32(json.dumps(row).encode()):
        raise ValueError("its content does not fit its checksum")
    if not (isinstance(row["step"], int) and isinstance(row["kind"], str)):
        raise ValueError("step or kind is not what it should be")
    return row


def read_rows(path: pathlib.Path) -> list[dict]:
    """All rows of a metrics.jsonl; a torn last line, as a kill leaves it, is left out.

    A file without any checksum is read as well: one that another program wrote.

    Raises:
      UserError: another line is damaged.
    """
    rows = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    checked = any(CRC.encode() in line for line in lines)
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(from_line(line, checked))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise UserError(
                    f"{path}, line {number} is damaged ({error}); restore the file from a copy, "
                    "or take that line out."
                ) from error
    return rows


def drop_rows_after(path: pathlib.Path, step: int) -> None:
    """Rewrites metrics.jsonl without rows of later steps."""
    if not path.exists():
        return
    rows = read_rows(path)
    with atomic_write(path) as temporary:
        kept = [as_line(row) for row in rows if row["step"] <= step]
        temporary.write_text("".join(kept), encoding="utf-8")


def plain(value):
    """Arrays and NumPy scalars as lists and Python numbers."""
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def is_number(value) -> bool:
    """Whether TensorBoard can draw it as a curve."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
