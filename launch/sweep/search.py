"""A search for hyper-parameters by Optuna, as a source of runs.

The study lies in S/optuna.db, so a search that was killed goes on. Validation losses are reported
as they come, and Optuna's pruner says which runs need not go on.
"""

import pathlib
from collections.abc import Mapping

from data_pipelines.errors import UserError
from launch.sweep import runner, table
from launch.sweep.expand import Run, of_overrides

FILE = "optuna.db"


class Search:
    """Trials of a study as runs; see `runner.Listed`.

    Args:
      folder: of the sweep.
      wanted: by `configs.sweeps.common.search`: config, fields, space {field: (low, high)} on a log
        scale or {field: [choices]}, minimise, trials, startup_trials, seed.
      spec: of the sweep's file, for what is said of faults.
    """

    def __init__(self, folder: pathlib.Path, wanted: Mapping, spec: str):
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "a search needs a package: pip install 'uniwav-jax[sweep]'."
            ) from error
        self._optuna, self._wanted, self._spec = optuna, wanted, spec
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {
            field: optuna.distributions.CategoricalDistribution(tuple(range_))
            if isinstance(range_, list)
            else optuna.distributions.FloatDistribution(*range_, log=True)
            for field, range_ in wanted["space"].items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{folder / FILE}",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=wanted["startup_trials"]),
        )
        # A sampler of the same seed would draw again what it has drawn before a kill.
        seed = wanted["seed"] + len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        self._trials = {self._run(trial.params).id: trial for trial in self._study.trials}
        # What a kill has left is gone on with.
        self._begun = [
            self._run(trial.params)
            for trial in self._study.trials
            if trial.state == optuna.trial.TrialState.RUNNING
        ]
        self._reported: dict[str, int] = {}

    @property
    def runs(self) -> list[Run]:
        """Those so far, in the order of the trials."""
        return [self._run(trial.params) for trial in self._study.trials if trial.params]

    def state(self, run: Run) -> str:
        """What has become of a trial before."""
        known = {"COMPLETE": runner.DONE, "PRUNED": runner.PRUNED, "FAIL": runner.FAILED}
        number = self._trial(run).number
        return known.get(self._study.trials[number].state.name, runner.WAITING)

    def take(self) -> Run | None:
        """A run that was begun before, else a new one, else None."""
        if self._begun:
            return self._begun.pop(0)
        if len(self._study.trials) >= self._wanted["trials"]:
            return None
        trial = self._study.ask(self._space)
        run = self._run(trial.params)
        self._trials[run.id] = trial
        return run

    def stops(self, run: Run, place: runner.Place) -> bool:
        """Reports new validation losses; what the pruner says of them."""
        from uniwav_jax.training.telemetry import read_rows

        trial = self._trial(run)
        for row in read_rows(place.workdir(run) / "metrics.jsonl"):
            seen = self._reported.get(run.id, 0)
            if row["kind"] == "validation" and row["step"] > seen and "decoder_loss" in row:
                trial.report(row["decoder_loss"], row["step"])
                self._reported[run.id] = row["step"]
        return trial.should_prune()

    def ended(self, run: Run, state: str, place: runner.Place) -> None:
        """Tells the study."""
        states, value = self._optuna.trial.TrialState, None
        if state == runner.DONE:
            value = table.read_scores(place.workdir(run)).get(self._wanted["minimise"])
        told = {runner.DONE: states.COMPLETE, runner.PRUNED: states.PRUNED}.get(state, states.FAIL)
        if value is None and told == states.COMPLETE:
            told = states.FAIL
        self._study.tell(self._trial(run).number, value, state=told)

    def _trial(self, run: Run):
        trial = self._trials[run.id]
        if isinstance(trial, self._optuna.trial.FrozenTrial):
            trial = self._optuna.trial.Trial(self._study, trial._trial_id)
            self._trials[run.id] = trial
        return trial

    def _run(self, values: Mapping) -> Run:
        rounded = {n: float(f"{v:.6g}") if isinstance(v, float) else v for n, v in values.items()}
        own = {"config": self._wanted["config"], **self._wanted["fields"], **rounded}
        return of_overrides(own, self._spec)
