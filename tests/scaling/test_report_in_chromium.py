"""The report as a browser sees it, opened from disk without any network."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import image

from tests.scaling.tables import table, write
from uniwav_jax.__main__ import main

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a table whose laws are known."""
    folder = tmp_path_factory.mktemp("report")
    write(folder, table())
    line = ["scaling-laws", "--results", str(folder), "--output", str(folder / "R")]
    assert main([*line, "--refits", "20"]) == 0
    return folder / "R" / "report.html"


def chromium(*arguments: str) -> subprocess.CompletedProcess:
    """Runs it without a display and without a network."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "there is no Chromium; on Debian `apt install chromium` brings it"
    return subprocess.run(
        [
            *(found, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1000,3000"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_it_opens_from_disk_with_all_its_plots_and_numbers(page):
    result = chromium("--dump-dom", f"file://{page}")
    assert not re.findall(r"CONSOLE|ERR_", result.stderr)
    dom = result.stdout
    assert dom.count("<svg") == 8 and dom.count("<details") == 8
    assert "<h2 id=\"encoder_loss\">" in dom and "<h2 id=\"decoder_loss\">" in dom
    assert all(f"run-{row:02}" in dom for row in range(36))


def test_it_is_seen(page, tmp_path):
    picture = tmp_path / "page.png"
    chromium(f"--screenshot={picture}", f"file://{page}")
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (3000, 1000)
    # Ink in every screen's height: text, tables, plots; and colours that only the plots have.
    inked = (pixels < 0.5).any(-1)
    assert all(part.mean() > 2e-3 for part in np.array_split(inked, 5))
    assert (np.ptp(pixels, axis=-1) > 0.4).mean() > 1e-3
