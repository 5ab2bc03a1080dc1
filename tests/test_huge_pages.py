"""The command starts itself once more with huge pages, where these help and nobody has chosen otherwise."""

import os
import subprocess
import sys

import pytest

from rc_jax import huge_pages
from rc_jax.huge_pages import HUGE_PAGES, SETTING
from tests.support.paths import ROOT

MADVISE = "always [madvise] never"


def test_a_cpu_with_huge_pages_on_request() -> None:
  assert huge_pages.helps({}, "glibc 2.36", MADVISE, accelerators=False)
  assert huge_pages.helps({"JAX_PLATFORMS": "cpu"}, "glibc 2.35", MADVISE, accelerators=True)


@pytest.mark.parametrize(
  ("environment", "glibc", "kernel", "accelerators"),
  [
    ({SETTING: ""}, "glibc 2.36", MADVISE, False),
    ({SETTING: HUGE_PAGES}, "glibc 2.36", MADVISE, False),  # started once more already
    ({}, "glibc 2.34", MADVISE, False),
    ({}, "", MADVISE, False),
    ({}, "musl 1.2", MADVISE, False),
    ({}, "glibc 2.36", "[always] madvise never", False),
    ({}, "glibc 2.36", "always madvise [never]", False),
    ({}, "glibc 2.36", "", False),
    ({}, "glibc 2.36", MADVISE, True),
    ({"JAX_PLATFORMS": "cuda"}, "glibc 2.36", MADVISE, True),
  ],
)
def test_otherwise_nothing_changes(environment, glibc, kernel, accelerators) -> None:
  assert not huge_pages.helps(environment, glibc, kernel, accelerators)


@pytest.mark.run
def test_the_process_keeps_its_id_and_its_arguments() -> None:
  code = (
    "import os, sys; from rc_jax import huge_pages; huge_pages.helps = lambda environment, *_: "
    f"{SETTING!r} not in environment; huge_pages.restart_with_huge_pages(); "
    f"print(os.getpid(), os.environ[{SETTING!r}], sys.argv[1:])"
  )
  environment = {name: value for name, value in os.environ.items() if name != SETTING}
  command = [sys.executable, "-c", code, "--workdir=a folder", ""]
  with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
    printed, _ = process.communicate(timeout=60)
  assert printed.split(" ", 2) == [str(process.pid), HUGE_PAGES, "['--workdir=a folder', '']\n"]
