"""A run as a Hugging Face directory that needs torch and transformers alone, and proof of it.

    python -m uniwav_jax export --workdir RUN --output DIR

    model = AutoModel.from_pretrained("DIR", trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained("DIR", trust_remote_code=True)

The directory is loaded again and compared with JAX, the encoder layer by layer and the whole from
end to end, in float64, float32 and bfloat16 (DIR/parity.json). Exit status: 1 when a figure is
missed.
"""

import json
import pathlib
import shutil
import sys
import tempfile

from uniwav_jax.errors import UserError


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--step", type=int, help="checkpoint; default: the newest")
    parser.add_argument(
        "--weights",
        choices=["student", "teacher"],
        help="export that encoder alone; default: student, teacher, codebooks and decoder",
    )
    parser.add_argument("--output", required=True, help="the folder to write; a new one")


def run(options) -> int:
    """Writes, compares, and puts the folder in its place."""
    from data_pipelines.files import atomic_write
    from uniwav_jax.export import directory, parity
    from uniwav_jax.tasks.pretrained import load

    output, chosen = pathlib.Path(options.output), options.weights or "all"
    if output.exists():
        raise UserError(f"--output {output} exists; name a new folder.")
    pretrained = load(options.workdir, options.step)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as beside:
        folder = pathlib.Path(beside) / "export"
        directory.write(pretrained, folder, chosen)
        rows = parity.check(directory.shown_by(pretrained, chosen), folder)
        found = [{**vars(row), "holds": row.holds} for row in rows]
        with atomic_write(folder / "parity.json") as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(parity.text(rows))
        if not all(row.holds for row in rows):
            print("error: the export differs from JAX; nothing was written.", file=sys.stderr)
            return 1
        shutil.move(folder, output)
    print(f"{output}: step {pretrained.step}, {chosen}")
    return 0
