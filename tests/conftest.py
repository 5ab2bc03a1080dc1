"""What all tests share: the folder of real images and weights, where there is one; their order; how they compile."""

import multiprocessing.process
import os
import pathlib
import subprocess

import pytest

from tests.support import processes
from tests.support.paths import SHARED

# No accelerator: tests say the same on a laptop and on a machine with GPUs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = processes.xla_flags()
# Commands that tests start keep no compiled programs, except where a test names a folder.
os.environ["XDG_CACHE_HOME"] = os.devnull

# Whole files go to the next free process: the longest first, so that none is left for the end. In the order of the
# processor's time of each file, of the tests that are long and of the others.
LONGEST = (
  "test_train.py",
  "test_train_step.py",
  "test_study.py",
  "test_pipeline.py",
  "test_microbatches.py",
  "test_mmsegmentation.py",
  "test_heads.py",
  "test_gpu_run.py",
  "test_sgd_step.py",
  "test_freeze.py",
  "test_user_story.py",
  "test_eval.py",
  "test_backbones.py",
  "test_skipped_examples.py",
  "test_run_classes.py",
)


def pytest_xdist_auto_num_workers() -> int:
  """Returns how many processes share the tests: one for each core that this process may use, as memory allows."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return min(cores, 8)


TIERS = ("unit", "run", "parity", "long", "slow")
ORACLES = ("torch", "originals", "torch_attention", "torch_heads", "torch_hrnet", "torch_reference")


def tier_of(item: pytest.Item) -> str:
  """Returns the tier of a test: its marker's, ``parity`` where its module imports an original, else ``unit``."""
  marked = [tier for tier in TIERS if item.get_closest_marker(tier)]
  if marked:
    return marked[-1]
  names = vars(item.module) if isinstance(item, pytest.Function) else {}
  compares = "parity" in item.path.parts or any(oracle in names for oracle in ORACLES)
  return "parity" if compares else "unit"


@pytest.fixture(autouse=True)
def _unit_tests_start_no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
  """Fails a test of the tier ``unit`` that starts a process, which would make the tier slow."""
  if request.node.get_closest_marker("unit"):

    def refuse(*args: object, **options: object) -> None:
      raise AssertionError("a unit test starts a process: mark it with @pytest.mark.run")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Gives every test its tier, and puts the tests of the longest files first."""
  for item in items:
    tier = tier_of(item)
    item.add_marker(tier)
    if tier == "slow":  # one case of a long test: -m long leaves it out
      item.own_markers = [marker for marker in item.own_markers if marker.name != "long"]
  items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
  """Real images and weights beside the checkout (see README); tests that use it skip when it is absent."""
  folder = SHARED
  if not (folder / "data").is_dir():
    pytest.skip("no ../shared folder with real images beside the checkout")
  return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Where runs keep their compiled programs: only the first of all tests compiles each, in any of its processes.

  ``RC_JAX_TEST_PROGRAMS`` names a folder that several sessions share.
  """
  if "RC_JAX_TEST_PROGRAMS" in os.environ:
    return pathlib.Path(os.environ["RC_JAX_TEST_PROGRAMS"])
  folder = tmp_path_factory.getbasetemp()
  if os.environ.get("PYTEST_XDIST_WORKER"):
    folder = folder.parent  # shared by the processes of this session, and by no other session
  folder = folder / "programs"
  folder.mkdir(exist_ok=True)
  return folder
