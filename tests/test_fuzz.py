"""``benchmarks.fuzz`` notices each fault of a reader, and its files are the same for the same seed."""

import pathlib

import pytest

from benchmarks.fuzz import checks, mutations, pool
from benchmarks.fuzz.__main__ import main
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.worker import Reader, damage, targets
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


@pytest.mark.long
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


@pytest.mark.run
def test_each_run_damages_the_same_files_of_a_checkpoint(tmp_path: pathlib.Path) -> None:
  kind = KINDS["checkpoint"]
  for folder in (tmp_path / "a", tmp_path / "b"):
    folder.mkdir()
    kind.make(folder)
  files, again = (targets(kind, folder) for folder in (tmp_path / "a", tmp_path / "b"))
  assert files == again
  assert {"checkpoints/8/checksums.json", "checkpoints/8/model/_METADATA"} <= set(files)
  assert "checkpoints/8/model/ocdbt.process_0/manifest.ocdbt" in files


@pytest.mark.parametrize("name", ["classes_csv-0-7-other.csv", "classes_csv", "no_kind-0-7-classes.csv"])
def test_a_saved_failure_of_an_unknown_file_is_refused_in_one_line(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
  file = tmp_path / name
  file.write_bytes(b"damaged")
  monkeypatch.setattr("sys.argv", ["fuzz", f"--file={file}"])
  with pytest.raises(SystemExit):
    main()
  (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
  assert "expected" in line
  assert name.partition("-")[0] in line


def test_the_reader_of_a_kind_refuses_an_unknown_file(tmp_path: pathlib.Path) -> None:
  (tmp_path / "undamaged").mkdir()
  KINDS["classes_csv"].make(tmp_path / "undamaged")
  reader = Reader("classes_csv", tmp_path / "undamaged", tmp_path / "copy", checks.Watch(), LIMITS.memory)
  answer = reader.read("other.csv", b"damaged")
  assert answer["failed"]
  assert "expected one of classes.csv, plain.csv" in answer["result"]


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
