"""docs/THIRD_PARTY.md: the licence of everything that this project may install.

    python .ci/third_party.py            # writes the page
    python .ci/third_party.py --check    # says what the page has otherwise; status 1 if anything

Walks the requirements of the core and of every extra through the metadata of what is installed
here, so writing wants an environment with the extras `test`, `beam`, `gcs`, `s3` and `wandb`.
Checking goes as far as the packages of .ci/constraints.txt are installed, in those versions:
others may state their licence otherwise, or want other packages.
"""

import argparse
import functools
import importlib.metadata
import json
import pathlib
import subprocess
import sys
from collections.abc import Collection

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "THIRD_PARTY.md"
PINS = ROOT / ".ci" / "constraints.txt"
PROJECT = "uniwav-jax"
# Extras for other machines; their packages are proprietary or large and not installed here.
ELSEWHERE = {
    "cuda": "jax with NVIDIA's CUDA libraries (proprietary)",
    "tpu": "jax with Google's libtpu (proprietary)",
}
# In whatever version an environment has them; they want nothing that is not wanted by others.
TOOLS = {"setuptools", "wheel"}
# Whose packages stand on the page, whichever Python checks it.
MARKERS = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.7",
    "python_version": "3.11",
    "sys_platform": "linux",
}
# Packages that state none.
STATED = {"espeakng-loader": "GPL-3.0-or-later (of espeak-ng, which it carries)"}
HEAD = """# Third-party software

What `pip install uniwav-jax` and its extras bring, and under which licence, as the packages say of
themselves. Written by `python .ci/third_party.py` and checked by the tests. The extra `speech` is
the only one under a GPL; training never imports it, and `make demo CORPUS=DIR` does without it.

| package | licence | wanted by |
|---|---|---|
"""


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    if not options.check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    checked = pinned(PINS.read_text(encoding="utf-8"))
    found = differences(PAGE.read_text(encoding="utf-8"), checked)
    print("\n".join([*found, f"{len(checked)} installed packages are those of {PINS.name}"]))
    return 1 if found else 0


def page() -> str:
    """The whole text."""
    licence_of = licences()
    wanted, _ = wanted_by(licence_of)
    rows = [
        f"| {name} | {licence_of[name]} | {', '.join(sorted(extras))} |"
        for name, extras in sorted(wanted.items())
        if name in licence_of
    ]
    rows += [f"| {text} | | {extra} |" for extra, text in ELSEWHERE.items()]
    return HEAD + "\n".join(rows) + "\n"


def differences(text: str, known: Collection[str]) -> list[str]:
    """What the page says otherwise than the packages that are installed here.

    Args:
      text: the page.
      known: names of the packages that are asked; of others nothing is believed.

    Returns:
      A line for each package that is missing on the page, stands there under another licence, or
      is wanted by others than those it names: by nobody, if it is stale.
    """
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows[1:]}
    licence_of = licences()
    wanted, unsure = wanted_by(known)
    unsure |= ELSEWHERE.keys()
    found = []
    for name in sorted(wanted.keys() | rows.keys()):
        stated, extras = rows.get(name, ("", ""))
        here, there = wanted.get(name, set()), set(extras.split(", ")) - {""}
        if name not in rows:
            found.append(f"{name}: missing on the page")
        elif name in known and name in wanted and stated != licence_of[name]:
            found.append(f"{name}: {licence_of[name]} here, {stated} on the page")
        elif here - unsure != there - unsure:
            listed = ", ".join(sorted(here)) or "nobody"
            found.append(f"{name}: wanted by {listed} here, by {extras} on the page")
    return found


def pinned(constraints: str) -> set[str]:
    """Names of the packages that are installed in the version that the constraints name."""
    found = set()
    for line in constraints.splitlines():
        name, _, version = line.strip().partition("==")
        try:
            # Without what says who built it, as in 2.13.0+cpu.
            if version and Version(importlib.metadata.version(name)).public == version:
                found.add(canonicalize_name(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def licences() -> dict[str, str]:
    """Licence by name of every installed package."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed"]
    command += ["--with-system", "--format=json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    # Some packages put the whole text there, of which the first line is the name.
    stated = {
        canonicalize_name(package["Name"]): package["License"].strip().splitlines()[0].strip()
        for package in found
    }
    return stated | {name: licence for name, licence in STATED.items() if name in stated}


def wanted_by(known: Collection[str]) -> tuple[dict[str, set[str]], set[str]]:
    """Walks the requirements through the packages that are known.

    Returns:
      Name of every package in the closure -> the extras that want it ("core": all of them do); and
      the extras whose closure may hold more, since something in it is not known.
    """
    found: dict[str, set[str]] = {}
    unsure = set()
    extras = importlib.metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    for extra in ("", *(extra for extra in extras if extra not in ELSEWHERE)):
        pending = [(canonicalize_name(PROJECT), extra)]
        seen = set()
        while pending:
            name, asked = pending.pop()
            if (name, asked) in seen:
                continue
            seen.add((name, asked))
            if name != PROJECT:
                found.setdefault(name, set()).add(extra or "core")
                if name not in known:
                    unsure |= {extra or "core"} if name not in TOOLS else set()
                    continue
            for requirement in requirements(name):
                if requirement.marker and not requirement.marker.evaluate(
                    MARKERS | {"extra": asked}
                ):
                    continue
                needed = canonicalize_name(requirement.name)
                pending += [(needed, more) for more in ("", *requirement.extras)]
    # What the core wants is there with every extra.
    found = {name: {"core"} if "core" in extras else extras for name, extras in found.items()}
    return found, unsure


@functools.cache
def requirements(name: str) -> list[Requirement]:
    """What an installed package wants, under whatever markers."""
    return [Requirement(text) for text in importlib.metadata.requires(name) or []]


if __name__ == "__main__":
    sys.exit(main())
