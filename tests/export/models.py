"""Models of random weights, made without compiling anything; and a process without JAX."""

from benchmarks import export_check
from tests import runs
from uniwav_jax.config import load_config
from uniwav_jax.tasks.pretrained import Pretrained

# Runs a script where JAX and this project's packages can't be imported.
WITHOUT_JAX = """
import runpy, sys
absent = {"jax", "jaxlib", "flax", "uniwav_jax", "data_pipelines"}
sys.modules.update(dict.fromkeys(absent))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
found = {name for name, module in sys.modules.items() if module and name.split(".")[0] in absent}
assert not found, found
"""


def random_model(*fields: str, recipe: str = "configs/tiny.py") -> Pretrained:
    """A small model, none of whose parameters is zero or one, as if it had been trained.

    fields: of the config, as NAME=VALUE, beside those of `tests.runs`.
    recipe: of the config, perhaps with an argument.
    """
    small = [field.removeprefix("--config.") for field in runs.fields()]
    return export_check.random_model(load_config(recipe, [*small, *fields]))
