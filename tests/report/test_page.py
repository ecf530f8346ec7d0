"""The page in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedsim

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(width: int, scheme: str, made: Path, tmp_path: Path) -> None:
    """Not empty, no console error, no sideways scrolling of the page, both colour schemes."""
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    fedsim.compare(str(made)).to_html(page)
    probe = tmp_path / "probe.html"
    frame = f"<iframe id=f src=report.html style='width:{width}px;height:9000px;border:0'></iframe>"
    probe.write_text(
        f"<body style='margin:0'>{frame}<script>onload = () => {{ const r = f.contentDocument"
        ".documentElement; document.title = 'wide ' + r.scrollWidth; }</script>"
    )
    dark = "--blink-settings=preferredColorScheme=" + {"dark": "0", "light": "1"}[scheme]
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", dark,
        f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--v=0",
    ]  # fmt: skip
    url = page.as_uri()
    size = f"--window-size={width},3000"
    taken = subprocess.run(
        [*command, size, f"--screenshot={shot}", url], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in taken.stderr
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape[1] == width
    assert len(np.unique(pixels)) > 50
    corner = int(pixels[2, 2])
    assert corner < 60 if scheme == "dark" else corner > 240
    dom = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=60
    )
    found = re.search(r"<title>wide (\d+)</title>", dom.stdout)
    assert found is not None
    assert int(found[1]) <= width
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http://" not in text.replace("http://www.w3.org", "")
