"""Reads damaged files of every kind, and ends with status 1 where one is read wrongly, crashes, hangs or is run.

python -m benchmarks.fuzz --seconds=60 --seed=0 [--kind=png,jpeg]

Each file must give an error of the product, in one line that names the file, or the right reading: that of the
undamaged file, or that of another decoder. Other processes read the files, so that a crash ends none but them. A
failure is saved, and ``--file`` reads it again. Needs the extra ``parity``.

Equal seeds give equal files, except of the kinds whose undamaged files hold times or random names, such as
``checkpoint``: there the damaged files have the same names, and their content may differ.
"""

import argparse
import pathlib
import sys
import tempfile

from benchmarks.fuzz import pool
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.worker import damage, targets

# Failures of one sort that are printed and saved; the rest are counted.
_SHOWN = 3


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seconds", type=float, default=60, help="of reading, shared by the kinds")
  parser.add_argument("--files", type=int, default=0, help="of each kind, in place of --seconds")
  parser.add_argument("--seed", type=int, default=0, help="equal seeds damage the same files in the same way")
  parser.add_argument("--kind", default=",".join(KINDS), help=f"of {', '.join(KINDS)}; several with commas")
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--limit_s", type=float, default=10, help="seconds for a file, after which it hangs")
  parser.add_argument("--memory_mb", type=int, default=1024, help="that a file may take")
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("fuzz_failures"))
  parser.add_argument("--file", type=pathlib.Path, help="a saved failure, which is read again")
  arguments = parser.parse_args()
  kinds = [arguments.file.name.partition("-")[0]] if arguments.file else arguments.kind.split(",")
  unknown = set(kinds) - KINDS.keys()
  if unknown:
    parser.error(f"--kind: {', '.join(sorted(unknown))}: expected {', '.join(KINDS)}")
  limits = pool.Limits(arguments.limit_s, arguments.memory_mb << 20)
  with tempfile.TemporaryDirectory(prefix="rc_jax_fuzz_") as folder:
    undamaged = pathlib.Path(folder) / "undamaged"
    for kind in kinds:
      (undamaged / kind).mkdir(parents=True)
      KINDS[kind].make(undamaged / kind)
    if arguments.file:
      try:
        return _repeat(arguments.file, pathlib.Path(folder), limits)
      except ValueError as error:
        parser.error(str(error))
    tally = pool.run(
      pathlib.Path(folder),
      kinds,
      arguments.seed,
      arguments.seconds,
      arguments.files,
      arguments.processes,
      limits,
    )
    shown: dict[str, int] = {}
    for failure in tally.failures:
      sort = f"{failure.kind} {failure.fault.partition(' in ')[2] or failure.fault[:60]}"
      shown[sort] = shown.get(sort, 0) + 1
      if shown[sort] > _SHOWN:
        continue
      target, content = damage(failure.kind, undamaged / failure.kind, arguments.seed, failure.number)
      arguments.output.mkdir(exist_ok=True)
      name = f"{failure.kind}-{arguments.seed}-{failure.number}-{target.replace('/', '@')}"
      (arguments.output / name).write_bytes(content)
      print(
        f"FAILURE {failure.kind}, seed {arguments.seed}, number {failure.number}, {target}: {failure.fault}\n"
        f"  repeat: python -m benchmarks.fuzz --file={arguments.output / name}"
      )
    for sort, count in shown.items():
      if count > _SHOWN:
        print(f"{count - _SHOWN} more of: {sort}")
  print(tally.table())
  return 1 if tally.failures else 0


def _repeat(file: pathlib.Path, folder: pathlib.Path, limits: pool.Limits) -> int:
  kind, target = file.name.partition("-")[0], file.name.split("-", 3)[-1].replace("@", "/")
  known = targets(KINDS[kind], folder / "undamaged" / kind)
  if target not in known:
    raise ValueError(
      f"--file={file}: is a damaged {target!r}, expected one of {', '.join(known)}: run its seed again"
    )
  task = {"kind": kind, "file": str(file.resolve()), "target": target}
  with pool.Process(folder / "undamaged", folder / "0", limits) as process:
    answer = process.ask(task)
  print(f"{file}: {answer['result']} ({answer['class'] or answer['seconds']})")
  return 1 if answer["failed"] else 0


if __name__ == "__main__":
  sys.exit(main())
