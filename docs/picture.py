"""The top of a page as a PNG for the README: python docs/picture.py runs/NAME/report.html report.png [--dark]. Needs Chromium."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, SCALE = 1000, 1.2
"""CSS pixels of the window, and the picture's pixels for each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--height", type=int, default=1500, help="at most, in pixels of the picture; it ends between two cards")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--browser", default="chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [given.browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={shot}"]
        command += [f"--window-size={WIDTH},{given.height}", f"--force-device-scale-factor={SCALE}"]
        command += ["--blink-settings=preferredColorScheme=0"] * given.dark  # 0 is dark
        subprocess.run([*command, given.page.resolve().as_uri()], check=True, capture_output=True)
        picture = Image.open(shot).convert("RGB")
    pixels = np.asarray(picture)[: given.height]
    (between,) = np.nonzero((pixels == pixels[0, 0]).all(axis=(1, 2)))  # rows of the background alone
    picture = picture.crop((0, 0, picture.width, int(between[-1]) + 1))
    picture.save(given.out, optimize=True)
    print(f"{given.out}: {picture.width} x {picture.height}, {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
