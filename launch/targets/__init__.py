"""Where jobs run: name on the command line -> (module, one line).

Each module has SETTINGS, PLATFORMS and SOURCES, which `launch.job.add_arguments` explains, and

    render(job) -> {file name: text}
    commands(job, folder) -> the commands that `submit` would run, each a list of words
    submit(job, folder)              starts the job whose files lie in `folder`
    state(job, folder) -> launch.watch.State of a job that was submitted
    status(job, folder) -> text      how far it is
    logs(job, folder, process, follow) -> exit status; `process` may be None
    watch(job, folder) -> exit status, once the job has ended
    stop(job, folder)                ends it
    faults(job, files) -> sentences  what is wrong with a rendered job, for `launch.check`
"""

TARGETS = {
    "local": ("launch.targets.local", "several processes on this machine"),
    "tpu-vm": ("launch.targets.queued_resources", "TPU VMs of Google Cloud, by queued resources"),
    "gke": ("launch.targets.gke", "TPU and GPU node pools of GKE, by a JobSet"),
    "slurm": ("launch.targets.slurm", "GPUs of a Slurm cluster"),
    "skypilot": ("launch.targets.skypilot", "any cloud, by a managed job of SkyPilot"),
}
# What else a target is called.
ALIASES = {"queued-resources": "tpu-vm"}
