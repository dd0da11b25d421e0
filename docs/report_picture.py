"""Makes pictures of the page of a run, docs/pictures/report.png and report-dark.png.

    python docs/report_picture.py RUN

It needs chromium or Google Chrome (`apt-get install chromium`), which draws the page without a window; where
there is none the pictures stay as they are. Not part of `make docs`: the bytes of a picture differ between
versions of the browser and of fonts.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llmkit.cli import main

FOLDER = Path(__file__).resolve().parent / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 1060
"""Of the part of the page that is shown, pixels: its head and the loss."""
LARGEST = 150_000
"""Bytes of a picture."""
SCHEMES = {"report.png": 1, "report-dark.png": 0}
"""File -> `preferredColorScheme` of Blink, Chromium's renderer."""
SECONDS = 120
"""Within which the browser must have drawn a page."""


def picture(browser: str, page: Path, out: Path, scheme: int) -> None:
    """Draws a page into a PNG file. Raises RuntimeError where that fails, or the file is too large."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.png"
        made = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}",
                f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={drawn}", page.as_uri(),
            ],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        if not drawn.is_file():
            raise RuntimeError(f"{browser} has drawn nothing: {made.stderr[-500:]}")
        if (size := drawn.stat().st_size) > LARGEST:
            raise RuntimeError(f"{out.name} takes {size:,} bytes, more than {LARGEST:,}")
        shutil.copy(drawn, out)


def draw(run: str) -> int:
    """Writes the report of a run aside, and draws it, light and dark."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser is there ({', '.join(BROWSERS)}): the pictures stay as they are", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(["report", run, "--output", str(page)])
        if code != 0:
            return code
        for name, scheme in SCHEMES.items():
            picture(browser, page, FOLDER / name, scheme)
            print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(draw(sys.argv[1]))
