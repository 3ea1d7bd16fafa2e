"""Faulty jobs, each refused by `check` with a sentence that names the fault."""

import functools
import pathlib
import subprocess
import sys

import pytest

from launch import __main__ as cli
from launch import tree
from tests import runs
from tests.launch import jobs

pytestmark = pytest.mark.usefixtures("light")
LIMIT = "limits:\n                  google.com/tpu: "
pytest.importorskip("kubernetes_validate", reason="pip install -e '.[launch]' to run this")


def checked(capsys, *arguments) -> list[str]:
    """The faults of a job, without the program's."""
    status = cli.main(["check", "--without-compile", *map(str, arguments)])
    captured = capsys.readouterr()
    faults = [line.removeprefix("error: ") for line in captured.err.splitlines()]
    assert status == (2 if faults else 0)
    assert faults or "no faults found; the program was not compiled" in captured.out
    return faults


@pytest.fixture
def faults_of(tmp_path, capsys):
    """The faults of a target's arguments."""

    def find(arguments, *more: str) -> list[str]:
        return checked(
            capsys, *[*arguments[:1], "--output", tmp_path / "job"], *arguments[1:], *more
        )

    return find


@pytest.fixture
def edited(tmp_path, capsys):
    """The faults of a rendered job in one of whose files something has been replaced."""

    def find(arguments, name: str, old: str, new: str) -> list[str]:
        folder = jobs.render(tmp_path / "job", arguments)
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        capsys.readouterr()
        return checked(capsys, "--job", folder)

    return find


@pytest.mark.parametrize("target", jobs.ALL)
def test_a_sound_job(target, faults_of):
    assert not faults_of(jobs.ALL[target])


@pytest.mark.parametrize(
    "arguments",
    [
        jobs.changed(jobs.GKE, topology="h100:2x8", queue="night", spot=True),
        jobs.changed(jobs.GKE, topology="v5e:1x1", config="configs/tiny.py"),
        jobs.changed(jobs.SLURM, venv=None, image="lab/uniwav:7", process_per="node"),
        jobs.changed(jobs.SLURM, venv=None, image="/images/uniwav.sif", container="apptainer"),
        jobs.changed(jobs.SLURM, venv=None, wheelhouse="/wheels", topology="h100:1x4"),
        jobs.changed(jobs.SKY, topology="v6e:4x4", spot=True),
        [*jobs.TPU, "--keep", "--config.training.steps=9"],
    ],
)
def test_other_sound_jobs(arguments, faults_of):
    assert not faults_of(arguments)


def the(faults: list[str]) -> str:
    """The only fault."""
    (fault,) = faults
    return fault


# ---- what is asked for --------------------------------------------------------------------------


def test_spot_without_resume(faults_of):
    fault = the(faults_of(jobs.changed(jobs.TPU, spot=True, max_restarts=0)))
    assert "--spot with --max-restarts 0" in fault


@pytest.mark.parametrize("target", ["tpu-vm", "gke", "skypilot"])
def test_a_workdir_without_a_bucket(target, faults_of):
    faults = faults_of(jobs.changed(jobs.ALL[target], workdir="/runs/first"))
    assert len(faults) == 2  # the compile cache lies in it
    assert "--workdir /runs/first is a path of this machine" in faults[0]


def test_data_without_a_bucket(faults_of):
    fault = the(faults_of(jobs.changed(jobs.GKE, data="gs://bucket/a:0.5,shards/b:0.5")))
    assert fault.startswith("--data shards/b is a path of this machine, which the 16 host(s)")


def test_a_mesh_that_is_not_the_topology(faults_of):
    fault = the(faults_of(jobs.GKE, "--config.parallel.fsdp=48"))
    assert "on v5p:4x4x4" in fault and "fsdp=48 x tensor=1 does not fit 64 device(s)" in fault
    fault = the(faults_of(jobs.GKE, "--config.parallel.data=8"))
    assert "on v5p:4x4x4" in fault and "does not fit 64 device(s)" in fault


def test_a_mesh_that_does_not_divide_the_batch(faults_of):
    fault = the(faults_of(jobs.GKE, "--config.training.batch_size=96"))
    assert "training.batch_size = 96 is not divisible by training.accumulation = 1 x 64" in fault
    fault = the(faults_of(jobs.GKE, "--config.training.accumulation=3"))
    assert "training.accumulation = 3 x 64" in fault
    assert not faults_of(jobs.GKE, "--config.training.batch_size=96", "--config.parallel.tensor=2")


def test_slices_of_the_mesh_and_of_the_topology(faults_of):
    arguments = jobs.changed(jobs.GKE, slices=2)
    assert "parallel.slices" in faults_of(arguments, "--config.parallel.slices=4")[0]


def test_a_field_that_does_not_exist(faults_of):
    fault = the(faults_of(jobs.GKE, "--config.training.batchsize=96"))
    assert "the nearest is 'training.batch_size'" in fault


def test_a_config_that_no_run_can_have(faults_of):
    assert "checkpoint.keep = 1" in the(faults_of(jobs.GKE, "--config.checkpoint.keep=1"))


def test_too_little_time_to_save(faults_of):
    assert "--grace 10: a save takes longer" in the(faults_of(jobs.changed(jobs.GKE, grace=10)))


@pytest.mark.parametrize("image", ["lab/uniwav", "lab/uniwav:latest", "registry:5000/lab/uniwav"])
def test_an_image_that_may_change(image, faults_of):
    assert "may be another image at each restart" in the(
        faults_of(jobs.changed(jobs.GKE, image=image))
    )


def test_arguments_that_the_job_decides(faults_of):
    assert "--processes after --" in the(faults_of(jobs.GKE, "--", "--processes", "4"))


# ---- what a target can't do ---------------------------------------------------------------------


def test_a_shape_that_has_no_accelerator_type(faults_of):
    arguments = jobs.changed(jobs.TPU, config="configs/large.py", topology="v5p:4x4x16")
    assert "v5p-512 comes as 4x8x8" in the(faults_of(arguments))


def test_gke_slices_of_one_host(faults_of):
    faults = faults_of(jobs.changed(jobs.GKE, topology="v5p:2x2x1", slices=2))
    assert "GKE joins only slices of several hosts" in faults[-1]


def test_slurm_has_no_stores_and_no_relative_paths(faults_of):
    fault = the(faults_of(jobs.changed(jobs.SLURM, data="gs://bucket/shards")))
    assert "--data gs://bucket/shards: Slurm's nodes mount no stores" in fault
    fault = the(faults_of(jobs.changed(jobs.SLURM, data="shards:0.5,/data/b:0.5")))
    assert "--data shards is not absolute" in fault
    assert "--venv env is not absolute" in the(faults_of(jobs.changed(jobs.SLURM, venv="env")))


def test_skypilot_has_single_slices_and_keeps_nothing(faults_of):
    faults = faults_of([*jobs.changed(jobs.SKY, topology="v5e:4x4", slices=2), "--keep"])
    assert "SkyPilot has single slices" in faults[-2] and "--keep" in faults[-1]


# ---- rendered files that somebody has edited -----------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (LIMIT + "4", LIMIT + "8", "google.com/tpu, chips of a host, is 8, and v5p:4x4x4 has 4"),
        ("parallelism: 16", "parallelism: 8", "parallelism, hosts of a slice, is 8"),
        ("replicas: 1", "replicas: 2", "replicas, slices, is 2"),
        ("tpu-v5p-slice", "tpu-v6e-slice", "is tpu-v6e-slice"),
        ("4x4x4\n", "4x4x8\n", "gke-tpu-topology, is 4x4x8"),
    ],
)
def test_a_jobset_that_asks_for_something_else_than_the_topology(edited, old, new, said):
    assert said in the(edited(jobs.GKE, "jobset.yaml", old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("failurePolicy:", "failurPolicy:", "'failurPolicy' was unexpected"),
        ("maxRestarts: 10", "maxRestarts: -1", "$.spec.failurePolicy.maxRestarts"),
        ("FailJobSet", "GiveUp", "'GiveUp' is not one of"),
        ("parallelism: 16", "parallelism: many", "the Job host, spec.parallelism"),
        ("restartPolicy: Never", "restartPolicies: Never", "the Job host, spec.template.spec"),
        ("kind: JobSet", "kind: [", "jobset.yaml is not YAML"),
    ],
)
def test_a_jobset_that_kubernetes_would_refuse(edited, old, new, said):
    assert any(said in fault for fault in edited(jobs.GKE, "jobset.yaml", old, new))


@pytest.mark.parametrize(
    ("arguments", "name", "place"),
    [
        (jobs.TPU, "startup.sh", "start.sh in startup.sh, line "),
        (jobs.GKE, "jobset.yaml", "start.sh in jobset.yaml, line "),
        (jobs.SLURM, "job.sbatch", "job.sbatch, line "),
        (jobs.SKY, "host.sh", "host.sh, line "),
    ],
)
def test_a_script_with_a_fault(edited, arguments, name, place):
    fault = the(edited(arguments, name, 'exit "$status"', 'exit "$misspelt"'))
    assert fault.startswith(place) and fault.endswith("(SC2154)")


def test_slurm_asks_for_something_else_than_the_topology(edited):
    fault = the(edited(jobs.SLURM, "job.sbatch", "--nodes=4", "--nodes=2"))
    assert fault == "job.sbatch: --nodes is 2, and h100:4x8 has 4."


def test_skypilot_asks_for_something_else_than_the_topology(edited):
    fault = the(edited(jobs.SKY, "sky.yaml", "H100:8", "H100:4"))
    assert "accelerators is H100:4, and the job wants H100:8" in fault


def test_a_file_is_missing(tmp_path, capsys):
    folder = jobs.render(tmp_path / "job", jobs.SLURM)
    (folder / "start.sh").unlink()
    capsys.readouterr()
    assert "lacks start.sh" in the(checked(capsys, "--job", folder))


def test_another_tree_than_the_rendered_one(tmp_path, capsys):
    folder = jobs.render(tmp_path / "job", jobs.GKE)
    (archive,) = folder.glob("tree-*.tar.gz")
    content = archive.read_bytes()
    archive.unlink()  # a link to what other tests use
    archive.write_bytes(content[:-1] + b"x")
    capsys.readouterr()
    assert "is damaged: its bytes have another digest" in the(checked(capsys, "--job", folder))
    archive.unlink()
    for command in ("check", "submit"):
        assert cli.main([command, "--job", str(folder)]) == 2
        assert f"{archive} is missing; render the job again" in capsys.readouterr().err


def test_all_faults_are_listed(faults_of):
    arguments = jobs.changed(jobs.GKE, workdir="/runs/first", grace=5, image="lab/uniwav")
    faults = faults_of(arguments, "--config.training.batch_size=7", "--", "--data", "x")
    assert len(faults) == 6


def test_submit_refuses_what_is_wrong_at_first_sight(tmp_path, programs, capsys):
    programs.play("gcloud")
    arguments = jobs.changed(jobs.TPU, grace=5)
    assert cli.main(["submit", *arguments, "--output", str(tmp_path / "job")]) == 2
    assert "--grace 5" in capsys.readouterr().err
    assert not programs.calls("gcloud")


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("sbatch", jobs.changed(jobs.SLURM, workdir="runs/large"), "runs/large is not absolute"),
        ("sbatch", jobs.changed(jobs.SLURM, data="gs://bucket/shards"), "mount no stores"),
        ("sky", jobs.changed(jobs.SKY, topology="v5e:4x4", slices=2), "SkyPilot has single slices"),
    ],
)
def test_submit_refuses_what_its_target_can_not_do(
    tmp_path, programs, capsys, program, arguments, said
):
    """A run in a folder of a node's own would be gone with its first attempt."""
    programs.play(program)
    assert cli.main(["submit", *arguments, "--output", str(tmp_path / "job")]) == 2
    assert said in capsys.readouterr().err
    assert not programs.calls(program)


def test_of_several_jobs_each_fault_names_its_own(tmp_path, capsys):
    folders = [jobs.render(tmp_path / target, jobs.ALL[target]) for target in ("tpu-vm", "slurm")]
    wrong = jobs.render(tmp_path / "wrong", jobs.changed(jobs.TPU, grace=5, name="hasty"))
    capsys.readouterr()
    arguments = ["check", "--without-compile", "--job", *map(str, [wrong, *folders])]
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: hasty: --grace 5: ") and said.err.count("\n") == 1
    assert said.out.count(": no faults found; the program was not compiled\n") == 2


# ---- what it takes to look ----------------------------------------------------------------------


def test_without_the_packages_it_says_so(faults_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes_validate", None)
    assert "checked by the package kubernetes_validate; `pip install" in the(faults_of(jobs.GKE))


def test_without_shellcheck_it_says_so(faults_of, monkeypatch, programs):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "by shellcheck, which is not installed" in the(faults_of(jobs.TPU))


def test_the_program_that_does_not_fit_is_a_fault(tmp_path, capsys, monkeypatch):
    """With a stand-in for `python -m uniwav_jax compile`, which has tests of its own."""
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/call\necho "error: too large" >&2\nexit 1\n'
    )
    script.chmod(0o755)
    folder = jobs.render(tmp_path / "job", jobs.GKE, "--config.training.steps=9")
    capsys.readouterr()
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    (tmp_path / "shellcheck").symlink_to(shellcheck)
    monkeypatch.setattr(sys, "executable", str(script))
    assert cli.main(["check", "--job", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said == "error: configs/large.py does not compile for v5p:4x4x4: too large\n"
    assert (tmp_path / "call").read_text().split() == [
        *("-m", "uniwav_jax", "compile", "--config", "configs/large.py"),
        *("--topology", "v5p:4x4x4", "--config.training.steps=9"),
    ]


def test_what_is_checked_is_the_packed_tree(tmp_path, capsys, monkeypatch):
    """Of a checkout that goes on changing, in which a stand-in compiles."""
    root = tmp_path / "checkout"
    for name in ("configs", "uniwav_jax"):
        (root / name).mkdir(parents=True)
    for name in ("configs/large.py", "configs/common.py"):
        (root / name).write_text((runs.ROOT / name).read_text())
    (root / "uniwav_jax" / "__init__.py").touch()
    program = root / "uniwav_jax" / "__main__.py"
    program.write_text("raise SystemExit('error: as it was packed')\n")
    common = root / "configs" / "common.py"
    text = common.read_text()
    assert text.count("config.seed = 0\n") == 1
    common.write_text(text.replace("config.seed = 0\n", "config.seed = 0\n    config.later = 1\n"))
    for arguments in (["init", "--quiet", "."], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    author = ("-c", "user.name=n", "-c", "user.email=e@e")
    subprocess.run(["git", *author, "commit", "--quiet", "-m", "one"], cwd=root, check=True)
    monkeypatch.undo()
    monkeypatch.setattr(tree, "ROOT", root)
    monkeypatch.setattr(tree, "pack", functools.partial(tree.pack, root=root))
    folder = jobs.render(tmp_path / "job", jobs.GKE, "--config.later=2")
    common.write_text(text)
    program.write_text("")
    capsys.readouterr()
    assert not checked(capsys, "--job", folder)
    assert cli.main(["check", "--job", str(folder)]) == 2
    assert capsys.readouterr().err == (
        "error: configs/large.py does not compile for v5p:4x4x4: as it was packed\n"
    )


LOCAL = (
    *("local", "--config", "configs/tiny.py", "--workdir", "run", "--processes", "2"),
    *("--devices-per-process", "2"),
)


def test_a_job_on_this_machine_is_checked_and_compiled_for_all_its_devices(
    tmp_path, capsys, monkeypatch, small_shards
):
    local = [*LOCAL, "--data", str(small_shards), "--output", str(tmp_path / "job")]
    for field, said in (
        ("parallel.fsdp=3", "error: on 2 x 2 CPU devices: parallel: slices=1 x data=-1 x fsdp=3"),
        ("training.batch_size=6", "error: on 2 x 2 CPU devices: training.batch_size = 6 is not"),
    ):
        for command in ("check", "submit"):
            assert cli.main([command, *local, f"--config.{field}"]) == 2
            assert said in capsys.readouterr().err
    assert not (tmp_path / "job" / "submitted.json").exists()
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\necho "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $@" > {tmp_path}/call\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert cli.main(["check", *local]) == 0
    assert capsys.readouterr().out == "run: no faults found\n"
    assert (tmp_path / "call").read_text().split() == [
        *("cpu", "4", "-m", "uniwav_jax", "compile", "--config", "configs/tiny.py"),
        *("--topology", "local"),
    ]


@pytest.mark.slow
def test_a_job_on_this_machine_compiles(tmp_path, capfd, small_shards):
    fields = ("encoder.depth=1", "teacher.targets=1", "objective.decoder_weight=0")
    arguments = [*LOCAL, "--data", str(small_shards), *(f"--config.{field}" for field in fields)]
    assert cli.main(["check", *arguments, "--output", str(tmp_path / "job")]) == 0
    said = capfd.readouterr().out
    assert "slice 1 x data 4 x" in said and "no faults found\n" in said


@pytest.mark.slow
def test_the_program_is_compiled_for_the_topology(tmp_path, capfd):
    pytest.importorskip("libtpu", reason="pip install -e '.[tpu]' to run this")
    fields = ("encoder.depth=1", "teacher.targets=1", "objective.decoder_weight=0")
    arguments = jobs.changed(jobs.TPU, topology="v5e:2x2")
    arguments = [*arguments, *(f"--config.{field}" for field in fields)]
    assert cli.main(["check", *arguments, "--output", str(tmp_path / "job")]) == 0
    assert "no faults found\n" in capfd.readouterr().out
