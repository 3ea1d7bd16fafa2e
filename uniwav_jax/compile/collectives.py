"""What a compiled program sends between devices, read from its text."""

import collections
import dataclasses
import math
import re

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
SCATTER = "all-reduce-scatter"
BOUND = re.compile(r" [su]32\[\]\S* constant\((\d+)\)")
# Slices exchange by sending to their hosts: the numbers of the slices, and what becomes of it.
BETWEEN = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x.*_xla_megascale_transfer_type="(\w+)"')
OPERATION = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of a program.

    Attributes:
      kind: one of `KINDS`.
      count: how often it runs a step.
      result_bytes: of its result on one device, once.
      groups: device numbers (places in the mesh) that exchange with each other, [groups, size].
    """

    kind: str
    count: int
    result_bytes: int
    groups: np.ndarray

    @property
    def sent_bytes(self) -> float:
        """What a device sends each time, on a ring or torus."""
        size = self.groups.shape[1]
        share = (size - 1) / size
        return self.result_bytes * {
            "all-gather": share,  # of the result, all but the own part arrives and is passed on
            "reduce-scatter": size - 1,  # of the operand, which is `size` times the result
            "all-reduce": 2 * share,
            "all-to-all": share,
            "collective-permute": 1,
        }[self.kind]


def collectives(text: str, devices: int) -> list[Collective]:
    """The exchanges of a compiled program, those in loops as often as the loop runs.

    Args:
      text: of the compiled module (`compiled.as_text()`).
      devices: of the mesh.
    """
    computations, entry = _computations(text)
    times = collections.Counter({entry: 1})
    for name in _callers_first(computations, entry):
        for line in computations[name]:
            repeats = _trips(line, computations) if " while(" in line else 1
            for called in _called(line):
                times[called] += times[name] * repeats
    found = {}
    for name, lines in computations.items():
        for line in lines if times[name] else ():
            each = _collective(line, times[name], devices)
            if each is None:
                continue
            # TPUs scatter by a fusion around an all-reduce, and all of these share a channel.
            if each.kind == "all-reduce" and name.startswith(SCATTER):
                size = each.groups.shape[1]
                scattered = each.result_bytes // size
                each = dataclasses.replace(each, kind="reduce-scatter", result_bytes=scattered)
                found[name] = each
                continue
            # An exchange under which something is computed stands in several places, with one
            # channel; one that a loop begins a turn early stands before the loop too.
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[0] if channel else (name, line)
            if key not in found or found[key].count < each.count:
                found[key] = each
    return list(found.values())


def summary(found: list[Collective]) -> dict[str, dict[str, float]]:
    """kind -> count and bytes (results) a step on one device, and what it sends."""
    table = {}
    for each in found:
        row = table.setdefault(each.kind, {"count": 0, "bytes": 0, "sent_bytes": 0.0})
        row["count"] += each.count
        row["bytes"] += each.count * each.result_bytes
        row["sent_bytes"] += each.count * each.sent_bytes
    return table


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of each computation, and the name of the one that is the program."""
    computations, entry, lines = {}, "", []
    for line in text.splitlines():
        start = COMPUTATION.match(line)
        if start:
            lines = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _callers_first(computations: dict, entry: str) -> list[str]:
    """Every computation that is reached, after all that call it."""
    order, seen = [], set()

    def visit(name):
        if name in seen or name not in computations:
            return
        seen.add(name)
        for line in computations[name]:
            for called in _called(line):
                visit(called)
        order.append(name)

    visit(entry)
    return order[::-1]


def _called(line: str) -> list[str]:
    names = CALLED.findall(line)
    for group in BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def _trips(line: str, computations: dict) -> int:
    """How often a loop runs: as the compiler noted, or else by the bound that its condition has."""
    noted = TRIPS.search(line)
    if noted:
        return int(noted[1])
    (condition,) = re.findall(r"condition=%?([\w.\-]+)", line)
    bounds = [bound for text in computations[condition] for bound in BOUND.findall(text)]
    if len(bounds) != 1:
        raise ValueError(f"the loop with condition {condition} has no single bound: {bounds}")
    return int(bounds[0])


def _collective(line: str, times: int, devices: int) -> Collective | None:
    """What an instruction exchanges; None for any other one and for the end of a pair."""
    match = INSTRUCTION.match(line)
    between = match and " send(" in line and BETWEEN.search(line)
    if between:
        return _between_slices(match[2], between, times, devices)
    operation = match and OPERATION.search(match[2])
    if not operation:
        return None
    kind, started = operation[1], operation[2]
    shapes = [_array_bytes(*array) for array in ARRAY.findall(match[2][: operation.start()])]
    groups = _groups(line, devices)
    # The beginning of a pair holds its operands too; the result of a gather is the larger.
    result = max(shapes) if started and len(shapes) > 1 else sum(shapes)
    if groups.shape[1] < 2:
        return None
    return Collective(kind, times, result, groups)


def _between_slices(instruction: str, between: re.Match, times: int, devices: int) -> Collective:
    """An exchange of which the slices, the outermost places of the mesh, each send their part."""
    kind, slices = between[2].lower().replace("_", "-"), between[1].count(",") + 1
    if kind != "all-reduce":
        raise ValueError(f"an exchange between slices that is not understood: {between[2]}")
    sent = _array_bytes(*ARRAY.search(instruction).groups())
    return Collective(kind, times, sent, np.arange(devices).reshape(slices, -1).T)


def _array_bytes(dtype: str, dimensions: str) -> int:
    return BYTES[dtype] * math.prod(int(n) for n in dimensions.split(",") if n)


def _groups(line: str, devices: int) -> np.ndarray:
    """Device numbers [groups, size] of a collective; of a permutation its pairs.

    XLA writes them as lists, as a reshaped and transposed range, or as axes of such a range.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", line)
    if pairs or listed:
        lists = re.findall(r"\{([\d,]+)", (pairs or listed)[0])
        return np.array([[int(n) for n in numbers.split(",")] for numbers in lists])
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[\S+)", line)
    if iota:
        return _range(iota[3], devices).reshape(int(iota[1]), int(iota[2]))
    axes = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", line)
    if axes:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
        numbers = _range(axes[2], devices) if axes[2] else np.arange(devices)
        chosen = re.findall(r"'(\w+)'", axes[3])
        if ":" in axes[3]:
            raise ValueError(f"groups over parts of an axis are not understood: {axes[0]}")
        order = [name for name in sizes if name not in chosen] + chosen
        places = [list(sizes).index(name) for name in order]
        size = math.prod(sizes[name] for name in chosen)
        return numbers.reshape(list(sizes.values())).transpose(places).reshape(-1, size)
    return np.arange(devices)[None]


def _range(text: str, devices: int) -> np.ndarray:
    """ "[2,4]T(1,0)" -> the device numbers in that shape, transposed, flat."""
    shape, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    numbers = np.arange(devices).reshape([int(n) for n in shape.split(",")])
    return (numbers.transpose([int(n) for n in order.split(",")]) if order else numbers).reshape(-1)
