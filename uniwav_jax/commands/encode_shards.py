"""Latents of a frozen EnCodec beside the audio of shards, computed once.

    python -m uniwav_jax encode-shards --data SHARDS --codec DIR

DIR is a local Hugging Face directory of an EnCodec model. The latents (before quantisation,
bfloat16) come from whole utterances and lie in SHARDS/latents; the audio is left as it is.
Interrupted, the same command goes on.

    python -m uniwav_jax train --config configs/large.py:features=encodec,encodec_weights=DIR ...

trains on them.
"""

from uniwav_jax.errors import UserError


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--data", required=True, help="shards, or several: DIR,DIR")
    parser.add_argument("--codec", required=True, metavar="DIR", help="the EnCodec directory")
    parser.add_argument(
        "--utterances", type=int, default=8, help="computed at a time, of similar length"
    )


def run(options) -> int:
    """Encodes every record of the shards."""
    from tqdm import tqdm

    from data_pipelines import latents
    from data_pipelines.index import read_index
    from uniwav_jax.features import encodec
    from uniwav_jax.tasks.latents import encoder

    if options.utterances < 1:
        raise UserError(f"--utterances {options.utterances} must be at least 1.")
    indices = {folder: read_index(folder) for folder in options.data.split(",")}
    network = encodec.load(options.codec)
    codec = latents.Codec(
        encodec.fingerprint(options.codec), network.sample_rate, network.hop, network.channels
    )
    for index in indices.values():
        latents.check(index, codec)
    encode = encoder(network, options.utterances)
    for folder, index in indices.items():
        with tqdm(total=len(index), desc=folder, unit="record") as bar:
            new = latents.write(
                folder, codec, encode, utterances=options.utterances, tick=bar.update
            )
        state = "written" if new else "there already"
        print(f"{latents.folder_of(folder, codec)}: {state}")
    return 0
