"""What ends a command with one sentence; the exit status says of which kind it was."""

from data_pipelines.errors import Refused, UserError

__all__ = ["Preempted", "ProcessLost", "Refused", "TrainingStopped", "UserError"]


class TrainingStopped(UserError):
    """The run can't go on; the message names the step and the cause."""

    status = 3


class ProcessLost(UserError):
    """Another process of the run did not come, or went away."""

    status = 5


class Preempted(UserError):
    """SIGTERM: the state is saved and the same command goes on (EX_TEMPFAIL of sysexits.h)."""

    status = 75
