"""``benchmarks.fuzz`` notices each fault of a reader, and its files are the same for the same seed."""

import pathlib

import pytest

from benchmarks.fuzz import mutations, pool
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.worker import damage
from tests.support import faulty_kinds

LIMITS = pool.Limits(seconds=1, memory=100 << 20, waiting=10)
FAULTS = {
  "crash": "status -11",
  "hang": "no result after 1 s",
  "wait": "no result after 1 s",
  "library_error": "an error of a library, JSONDecodeError",
  "nameless_error": "without the name of the file",
  "wrong": "a wrong reading",
  "large": "MiB of memory, expected at most 100",
  "run": "ran what the file says",
  "right": "",
}


@pytest.mark.run
def test_each_fault_of_a_reader_is_noticed(tmp_path: pathlib.Path) -> None:
  for kind in FAULTS:
    (tmp_path / "undamaged" / kind).mkdir(parents=True)
    faulty_kinds.make(tmp_path / "undamaged" / kind)
  found = pool.run(tmp_path, tuple(FAULTS), 0, 0, 1, 1, LIMITS, module="tests.support.faulty_kinds")
  faults = {failure.kind: failure.fault for failure in found.failures}
  assert faults.keys() == {kind for kind, fault in FAULTS.items() if fault}
  for kind, fault in faults.items():
    assert FAULTS[kind] in fault
  assert "| right | 1 | 0 | 1 | 0 |" in found.table()
  assert f"{len(FAULTS)} damaged files, {len(FAULTS) - 1} failures" in found.table()


def test_a_seed_gives_the_same_files(tmp_path: pathlib.Path) -> None:
  KINDS["classes_csv"].make(tmp_path)
  first, again, other = (
    [damage("classes_csv", tmp_path, seed, number) for number in range(50)] for seed in (0, 0, 1)
  )
  assert first == again != other


def test_most_mutations_of_a_kind_change_the_file(tmp_path: pathlib.Path) -> None:
  for name in ("png", "tiff", "npz", "config", "metrics"):
    folder = tmp_path / name
    folder.mkdir()
    KINDS[name].make(folder)
    files = [damage(name, folder, 0, number) for number in range(100)]
    changed = [content != (folder / target).read_bytes() for target, content in files]
    assert sum(changed) > 75
    assert len({content for _, content in files}) > 75
    assert max(len(content) for _, content in files) <= mutations.MOST_BYTES
