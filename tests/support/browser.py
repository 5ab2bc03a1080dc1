"""Opens a page in Chromium, where the machine has it."""

import pathlib
import re
import shutil
import subprocess

import pytest

BROWSERS = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
BROWSER = next(filter(None, BROWSERS), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")


def browse(folder: pathlib.Path, page: str) -> str:
  """Opens a page in a browser; returns its elements after the scripts, and finds no error."""
  assert BROWSER
  (folder / "index.html").write_text(page)
  finished = subprocess.run(
    [
      *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"),
      *("--enable-logging=stderr", "--v=0", "--dump-dom", (folder / "index.html").as_uri()),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert "CONSOLE" not in finished.stderr, finished.stderr
  (root,) = re.findall(r"<html[^>]*>", finished.stdout)
  assert 'data-ready="true"' in root and "data-error" not in root  # the script ran to its end
  return finished.stdout
