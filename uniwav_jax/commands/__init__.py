"""The commands of `python -m uniwav_jax`, one module each: `add_arguments` and `run`."""
