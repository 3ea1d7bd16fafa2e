"""`python -m uniwav_jax COMMAND`: the table of commands and what their errors become."""

import argparse
import contextlib
import importlib
import os
import sys

from data_pipelines import interrupts
from data_pipelines.errors import refused
from uniwav_jax.errors import Preempted, ProcessLost, UserError

# Name -> one line. The module uniwav_jax/commands/NAME.py is imported when it is called.
COMMANDS = {
    "train": "train a model on shards, or go on with a run",
    "preflight": "whether a run could begin here: devices, shards, all-reduce, memory",
    "evaluate": "probes, losses and resynthesis of a run: evaluation.json and evaluation.png",
    "score": "scores of a finished run that compare with other runs', for scaling laws",
    "compare": "config differences, curves and evaluations of several runs",
    "extract": "hidden states, condition and codewords of audio files",
    "resynthesize": "an audio file through encoder and decoder, every frame generated",
    "replay": "one step of a run again: gradients, first non-finite tensor, worst examples",
    "trained-on": "whether a run has been trained on a recording, and at which steps",
    "compile": "whether the train step fits a topology that is not there, how fast, at what cost",
    "export": "a run as a Hugging Face directory for PyTorch, compared with JAX",
    "import": "an exported directory as a run again, to begin others from",
    "export-onnx": "the encoder of an exported directory as an ONNX file, compared with PyTorch",
    "encode-shards": "latents of a frozen EnCodec beside the audio of shards, computed once",
    "scaling-laws": "laws of loss, parameters and audio, fitted to the runs of a sweep",
    "infill": "generate a gap of an audio file from what surrounds it",
}


# Compiled programs are kept there unless JAX_COMPILATION_CACHE_DIR names another folder, or none.
COMPILE_CACHE = "~/.cache/uniwav_jax"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
      Exit status: what the command says (0), 1 when the system goes on refusing a file, 2 after a
      mistake in what was asked for, 3 when training stopped itself, 5 when another process was
      lost, 75 after SIGTERM, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser(COMPILE_CACHE))
    parser = argparse.ArgumentParser(
        prog="python -m uniwav_jax",
        description="UniWav: joint pre-training of a speech encoder and a generative decoder.",
        epilog="COMMAND --help says all about one command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        chosen = commands.add_parser(name, help=line, add_help=False)
        if arguments[:1] == [name]:
            module = importlib.import_module(f"uniwav_jax.commands.{name.replace('-', '_')}")
            chosen.add_argument("-h", "--help", action="help", help="show this help")
            chosen.description = module.__doc__
            chosen.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(chosen)
    fields = [a for a in arguments if a.startswith("--config.")]
    options = parser.parse_args([a for a in arguments if a not in fields])
    try:
        # A command that can change fields has set the default options.fields = [].
        if fields and not hasattr(options, "fields"):
            raise UserError(f"{options.command} takes no fields of the config, so not {fields[0]}.")
        options.fields = [field.removeprefix("--config.") for field in fields]
        with interrupts.deferred():
            importlib.import_module("uniwav_jax.tasks.pretrained")  # JAX and what else is slow
        return module.run(options)
    except Preempted as error:
        print(f"preempted: {error}", file=sys.stderr)
        return error.status
    except UserError as error:
        return failed(error, error.status)
    except OSError as error:
        said = refused(error)
        return failed(said, said.status)
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from uniwav_jax.parallel import processes

        if not processes.is_loss(error):
            raise
        reason = str(error).splitlines()[0]
        sentence = f"another process of the run went away ({reason}); start all of them again."
        return failed(sentence, ProcessLost.status)


def failed(sentence, status: int) -> int:
    """Says what went wrong; one of several processes ends here, without waiting for the others."""
    from uniwav_jax.parallel import processes

    print(f"error: {sentence}", file=sys.stderr)
    processes.leave(status)
    return status


def end(status: int) -> None:
    """Ends the process after a failure at once, since threads of a save that failed wait on."""
    if status:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    end(main())
