"""A search for hyper-parameters by Optuna, as a source of runs.

The study lies in S/optuna.db, so a search that was killed goes on. Validation losses are reported
as they come, and Optuna's pruner says which runs need not go on.
"""

import pathlib
from collections.abc import Mapping, Sequence

from data_pipelines.errors import UserError
from launch.sweep import runner, table
from launch.sweep.expand import Run, of_overrides, resolved

FILE = "optuna.db"
VALIDATED = "decoder_loss"


class Search:
    """Trials of a study as runs; see `runner.Listed`.

    Args:
      folder: of the sweep.
      wanted: by `configs.sweeps.common.search`: config, fields, space {field: (low, high)} on a log
        scale or {field: [choices]}, minimise, trials, startup_trials, seed.
      spec: of the sweep's file, for what is said of faults.
      more: "name=value" that all runs get.

    Raises:
      UserError: Optuna is not installed, or the space holds what can't be.
    """

    def __init__(
        self, folder: pathlib.Path, wanted: Mapping, spec: str, more: Sequence[str] = ()
    ):
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "a search needs a package: pip install 'uniwav-jax[sweep]'."
            ) from error
        self._optuna, self._wanted, self._spec, self._more = optuna, wanted, spec, more
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {
            field: optuna.distributions.CategoricalDistribution(tuple(range_))
            if isinstance(range_, list)
            else optuna.distributions.FloatDistribution(*range_, log=True)
            for field, range_ in wanted["space"].items()
        }
        for end in (0, -1):
            resolved(self._run({field: r[end] for field, r in wanted["space"].items()}))
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
        # What a kill has left is gone on with, unless it came before anything was drawn.
        self.runs: list[Run] = []
        self._trials, self._begun, self._reported = {}, [], {}
        for trial in self._study.trials:
            running = trial.state == optuna.trial.TrialState.RUNNING
            whole = trial.params.keys() == self._space.keys()
            if whole and self._run(trial.params).id not in self._trials:
                run = self._hand_out(trial)
                self._begun += [run] * running
            elif running:
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def state(self, run: Run) -> str:
        """What has become of a trial before."""
        known = {"COMPLETE": runner.DONE, "PRUNED": runner.PRUNED, "FAIL": runner.FAILED}
        return known.get(self._study.trials[self._trials[run.id].number].state.name, runner.WAITING)

    def take(self) -> Run | None:
        """A run that was begun before, else a new one, else None. One caller at a time."""
        if self._begun:
            return self._begun.pop(0)
        while len(self._study.trials) < self._wanted["trials"]:
            trial = self._study.ask(self._space)
            if self._run(trial.params).id not in self._trials:
                return self._hand_out(trial)
            # What was drawn before need not be trained again.
            self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        return None

    def stops(self, run: Run, place: runner.Place) -> bool:
        """Reports new validation losses; what the pruner says of them.

        Only of a search for the loss that validation measures: others come at the end.
        """
        from uniwav_jax.training.telemetry import read_rows

        if self._wanted["minimise"] != VALIDATED:
            return False
        trial = self._trial(run)
        for row in read_rows(place.workdir(run) / "metrics.jsonl"):
            seen = self._reported.get(run.id, 0)
            if row["kind"] == "validation" and row["step"] > seen and VALIDATED in row:
                trial.report(row[VALIDATED], row["step"])
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

    def _hand_out(self, trial) -> Run:
        run = resolved(self._run(trial.params))
        self._trials[run.id] = trial
        self.runs.append(run)
        return run

    def _trial(self, run: Run):
        trial = self._trials[run.id]
        if isinstance(trial, self._optuna.trial.FrozenTrial):
            trial = self._optuna.trial.Trial(self._study, trial._trial_id)
            self._trials[run.id] = trial
        return trial

    def _run(self, values: Mapping) -> Run:
        rounded = {n: float(f"{v:.6g}") if isinstance(v, float) else v for n, v in values.items()}
        own = {"config": self._wanted["config"], **self._wanted["fields"], **rounded}
        return of_overrides(own, self._spec, self._more)
