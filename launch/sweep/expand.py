"""A sweep's file -> its runs, each with a name that stays the same."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence

from data_pipelines.errors import UserError
from launch.tree import ROOT
from uniwav_jax import config as configs


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      id: a digest of what the run is, so the same whatever else is in the sweep.
      config: "configs/NAME.py[:ARGUMENT]".
      fields: ("name=value", ...), sorted.
      steps: of its schedule.
    """

    id: str
    config: str
    fields: tuple[str, ...]
    steps: int = 0

    @property
    def words(self) -> str:
        """For people."""
        return " ".join([self.config.removeprefix("configs/"), *self.fields])


def read(spec: str) -> list | dict:
    """What `get_sweep()` of "configs/sweeps/NAME.py[:ARGUMENT]" returns: runs, or a search.

    Raises:
      UserError: no such file, or no `get_sweep` in it.
    """
    name, colon, argument = spec.partition(":")
    # Like a job's config it may be named as it is called inside of the tree.
    found = name if os.path.exists(name) or not (ROOT / name).is_file() else str(ROOT / name)
    return configs.call(f"{found}{colon}{argument}", "get_sweep", "--sweep")


def listed(found: list, spec: str, more: Sequence[str] = ()) -> list[Run]:
    """The runs of a list of overrides.

    Args:
      found: by `read`.
      more: "name=value" that all of them get.
      spec: of the sweep's file, for what is said of faults.

    Raises:
      UserError: no runs, one that can't be, or one that stands there twice.
    """
    if not isinstance(found, list) or not found:
        raise UserError(f"--sweep {spec}: get_sweep() gives no list of runs.")
    runs = [of_overrides(overrides, spec, more) for overrides in found]
    if len({run.id for run in runs}) < len(runs):
        twice = next(run for row, run in enumerate(runs) if run in runs[:row])
        raise UserError(f"--sweep {spec}: the run '{twice.words}' stands there twice.")
    return [resolved(run) for run in runs]


def of_overrides(overrides: dict, spec: str, more: Sequence[str] = ()) -> Run:
    """A run from what differs: "config", and fields of it; `more` fields come from elsewhere.

    Raises:
      UserError: no config, a value that is no number, text or tuple of them, or a field that both
        set.
    """
    if not isinstance(overrides, dict) or "config" not in overrides:
        raise UserError(f"--sweep {spec}: {overrides!r} names no recipe; give it a 'config'.")
    twice = sorted(overrides.keys() & {field.partition("=")[0] for field in more})
    if twice:
        raise UserError(
            f"--config.{twice[0]}: the sweep {spec} sets that field itself; leave one of them out."
        )
    own = (f"{name}={_text(v)}" for name, v in overrides.items() if name != "config")
    fields = sorted([*own, *more])
    content = json.dumps([overrides["config"], fields])
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return Run(f"run-{digest}", overrides["config"], tuple(fields))


def resolved(run: Run) -> Run:
    """The run with its steps, which its config says: a slip shows before anything is begun.

    Raises:
      UserError: a config that can't be; says of which run.
    """
    try:
        config = configs.load_config(str(ROOT / run.config), list(run.fields))
        configs.check(config)
    except UserError as error:
        raise UserError(f"the run '{run.words}': {error}") from error
    return dataclasses.replace(run, steps=config.training.steps)


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + "".join(f"{_text(v)}," for v in value) + ")"
    if not isinstance(value, (str, int, float)):
        raise UserError(f"{value!r} is no value of a field.")
    return repr(value) if isinstance(value, float) else str(value)
