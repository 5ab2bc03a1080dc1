"""What all tests share: the folder of real images and weights, where there is one."""

import os
import pathlib

import pytest

# No accelerator: tests say the same on a laptop and on a machine with GPUs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
  """Real images and weights beside the checkout (see README); tests that use it skip when it is absent."""
  folder = pathlib.Path(__file__).resolve().parents[2] / "shared"
  if not (folder / "data").is_dir():
    pytest.skip("no ../shared folder with real images beside the checkout")
  return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Where the runs of ``run_tiny`` keep their compiled programs: only the first of all tests compiles each."""
  return tmp_path_factory.mktemp("programs")
