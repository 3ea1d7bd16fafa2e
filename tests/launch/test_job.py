"""The command line of jobs: what is missing or impossible is a sentence; job.json has the rest."""

import json

import pytest

from launch import __main__ as cli
from launch import job as jobs_module
from tests.launch import jobs

pytestmark = pytest.mark.usefixtures("light")
CONTEXT = "--context gke_lab_zone_pods --namespace default"


def refused(capsys, *arguments) -> str:
    """The one sentence that the command ends with."""
    assert cli.main(list(map(str, arguments))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("target", jobs.ALL)
def test_render_needs_no_program_of_a_cloud(target, tmp_path, programs, capsys):
    folder = jobs.render(tmp_path / "job", jobs.ALL[target])
    said = capsys.readouterr().out
    files, commands = said.split("submit would run\n")
    for line in files.splitlines():
        assert (folder.parent / line).is_file()
    (packed,) = folder.glob("tree-*.tar.gz")
    assert packed.name not in commands  # it is another one with every change
    upload = f"gcloud storage cp --no-clobber {folder}/tree-DIGEST.tar.gz gs://bucket/runs/first/job/"
    begun = {
        "tpu-vm": [upload, "gcloud compute tpus queued-resources create first "],
        "gke": [upload, f"kubectl {CONTEXT} create --filename {folder}/jobset.yaml"],
        "slurm": [f"sbatch --parsable --chdir {folder} {folder}/job.sbatch"],
        "skypilot": [f"sky jobs launch --name first --workdir {folder} "],
    }[target]
    for line, words in zip(commands.splitlines(), begun, strict=True):
        assert line.startswith(f"  {words}")
    assert not any(programs.calls(name) for name in ("gcloud", "kubectl", "sbatch", "sky"))


@pytest.mark.parametrize("target", jobs.ALL)
def test_every_missing_value_is_named_with_its_variable(target, tmp_path, capsys):
    said = refused(capsys, "render", target, "--output", tmp_path / "job")
    for name in ("config", "data", "workdir", "topology"):
        assert f"--{name} (or UNIWAV_{name.upper()}): " in said
    own = {"tpu-vm": "project", "gke": "context", "slurm": "partition", "skypilot": "infra"}[target]
    assert f"--{own} (or UNIWAV_{own.upper()})" in said
    assert not (tmp_path / "job").exists()


def test_a_value_may_come_from_the_environment_and_an_empty_one_is_missing(
    tmp_path, capsys, monkeypatch
):
    without = jobs.changed(jobs.TPU, project=None)
    monkeypatch.setenv("UNIWAV_PROJECT", "")
    assert "--project" in refused(capsys, "render", *without, "--output", tmp_path / "job")
    assert "--project" in refused(capsys, "render", *without, "--project", "")
    monkeypatch.setenv("UNIWAV_PROJECT", "from-environment")
    folder = jobs.render(tmp_path / "job", without)
    assert jobs_module.read(folder).settings["project"] == "from-environment"
    jobs.render(folder, jobs.TPU)
    assert jobs_module.read(folder).settings["project"] == "lab"


def test_numbers_and_choices_of_the_environment_are_checked(capsys, monkeypatch):
    monkeypatch.setenv("UNIWAV_MAX_RESTARTS", "many")
    assert "UNIWAV_MAX_RESTARTS=many is not a number" in refused(capsys, "render", *jobs.SLURM)
    monkeypatch.setenv("UNIWAV_MAX_RESTARTS", "3")
    monkeypatch.setenv("UNIWAV_PROCESS_PER", "rack")
    assert "write one of gpu, node" in refused(capsys, "render", *jobs.SLURM)


def test_everything_lies_in_job_json(tmp_path):
    more = ("--config.training.steps=7", "--env", "NCCL_SOCKET_IFNAME=ib0", "--spot", "--keep")
    folder = jobs.render(
        tmp_path / "job", jobs.changed(jobs.GKE, slices=2), *more, "--", "--extend-to", "9"
    )
    content = json.loads((folder / "job.json").read_text())
    assert content["format"] == jobs_module.FORMAT
    job = jobs_module.read(folder)
    assert job.fields == ("training.steps=7", "parallel.slices=2")
    assert job.arguments == ("--extend-to", "9") and job.variables == ("NCCL_SOCKET_IFNAME=ib0",)
    assert (job.topology.name, job.topology.slices) == ("v5p:4x4x4", 2)
    assert (job.name, job.spot, job.keep, job.source) == ("first", True, True, "image")
    assert job.cache == "gs://bucket/runs/first/programs"
    jobs_module.write(job, tmp_path)
    assert jobs_module.read(tmp_path) == job


def test_another_format_is_refused(tmp_path, capsys):
    folder = jobs.render(tmp_path / "job", jobs.GKE)
    content = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(content | {"format": 99}))
    assert "has another format" in refused(capsys, "status", "--job", folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (jobs.changed(jobs.SLURM, wheelhouse="/wheels"), "--venv and --wheelhouse were given"),
        (jobs.changed(jobs.SLURM, venv=None), "exactly one of --image"),
        (jobs.changed(jobs.TPU, image=None), "--image (or UNIWAV_IMAGE)"),
        (jobs.changed(jobs.TPU, topology="h100:1x8"), "tpu-vm has no h100, only TPUs"),
        (jobs.changed(jobs.TPU, topology="v5e:3x3"), "v5e slices are"),
        (jobs.changed(jobs.TPU, topology="tpu7x:2x2x1"), "use the target gke"),
        (jobs.changed(jobs.GKE, topology="rtx4090:1x1"), "GKE has"),
        (jobs.changed(jobs.SLURM, topology="v5e:4x4"), "slurm has no v5e, only GPUs"),
        (jobs.changed(jobs.TPU, config="configs/none.py"), "is no file of the tree"),
        (jobs.changed(jobs.TPU, config="/etc/hosts"), "is no file of the tree"),
        (jobs.changed(jobs.TPU, name="A b"), "can't be the job's name"),
        (jobs.changed(jobs.TPU, workdir="gs://bucket/42"), "can't be the job's name"),
        (jobs.changed(jobs.TPU, workdir="gs://bucket", name="x"), "is a whole bucket"),
        (jobs.changed(jobs.TPU, env="NAME"), "write NAME=VALUE"),
    ],
)
def test_what_can_not_be_rendered(arguments, said, capsys, tmp_path):
    assert said in refused(capsys, "render", *arguments, "--output", tmp_path / "job")


def test_which_job_is_meant(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "runs/jobs/none holds no job" in refused(capsys, "status", "none")
    assert "name a job of runs/jobs" in refused(capsys, "stop")
    assert "name a TARGET" in refused(capsys, "submit")
    assert "name a TARGET" in refused(capsys, "check", "--job", "x", *jobs.TPU)
    assert cli.main(["render", *jobs.changed(jobs.GKE, name="named")]) == 0
    for command in ("status", "logs", "watch", "stop"):
        assert "runs/jobs/named was not submitted" in refused(capsys, command, "named")


@pytest.mark.parametrize(
    "words",
    [[], ["render"], ["check"], ["submit"], ["status"], ["logs"], ["watch"], ["stop"]]
    + [["render", target] for target in jobs.ALL],
)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m launch")
    if len(words) == 2:
        assert "$UNIWAV_WORKDIR" in said and "--config.FIELD" in said


@pytest.mark.parametrize("target", jobs.ALL)
def test_submit_without_the_program_says_where_to_get_it(target, tmp_path, programs, capsys):
    said = refused(capsys, "submit", *jobs.ALL[target], "--output", tmp_path / "job")
    assert "is not installed here" in said
