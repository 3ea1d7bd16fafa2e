"""Submitting, watching and stopping, against stand-ins that record what they are called with."""

import json

import pytest

from launch import __main__ as cli
from launch import watch
from launch.job import mark_submitted
from tests.launch import jobs

pytestmark = pytest.mark.usefixtures("light")
NONE = (1, "ERROR: (gcloud.storage.cat) The following URLs matched no objects or files:")
GONE = (1, "ERROR: (gcloud) NOT_FOUND: Resource 'first' was not found")
JOBSET = '{"metadata": {"name": "first"}, "spec": {}, "status": %s}'
NO_JOBSET = (1, 'Error from server (NotFound): jobsets.jobset.x-k8s.io "first" not found')


def launch(capfd, *arguments, status: int = 0) -> str:
    """What a command prints, to both streams."""
    assert cli.main(list(map(str, arguments))) == status
    captured = capfd.readouterr()
    return captured.out + captured.err


@pytest.fixture
def submitted(tmp_path, programs, capfd):
    """Submits a job of a target's arguments; returns its folder. The stand-ins are forgotten."""

    def submit(arguments, program, **answers):
        programs.play(program, **answers)
        launch(capfd, "submit", *arguments, "--output", tmp_path / "job")
        return tmp_path / "job"

    return submit


# ---- TPU VMs ------------------------------------------------------------------------------------


def test_tpu_vm_is_asked_for(submitted, programs, packed):
    spot = jobs.changed(jobs.TPU, topology="v6e:4x4", spot=True, network="own")
    folder = submitted(spot, "gcloud", storage_cat=[NONE])
    upload, create = programs.calls("gcloud", "cp") + programs.calls("gcloud", "create")
    place = "gs://bucket/runs/first/job/"
    assert upload == ["storage", "cp", "--no-clobber", str(folder / packed.path.name), place]
    assert create[:5] == ["compute", "tpus", "queued-resources", "create", "first"]
    for words in (
        "--project lab --zone europe-west4-b",
        "--node-id first",
        "--accelerator-type v6e-16 --runtime-version v2-alpha-tpuv6e",
        "--network own",
        "--spot",
        f"--metadata-from-file startup-script={folder / 'startup.sh'}",
    ):
        assert words in " ".join(create)


@pytest.mark.parametrize(
    ("topology", "kind"),
    [
        ("v4:4x4x4", "v4-128"),
        ("v5e:16x16", "v5litepod-256"),
        ("v5p:4x4x4", "v5p-128"),
        ("v6e:16x16", "v6e-256"),
    ],
)
def test_tpu_vms_by_their_accelerator_type(topology, kind, submitted, programs):
    large = jobs.changed(jobs.TPU, config="configs/large.py", topology=topology)
    submitted(large, "gcloud", storage_cat=[NONE])
    (create,) = programs.calls("gcloud", "create")
    assert f"--node-id first --accelerator-type {kind}" in " ".join(create)
    assert "--spot" not in create


def test_slices_are_nodes_of_one_queued_resource(tmp_path, capfd):
    said = launch(capfd, "render", *jobs.changed(jobs.TPU, slices=4), "--output", tmp_path / "job")
    assert "--node-count 4 --accelerator-type v5litepod-8" in said


def test_what_an_earlier_job_said_at_its_end_is_removed(submitted, programs):
    submitted(jobs.TPU, "gcloud", storage_cat=["2\n", NONE])
    (removed,) = programs.calls("gcloud", "rm")
    assert removed == ["storage", "rm", "--recursive", "gs://bucket/runs/first/job/ended"]


def test_a_preempted_queued_resource_is_created_again_and_goes_on(submitted, programs, capfd):
    folder = submitted(jobs.changed(jobs.TPU, spot=True), "gcloud", storage_cat=[NONE])
    programs.play(
        "gcloud",
        storage_cat=[NONE] * 6 + ["0\n0\n"],
        describe=[
            "WAITING_FOR_RESOURCES",
            "ACTIVE",
            "SUSPENDED",
            "PROVISIONING",
            "ACTIVE",
            "FAILED",
        ]
        + [GONE],
        list=["first READY\nother PREEMPTED\n"],
    )
    before = len(programs.calls("gcloud"))
    said = launch(capfd, "watch", "--job", folder)
    calls = [call for call in programs.calls("gcloud")[before:] if "queued-resources" in call]
    done = [call[3] for call in calls if call[3] != "describe"]
    assert done == ["delete", "create", "delete", "create"]
    assert all("--force" in call for call in calls if call[3] == "delete")
    # The same startup script, so the same tree.
    scripts = {call[-2] for call in calls if call[3] == "create"}
    assert scripts == {f"startup-script={folder / 'startup.sh'}"}
    assert "restart 1 of 10" in said and "restart 2 of 10" in said
    assert said.rstrip().endswith("ended with status 0")


def test_a_preempted_vm_counts_too(submitted, programs, capfd):
    folder = submitted(jobs.TPU, "gcloud", storage_cat=[NONE])
    programs.play(
        "gcloud",
        storage_cat=[NONE, NONE, "0\n0\n"],
        describe=["ACTIVE", "ACTIVE", GONE],
        list=["projects/lab/nodes/first PREEMPTED\n", "first READY\n"],
    )
    launch(capfd, "watch", "--job", folder)
    assert len(programs.calls("gcloud", "create")) == 2


def test_restarts_have_a_limit(submitted, programs, capfd):
    folder = submitted(jobs.changed(jobs.TPU, max_restarts=2), "gcloud", storage_cat=[NONE])
    programs.play("gcloud", storage_cat=[NONE], describe=["SUSPENDED"])
    said = launch(capfd, "watch", "--job", folder, status=2)
    assert "has lost its machines (SUSPENDED) and was started again 2 times" in said
    assert len(programs.calls("gcloud", "create")) == 3


def test_a_watcher_outlives_what_passes(submitted, programs, capfd, monkeypatch):
    """A network that is away, and a quota that is used up between the deletion and the creation."""
    folder = submitted(jobs.TPU, "gcloud", storage_cat=[NONE])
    busy = (1, "ERROR: quota exceeded")
    programs.play(
        "gcloud",
        storage_cat=[(1, "ERROR: no network"), NONE, NONE, "0\n0\n"],
        describe=["SUSPENDED", "ACTIVE", GONE],
        delete=["", (1, "ERROR: NOT_FOUND")],
        create=[busy, busy, ""],
    )
    said = launch(capfd, "watch", "--job", folder)
    assert "no network; once more" in said and said.count("quota exceeded; once more") == 2
    assert said.count("restart 1 of") == 1 and said.rstrip().endswith("ended with status 0")
    assert len(programs.calls("gcloud", "create")) == 1 + 3
    monkeypatch.setattr(watch, "PATIENCE", 3)
    programs.play("gcloud", storage_cat=[(1, "ERROR: 403 forbidden")])
    assert "403 forbidden" in launch(capfd, "watch", "--job", folder, status=2)
    away = (1, "ERROR: no network")  # while what has ended is looked for, to be deleted
    programs.play("gcloud", storage_cat=["0\n"], describe=["ACTIVE", away, "ACTIVE"])
    launch(capfd, "watch", "--job", folder)
    assert programs.calls("gcloud")[-1][3] == "delete"


def test_the_first_host_that_ends_does_not_end_the_job(submitted, programs, capfd, monkeypatch):
    """The others may still save and copy their logs; those that never end are deleted with it."""
    slept = []
    monkeypatch.setattr(watch.time, "sleep", slept.append)
    four = jobs.changed(jobs.TPU, topology="v5e:4x4")
    folder = submitted(four, "gcloud", storage_cat=[NONE])
    programs.play("gcloud", storage_cat=["0\n"] * 3 + ["0\n3\n0\n0\n"], describe=["ACTIVE"])
    assert "ended on 1 of 4 hosts" in launch(capfd, "status", "--job", folder)
    assert "ended with status 3" in launch(capfd, "watch", "--job", folder, status=1)
    assert slept == [60] and programs.calls("gcloud")[-1][3] == "delete"
    programs.play("gcloud", storage_cat=["0\n"], describe=["ACTIVE"])  # the others are dead
    assert "ended with status 0" in launch(capfd, "watch", "--job", folder)
    assert slept == [60, 60] and programs.calls("gcloud")[-1][3] == "delete"
    programs.play("gcloud", storage_cat=["0\n"], describe=[GONE])
    assert "ended with status 0" in launch(capfd, "status", "--job", folder)


def test_a_failed_job_fails_its_watcher_and_leaves_nothing(submitted, programs, capfd):
    """The VM may have had no right to delete itself."""
    folder = submitted(jobs.TPU, "gcloud", storage_cat=[NONE])
    programs.play("gcloud", storage_cat=["0\n3\n"], describe=["ACTIVE"])
    assert "ended with status 3" in launch(capfd, "watch", "--job", folder, status=1)
    assert programs.calls("gcloud", "queued-resources delete")


def test_kept_tpu_vms_are_not_deleted(submitted, programs, capfd):
    folder = submitted([*jobs.TPU, "--keep"], "gcloud", storage_cat=[NONE])
    programs.play("gcloud", storage_cat=[NONE, "0\n0\n"], describe=["ACTIVE"])
    launch(capfd, "stop", "--job", folder)
    launch(capfd, "watch", "--job", folder)
    assert not programs.calls("gcloud", "queued-resources delete")
    assert "queued-resources delete" not in (folder / "startup.sh").read_text()


def test_tpu_vms_save_before_they_are_deleted(submitted, programs, capfd):
    folder = submitted(jobs.changed(jobs.TPU, grace=45), "gcloud", storage_cat=[NONE])
    programs.play("gcloud", storage_cat=[NONE], describe=["ACTIVE"])
    launch(capfd, "stop", "--job", folder)
    saves, deletes = (call for call in programs.calls("gcloud")[-2:])
    assert saves[3] == "ssh" and "docker stop -t 45 uniwav" in saves[-1]
    assert saves[saves.index("--worker") + 1] == saves[saves.index("--node") + 1] == "all"
    assert deletes[3] == "delete"


def test_an_ended_tpu_vm_job_can_not_be_stopped_but_submitted_again(submitted, programs, capfd):
    folder = submitted(jobs.TPU, "gcloud", storage_cat=[NONE])
    programs.play("gcloud", storage_cat=["0\n", "0\n", "0\n"], describe=[GONE])
    assert "nothing to stop" in launch(capfd, "stop", "--job", folder, status=2)
    launch(capfd, "submit", "--job", folder)
    assert len(programs.calls("gcloud", "create")) == 2


def test_a_job_under_way_is_not_submitted_again(submitted, programs, capfd):
    folder = submitted(jobs.TPU, "gcloud", storage_cat=[NONE])
    programs.play("gcloud", storage_cat=[NONE], describe=["WAITING_FOR_RESOURCES"])
    for command in ("submit", "render"):
        said = launch(capfd, command, *jobs.TPU, "--output", folder, status=2)
        assert "is under way" in said
    assert len(programs.calls("gcloud", "create")) == 1


def test_tpu_vm_status_and_logs(tmp_path, programs, capfd):
    two = jobs.changed(jobs.TPU, topology="v5e:4x4", slices=2)
    folder = jobs.render(tmp_path / "job", two)
    mark_submitted(folder)
    capfd.readouterr()
    rows = '{"kind": "train", "step": 6}\n{"kind": "train", "step": 7, "loss": 1.25}\n{"kind":'
    programs.play("gcloud", metrics=[NONE, rows], storage_cat=[NONE], describe=["ACTIVE"])
    what = "first: ACTIVE, 2 x v5litepod-16 in europe-west4-b, "
    assert launch(capfd, "status", "--job", folder) == what + "no step yet\n"
    assert launch(capfd, "status", "--job", folder) == what + "step 7, loss 1.25\n"
    launch(capfd, "logs", "--job", folder, "--process", 6, "--follow")
    (shown,) = programs.calls("gcloud", "ssh")
    assert "--node 1 --worker 2" in " ".join(shown) and "tail -n +1 -F" in shown[-1]
    programs.play("gcloud", storage_cat=["0\n"], describe=[GONE])
    launch(capfd, "logs", "--job", folder)
    assert programs.calls("gcloud")[-1][-1] == "gs://bucket/runs/first/job/logs/*"


def test_a_failing_gcloud_is_a_sentence(tmp_path, programs, capfd):
    programs.play("gcloud", storage_cat=[NONE], create=[(1, "Traceback\nERROR: no quota\n")])
    said = launch(capfd, "submit", *jobs.TPU, "--output", tmp_path / "job", status=2)
    assert said.endswith("failed with status 1: ERROR: no quota\n") and said.count("\n") == 1
    programs.play("gcloud", storage_cat=[(1, "ERROR: 403 forbidden")])
    said = launch(capfd, "submit", *jobs.TPU, "--output", tmp_path / "job", status=2)
    assert "403 forbidden" in said


# ---- GKE ----------------------------------------------------------------------------------------


def test_gke_life_of_a_jobset(submitted, programs, capfd, packed):
    programs.play("gcloud")
    folder = submitted(jobs.GKE, "kubectl", get_jobset=[NO_JOBSET])
    assert programs.calls("gcloud")[0][-1] == "gs://bucket/runs/first/job/"
    create = programs.calls("kubectl")[-1]
    assert create == [
        *("--context", "gke_lab_zone_pods", "--namespace", "default"),
        *("create", "--filename", str(folder / "jobset.yaml")),
    ]
    states = [
        '{"replicatedJobsStatus": [{"ready": 0}]}',
        '{"replicatedJobsStatus": [{"ready": 1}]}',
    ]
    states += ['{"restarts": 2, "replicatedJobsStatus": [{"ready": 1}]}']
    states += ['{"restarts": 2, "terminalState": "Completed"}']
    programs.play("kubectl", get_jobset=[JOBSET % state for state in states])
    said = launch(capfd, "watch", "--job", folder)
    words = [line.partition("first: ")[2] for line in said.splitlines()]
    assert words == [
        "0 of 1 slices ready",
        "1 of 1 slices ready",
        "1 of 1 slices ready, 2 restarts",
        "Completed, 2 restarts",
    ]
    launch(capfd, "logs", "--job", folder, "--process", 3)
    logs = " ".join(programs.calls("kubectl")[-1])
    assert "job-index=0,batch.kubernetes.io/job-completion-index=3" in logs
    launch(capfd, "stop", "--job", folder)
    assert programs.calls("kubectl", "delete")[-1][4:7] == ["delete", "jobset", "first"]


def test_gke_failed_queued_and_gone(submitted, programs, capfd):
    programs.play("gcloud")
    folder = submitted(jobs.GKE, "kubectl", get_jobset=[NO_JOBSET])
    waiting = '{"metadata": {}, "spec": {"suspend": true}}'
    programs.play(
        "kubectl", get_jobset=[waiting, JOBSET % '{"terminalState": "Failed"}', NO_JOBSET]
    )
    assert "waits in its queue" in launch(capfd, "status", "--job", folder)
    assert "Failed" in launch(capfd, "watch", "--job", folder, status=1)
    assert "nothing to stop" in launch(capfd, "stop", "--job", folder, status=2)


def test_gke_an_ended_jobset_makes_room(submitted, programs, capfd):
    programs.play("gcloud")
    ended = JOBSET % '{"terminalState": "Failed"}'
    folder = submitted(jobs.GKE, "kubectl", get_jobset=[NO_JOBSET])
    programs.play("kubectl", get_jobset=[ended])
    launch(capfd, "submit", "--job", folder)
    verbs = [call[4] for call in programs.calls("kubectl")]
    assert verbs[-2:] == ["delete", "create"]


def test_gke_a_jobset_that_has_not_ended_is_left_alone(tmp_path, programs, capfd):
    """It may be a colleague's: this folder knows nothing of it."""
    programs.play("gcloud")
    running = JOBSET % '{"replicatedJobsStatus": [{"ready": 1}]}'
    waiting = '{"metadata": {}, "spec": {"suspend": true}}'
    for there, words in ((running, "1 of 1 slices ready"), (waiting, "waits in its queue")):
        programs.play("kubectl", get_jobset=[there])
        said = launch(capfd, "submit", *jobs.GKE, "--output", tmp_path / "job", status=2)
        assert f"has a JobSet first that has not ended ({words})" in said
        assert said.count("\n") == 1
    assert {call[4] for call in programs.calls("kubectl")} == {"get"}
    assert not programs.calls("gcloud") and not (tmp_path / "job" / "submitted.json").exists()


def test_gke_keeps_what_is_to_be_kept(submitted, programs, capfd):
    programs.play("gcloud")
    folder = submitted([*jobs.GKE, "--keep"], "kubectl", get_jobset=[NO_JOBSET])
    programs.play("kubectl", get_jobset=[JOBSET % "{}"])
    assert "stopped, and kept" in launch(capfd, "stop", "--job", folder)
    assert not programs.calls("kubectl", "delete")
    changes = json.loads(programs.calls("kubectl", "patch")[-1][-1])
    assert changes["spec"] == {"suspend": True}
    programs.play("kubectl", get_jobset=[json.dumps(changes)])
    assert "first: stopped" in launch(capfd, "watch", "--job", folder, status=1)
    launch(capfd, "submit", "--job", folder)
    assert [call[4] for call in programs.calls("kubectl")[-2:]] == ["delete", "create"]


def test_gke_a_queue_would_let_a_suspended_jobset_go_on(submitted, programs, capfd):
    programs.play("gcloud")
    folder = submitted([*jobs.GKE, "--keep", "--queue", "night"], "kubectl", get=[NO_JOBSET])
    programs.play("kubectl", get_jobset=[JOBSET % "{}"])
    said = launch(capfd, "stop", "--job", folder, status=2)
    assert "the queue night would let it go on" in said and "delete jobset first`" in said
    assert programs.calls("kubectl")[-1][4] == "get"


# ---- Slurm --------------------------------------------------------------------------------------


def test_slurm_life_of_a_job(submitted, programs, capfd):
    folder = submitted(jobs.SLURM, "sbatch", chdir=["4711;cluster\n"])
    assert programs.calls("sbatch") == [
        ["--parsable", "--chdir", str(folder), str(folder / "job.sbatch")]
    ]
    programs.play("squeue", jobs_4711=["PENDING\n", "RUNNING\n", "RUNNING\n", "RUNNING\n", ""])
    programs.play("scancel")
    assert "PENDING, Slurm's job 4711" in launch(capfd, "status", "--job", folder)
    assert "has not written any log" in launch(capfd, "logs", "--job", folder, status=2)
    (folder / "process-3.log").write_text("step 7 of process 3\n")
    said = launch(capfd, "logs", "--job", folder, "--process", 3)
    assert said == "step 7 of process 3\n"
    launch(capfd, "stop", "--job", folder)
    assert programs.calls("scancel") == [["--signal=TERM", "4711"]]
    assert (folder / "stopped").exists()
    assert "gone from the queue" in launch(capfd, "watch", "--job", folder, status=1)


def test_slurm_ends_with_the_status_that_the_script_leaves(submitted, programs, capfd):
    folder = submitted(jobs.SLURM, "sbatch", chdir=["12\n"])
    (folder / "ended").write_text("0\n")
    assert "ended with status 0" in launch(capfd, "watch", "--job", folder)
    launch(capfd, "submit", "--job", folder)
    assert not (folder / "ended").exists()


def test_slurm_a_waiting_job_is_cancelled(submitted, programs, capfd):
    folder = submitted(jobs.SLURM, "sbatch", chdir=["12\n"])
    programs.play("squeue", jobs_12=["PENDING\n"])
    programs.play("scancel")
    assert "cancelled" in launch(capfd, "stop", "--job", folder)
    assert programs.calls("scancel") == [["12"]]


# ---- SkyPilot -----------------------------------------------------------------------------------


def test_skypilot_life_of_a_job(submitted, programs, capfd):
    folder = submitted(jobs.SKY, "sky")
    (launched,) = programs.calls("sky")
    assert launched[:2] == ["jobs", "launch"] and launched[-1] == str(folder / "sky.yaml")
    assert f"--workdir {folder} --yes" in " ".join(launched)
    rows = ["3  first  H100:8  RUNNING  4\n", "3  first  H100:8  RECOVERING\n"]
    rows += ["4  first  2x  SUCCEEDED\n3  first  H100:8  FAILED_SETUP\n"]
    programs.play("sky", jobs_queue=["ID NAME STATUS\n" + row for row in rows])
    said = launch(capfd, "watch", "--job", folder)
    assert [line.split()[-1] for line in said.splitlines()] == [
        "RUNNING",
        "RECOVERING",
        "SUCCEEDED",
    ]
    launch(capfd, "logs", "--job", folder)
    assert programs.calls("sky")[-1] == ["jobs", "logs", "--name", "first", "--no-follow"]
    assert "leave out --process" in launch(capfd, "logs", "--job", folder, "--process", 1, status=2)
    launch(capfd, "stop", "--job", folder)
    assert programs.calls("sky")[-1] == ["jobs", "cancel", "--name", "first", "--yes"]
