"""Pictures: spectrograms side by side and curves, as PNG files. matplotlib is imported on use."""

import pathlib

import numpy as np

from data_pipelines.files import atomic_write


def new_figure(rows: int, columns: int, width: float, height: float):
    """A figure that needs no display, and its axes [rows, columns]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure, path: pathlib.Path) -> np.ndarray:
    """Writes a PNG whole or not at all; returns the picture, uint8 [height, width, 3]."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def spectrograms(
    path: pathlib.Path, panels: dict[str, np.ndarray], frame_rate: float, shaded=None
) -> np.ndarray:
    """Features [frames, channels] one below the other, one scale.

    Args:
      path: the PNG.
      panels: title -> features in log-mel units.
      frame_rate: frames a second.
      shaded: bool [frames]; frames that were generated get a bar on top.
    """
    figure, axes = new_figure(len(panels), 1, 10, 1.9 * len(panels) + 0.4)
    low, high = np.percentile(np.concatenate(list(panels.values())), [1, 99.5])
    for axis, (title, features) in zip(axes[:, 0], panels.items(), strict=True):
        axis.imshow(
            features.T,
            origin="lower",
            aspect="auto",
            vmin=low,
            vmax=high,
            cmap="magma",
            extent=(0, len(features) / frame_rate, 0, features.shape[1]),
        )
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylabel("mel bin")
        if shaded is not None:
            times = np.arange(len(shaded)) / frame_rate
            axis.fill_between(times, 0, 2.5, where=shaded, color="cyan", step="post", linewidth=0)
    axes[-1, 0].set_xlabel("seconds" + (" (cyan: generated)" if shaded is not None else ""))
    return save(figure, path)
