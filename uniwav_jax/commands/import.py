"""An exported directory as a run again, to the bit.

    python -m uniwav_jax import DIR --workdir RUN

RUN is the run that was exported, with one checkpoint: it can be evaluated, extracted from, exported
and begun from (`train --init-from RUN`). It can't be gone on with, since an export holds no state
of the optimiser. Weights that were changed in PyTorch come back changed: save the model and its
feature extractor with save_pretrained.
"""

import pathlib


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="what `export` wrote")
    parser.add_argument("--workdir", required=True, help="the run to make; a new folder")


def run(options) -> int:
    """Looks at the directory and writes the run."""
    from uniwav_jax.export import opening

    export = opening.opened(pathlib.Path(options.directory))
    opening.as_run(export, pathlib.Path(options.workdir))
    print(f"{options.workdir}: run {export.training['run']['id']}, step {export.training['step']}")
    return 0
