"""docs/THIRD_PARTY.md: the licence of everything that this project may install.

    python .ci/third_party.py            # writes the page
    python .ci/third_party.py --check    # says what the page has otherwise; status 1 if anything

Walks the requirements of the core and of every extra through the metadata of what is installed
here, so it wants an environment with the extras `test`, `beam`, `gcs`, `s3` and `wandb`.
"""

import argparse
import importlib.metadata
import json
import pathlib
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "THIRD_PARTY.md"
PROJECT = "uniwav-jax"
# Extras for other machines; their packages are proprietary or large and not installed here.
ELSEWHERE = {
    "cuda": "jax with NVIDIA's CUDA libraries (proprietary)",
    "tpu": "jax with Google's libtpu (proprietary)",
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
    found = differences(PAGE.read_text(encoding="utf-8"))
    print("\n".join(found))
    return 1 if found else 0


def page() -> str:
    """The whole text."""
    licence_of, wanted = licences(), wanted_by()
    rows = [
        f"| {name} | {licence_of[name]} | {', '.join(sorted(extras))} |"
        for name, extras in sorted(wanted.items())
        if name in licence_of
    ]
    rows += [f"| {text} | | {extra} |" for extra, text in ELSEWHERE.items()]
    return HEAD + "\n".join(rows) + "\n"


def differences(text: str) -> list[str]:
    """Packages that are installed, wanted, and missing on the page or under another licence."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    stated = {cells[0].strip(): cells[1].strip() for cells in rows}
    licence_of = licences()
    return [
        f"{name}: {licence_of[name]} here, {stated.get(name, 'missing')} on the page"
        for name in sorted(wanted_by().keys() & licence_of.keys())
        if stated.get(name) != licence_of[name]
    ]


def licences() -> dict[str, str]:
    """Licence by name of every installed package."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    # Some packages put the whole text there, of which the first line is the name.
    stated = {
        canonicalize_name(package["Name"]): package["License"].strip().splitlines()[0].strip()
        for package in found
    }
    return stated | {name: licence for name, licence in STATED.items() if name in stated}


def wanted_by() -> dict[str, set[str]]:
    """Name of every package in the closure of the requirements -> the extras ("core")."""
    found: dict[str, set[str]] = {}
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
            try:
                requires = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            for requirement in map(Requirement, requires):
                if requirement.marker and not requirement.marker.evaluate({"extra": asked}):
                    continue
                needed = canonicalize_name(requirement.name)
                pending += [(needed, more) for more in ("", *requirement.extras)]
    # What the core wants is there with every extra.
    return {name: {"core"} if "core" in extras else extras for name, extras in found.items()}


if __name__ == "__main__":
    sys.exit(main())
