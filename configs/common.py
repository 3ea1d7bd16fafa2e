"""What every recipe shares: all fields with their defaults, and the two ways to change them.

A recipe file calls `base(argument)` and overwrites what differs. Every field says where its value
comes from: [P] the UniWav paper, [D] DinoSR's released code, [V] Voicebox, [O] our choice.
"""

import pathlib

import ml_collections

# What the argument of a recipe may name, and the values that are listed here.
ARGUMENTS = {
    "features": ("log_mel", "encodec"),
    "encodec_weights": None,
    "latents": ("stored", "computed"),
}


def base(argument: str = "") -> ml_collections.ConfigDict:
    """All fields; the sizes and the schedule are overwritten by each recipe.

    Args:
      argument: "" for log-mel features, or "features=encodec,encodec_weights=DIR" for the latents
        of the EnCodec in a local Hugging Face directory, with ",latents=computed" those of the
        crop, computed in the step, instead of the ones stored in the shards.

    Raises:
      ValueError: an argument that is not one of these.
      UserError: no codec in DIR, or one that is not supported.
    """
    given = arguments(argument)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = {
        "shards": "",  # "DIR" or "DIR:0.7,DIR:0.3"; --data sets it
        "validation": "",  # shards whose validation split is measured; "" = that of `shards`
        "crop_frames": 768,  # 15.36 s
        "min_seconds": 2.5,  # shorter clips of one speaker are joined [O]
        "exclude_speakers": (),
        "exclude": "",  # a list of record ids, or speaker:NAME; --exclude sets it
        "skip_slots": (),  # ((A, B), ...): positions A ... B - 1 of the order are never drawn
        "workers": 0,  # reading processes; 0 = threads of this process
        "reads_in_flight": 4,  # of each process; more for storage far away (docs/DATA.md)
        "damaged_fraction": 0.001,  # of the examples since the start; above it the run stops
    }
    config.features = {
        "name": "log_mel",
        "sample_rate": 16_000,
        "hop": 320,  # 50 frames/s [P]
        "window": 1024,
        "channels": 80,  # [O]
        "low_hz": 0.0,
        "high_hz": 8_000.0,
        "floor": 1e-5,
        "statistics_positions": 2_000,
        "deviation_floor": 1e-3,
    }
    if given["features"] == "encodec":
        config.features = encodec(config.features, given["encodec_weights"], given["latents"])
    config.masking = {
        "fraction": 0.567,  # measured coverage of mask_prob 0.8 and length 10 [D]
        "span": 10,  # frames [D]
        "shortest": 20,  # frames; shorter rows are not trained on
    }
    config.encoder = {
        "depth": 12,
        "width": 768,
        "heads": 12,
        "positions": "conv",  # "conv" [D], "rope" [O] or "conv+rope"
        "position_layers": 5,
        "position_groups": 16,
        "position_kernel": 19,
        "dropout": 0.0,  # of what each branch of a layer adds [O]
        "layer_drop": 0.0,  # share of the examples that pass a layer by [O]; 0.05 in [D]
    }
    config.teacher = {
        "targets": 8,  # K: the last K layers [D]
        "decay_start": 0.999,
        "decay_end": 0.9999,
        "decay_updates": 30_000,
        "freeze_after": -1,  # updates after which the teacher rests; -1 = never
    }
    config.codebooks = {"size": 256, "decay": 0.9}  # [D]
    config.decoder = {
        "depth": 8,
        "width": 768,
        "heads": 12,
        "time_channels": 256,
        "condition_dropout": 0.1,  # [V]
        "dropout": 0.0,  # [O]
        "sigma_min": 1e-5,  # [V]
    }
    config.objective = {"decoder_weight": 0.25}  # lambda [O]; 0 builds no decoder
    config.optimizer = {
        "learning_rate": 5e-4,
        "schedule": "tri_stage",  # "cosine" or "tri_stage" [D]
        "warmup": 0.03,  # fraction of the steps
        "hold": 0.47,
        "floor": 0.01,  # tri-stage starts and ends at floor * peak [O]
        "beta1": 0.9,
        "beta2": 0.98,
        "epsilon": 1e-6,
        "weight_decay": 0.01,
        "clip": 1.0,
        "moment_dtype": "",  # of Adam's first moment: "bfloat16" halves it; "" = the parameters'
    }
    config.training = {
        "steps": 400_000,
        "batch_size": 256,  # crops of one step over all devices and micro-batches
        "accumulation": 1,  # micro-batches a step
        # Of activations; "mixed" is float32, whose linear layers multiply bfloat16, as on TPUs.
        "compute_dtype": "bfloat16",
        "parameter_dtype": "float32",
        "non_finite_limit": 10,  # skipped updates in a row that stop the run
        "collapse_perplexity": 2.0,  # below it, after the warm-up, the run stops
        "chip_hours": 0.0,  # budget over all restarts; then the run saves and stops; 0 = none
    }
    config.parallel = {
        "slices": 1,  # of a TPU job, joined by the data-centre network; they split the batch
        "data": -1,  # -1 = whatever is left
        "fsdp": 1,
        "tensor": 1,
        "remat": "none",  # what is computed again: "none", "dots", "names" or "full"
        "unroll": 1,  # layers of a stack that are compiled as one piece
        "attention": "auto",  # "reference", "splash" (TPU) or "cudnn" (GPU); "auto" by the mesh
        "start_seconds": 45,  # to wait for the other processes at the start
        "barrier_seconds": 300,  # and wherever they meet later
        "heartbeat_seconds": 100,  # without a sign of life, after which a process counts as lost
        "watchdog_seconds": 1_800,  # a step that takes longer ends the run; 0 = never
    }
    config.checkpoint = {
        "every": 1_000,  # steps
        "minutes": 0.0,  # and so long after the last save, looked at when metrics are written
        "keep": 2,  # the newest ones, at least 2: the newest may be damaged
        "keep_every": 50_000,  # and for good those of every so many steps; 0 = none
    }
    config.telemetry = {
        "log_every": 50,
        "validate_every": 1_000,
        "validation_batches": 8,  # at most
        "samples_every": 5_000,
        "samples": 2,
        "spike_score": 8.0,  # robust z-score of the loss from which a step is logged as an event
        "spike_window": 200,  # steps that it is compared with
        "tensorboard": True,
        "wandb": False,
    }
    config.evaluation = {
        "utterances": 600,  # labelled utterances a part, at most
        "frames": 40_000,  # frames a part, at most
        "seeds": 3,
        "ridge": (1e-2, 1e-1, 1.0, 10.0, 100.0, 1_000.0),  # strengths per training frame x 1e-4
        "context": 4,  # frames on either side for the log-mel baseline
        "shots": (1, 5),
        "resyntheses": 32,  # utterances that are resynthesised
        "infillings": 256,  # and infilled; a gap's words can't be guessed, so gains are small
        "generation_seconds": 2.56,  # of each of them
        "gap_seconds": 1.0,
        "evaluations": 32,  # of the vector field [V]
        "solver": "midpoint",
        "guidance": 0.7,  # alpha [V]
        "griffin_lim_iterations": 32,
        "stripe_frames": 10,
    }
    return config


def arguments(text: str) -> dict[str, str]:
    """ "NAME=VALUE,..." -> {name: value} of all `ARGUMENTS`.

    Raises:
      ValueError: another name or value, or names that do not go together.
    """
    given = {"features": "log_mel", "encodec_weights": "", "latents": ""}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or name not in ARGUMENTS:
            raise ValueError(
                f"'{part}' is not one of features=encodec, encodec_weights=DIR and latents=computed"
            )
        if ARGUMENTS[name] and value not in ARGUMENTS[name]:
            raise ValueError(f"{name}={value} is unknown; choose {' or '.join(ARGUMENTS[name])}")
        given[name] = value
    if given["features"] == "encodec" and not given["encodec_weights"]:
        raise ValueError("features=encodec wants encodec_weights=DIR, the directory of the codec")
    if given["features"] == "log_mel" and (given["encodec_weights"] or given["latents"]):
        raise ValueError("encodec_weights=DIR and latents=... belong to features=encodec")
    return given


def encodec(log_mel, weights: str, latents: str) -> dict:
    """The section `features` for the latents of a codec, whose geometry it has.

    Args:
      log_mel: the section for log-mel, by which latents are compared and drawn.
      weights: the codec's directory.
      latents: "stored" or "computed"; "" for "stored".
    """
    from uniwav_jax.features.encodec import fingerprint
    from uniwav_jax.features.encodec.config import read_geometry

    directory = pathlib.Path(weights)
    geometry = read_geometry(directory)
    mel = {name: log_mel[name] for name in ("window", "channels", "low_hz", "high_hz", "floor")}
    mel["high_hz"] = min(mel["high_hz"], geometry.sampling_rate / 2)
    return {
        "name": "encodec",
        "sample_rate": geometry.sampling_rate,
        "hop": geometry.hop,
        "channels": geometry.hidden_size,
        "codec": fingerprint(directory),  # which network it is, wherever it lies
        "weights": weights,
        "latents": latents or "stored",  # or "computed", of the crop, in the step
        "statistics_positions": log_mel.statistics_positions,
        "deviation_floor": log_mel.deviation_floor,
        "mel": mel,
    }
