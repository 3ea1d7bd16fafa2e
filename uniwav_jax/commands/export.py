"""A run as a Hugging Face directory that needs torch and transformers alone, and proof of it.

    python -m uniwav_jax export --workdir RUN --output DIR

    model = AutoModel.from_pretrained("DIR", trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained("DIR", trust_remote_code=True)

The directory is loaded again and compared with JAX on the CPU, layer by layer and from end to end,
in float64, float32 and bfloat16 (DIR/parity.json). DIR/README.md is the model card: config, data
with licences, validation, evaluation, ancestry. Exit status: 1 when a figure is missed.
"""

import pathlib
import shutil
import sys
import tempfile

from uniwav_jax.errors import UserError

# Files of --audio that are compared.
MOST_FILES = 16


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
    parser.add_argument(
        "--audio", help="a file or folder on which the features are compared as well"
    )
    parser.add_argument(
        "--accept-licences",
        action="store_true",
        help="export a model whose data or codec is under non-commercial or share-alike licences",
    )


def run(options) -> int:
    """Writes, compares, and puts the folder in its place."""
    from data_pipelines.files import write_json
    from uniwav_jax.export import card, directory, parity
    from uniwav_jax.tasks.pretrained import load

    output, chosen = pathlib.Path(options.output), options.weights or "all"
    if output.exists():
        raise UserError(f"--output {output} exists; name a new folder.")
    parity.packages()  # noticed before a checkpoint is read
    pretrained = load(options.workdir, options.step)
    if options.audio and pretrained.config.features.name != "log_mel":
        raise UserError("--audio compares log-mel, which is not what this run takes; leave it out.")
    training = card.facts(options.workdir, pretrained.step)
    restricted = card.restricted(card.licences(training))
    if restricted and not options.accept_licences:
        raise UserError(
            f"the run was trained on data, or its codec is, under {', '.join(restricted)}, which "
            "ask something of whoever passes the model on; --accept-licences exports it, with all "
            "of them named."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as beside:
        folder = pathlib.Path(beside) / "export"
        directory.write(pretrained, folder, chosen, training)
        rows = _compared(directory.shown_by(pretrained, chosen), folder, options.audio)
        found = [{**vars(row), "holds": row.holds} for row in rows]
        write_json(folder / "parity.json", {"sha256": directory.digests(folder), "rows": found})
        card_text = card.text(pretrained, training, chosen, rows)
        (folder / "README.md").write_text(card_text, encoding="utf-8")
        print(parity.text(rows))
        if not all(row.holds for row in rows):
            print("error: the export differs from JAX; nothing was written.", file=sys.stderr)
            return 1
        shutil.move(folder, output)
    print(f"{output}: step {pretrained.step}, {chosen}")
    return 0


def _compared(pretrained, folder: pathlib.Path, audio: str | None) -> list:
    import jax

    from uniwav_jax.export import parity, reference
    from uniwav_jax.tasks.audio import find_audio, read_audio

    rate = pretrained.config.features.sample_rate
    noise = reference.white_noise(rate)
    rows = parity.check(folder, lambda dtype: reference.compute(pretrained, noise, dtype))
    if audio is None:
        return rows
    waves = [read_audio(path, rate) for path in find_audio(audio)[:MOST_FILES]]

    def log_mel(wave, dtype):
        with reference.on_cpu(), jax.enable_x64(dtype == "float64"):
            return jax.device_get(pretrained.inference.feature(wave[None].astype(dtype)))[0]

    return rows + parity.check_log_mel(folder, waves, log_mel)
