"""The arguments of commands that several processes run together."""


def add_several_arguments(parser) -> None:
    """--processes, --process, --coordinator as `processes.join` takes them; --expect-devices."""
    several = parser.add_argument_group("several processes")
    several.add_argument(
        "--processes", metavar="N", help="how many; 'auto' on TPU pods, Slurm, Kubernetes"
    )
    several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument(
        "--expect-devices",
        type=int,
        metavar="N",
        help="stop at once unless all processes together see N devices",
    )
