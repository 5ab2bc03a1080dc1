"""What the processes of one run must have in common, and the line that names where they differ.

Processes with another seed, other files or another version would train a mixture without an error. A fact is a name
with a value that JSON knows, ``{"seed": 0, "version of jax": "0.10.2"}``. All processes exchange their facts and
compare them alike, so that all of them refuse.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax

import rc_jax
from rc_jax.process_group import listed_processes

Facts: TypeAlias = Mapping[str, Any]
Gather: TypeAlias = Callable[[Any], list[Any]]
"""Exchanges a value with all processes; returns those of all, in their order."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")
_JAX_SETTINGS = ("jax_platforms", "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")
_SHOWN = 3  # differences in one message, values of a difference, and entries in a list of processes
_LONGEST = 60  # characters of a value in a message
_BLOCK = 256  # names that share a digest


def software_facts() -> dict[str, Any]:
  """Returns the versions of this process's software, and the settings of JAX that change results."""
  facts: dict[str, Any] = {"version of rc_jax": rc_jax.__version__, "code of rc_jax": _code_digest()}
  facts["version of Python"] = ".".join(map(str, sys.version_info[:2]))
  for package in _PACKAGES:
    try:
      facts[f"version of {package}"] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      facts[f"version of {package}"] = None
  return facts | {name: getattr(jax.config, name, None) for name in _JAX_SETTINGS}


def check_agreement(
  gather: Gather, facts: Facts, listings: Mapping[str, Sequence[str]] | None = None
) -> None:
  """Checks that all processes have the same facts and the same lists of names.

  Args:
    gather: exchanges values; every process calls this function at the same place.
    facts: name -> value.
    listings: what an element is -> names in order, ``{"image of train": ["a.png", "b.png"]}``. Of long lists, only
      digests and the names around the first difference are exchanged.

  Raises:
    ValueError: they differ; one line, the same on all processes.
  """
  listings = listings or {}
  digests = {kind: _block_digests(names) for kind, names in listings.items()}
  gathered = gather({"facts": facts, "digests": digests})
  found = _differences([each["facts"] for each in gathered])
  kinds = dict.fromkeys(kind for each in gathered for kind in each["digests"])
  for kind in kinds:
    columns = [each["digests"].get(kind, []) for each in gathered]
    block = _first_unlike(columns)
    if block is not None:  # on all processes, which therefore exchange once more
      start = block * _BLOCK
      blocks = gather(list(listings.get(kind, ()))[start : start + _BLOCK])
      row = _first_unlike(blocks) or 0
      name = f"{kind} number {start + row + 1}"
      found += _differences([{name: names[row] if row < len(names) else None} for names in blocks])
  if found:
    raise ValueError(_refusal(found))


def disagreements(facts: Sequence[Facts]) -> str:
  """Compares the facts of all processes, in their order.

  Returns:
    One line that names the differences; empty where there are none.

  >>> disagreements([{"seed": 1}, {"seed": 2}, {"seed": 1}])[:90]
  'the processes of this run do not agree: seed is 1 on processes 0, 2 and 2 on process 1; gi'
  """
  found = _differences(facts)
  return _refusal(found) if found else ""


def digest(content: bytes) -> str:
  """Returns 16 hexadecimal digits that stand for a content."""
  return hashlib.sha256(content).hexdigest()[:16]


def _differences(facts: Sequence[Facts]) -> list[str]:
  found = []
  for name in dict.fromkeys(name for each in facts for name in each):
    processes: dict[str, list[int]] = {}
    for index, each in enumerate(facts):
      # As text: a tuple that has been sent is a list, and NaN equals itself.
      processes.setdefault(json.dumps(each.get(name), sort_keys=True), []).append(index)
    if len(processes) > 1:
      values = [
        f"{_shown(value)} on {listed_processes(indices, most=_SHOWN)}" for value, indices in processes.items()
      ]
      rest = [f"{len(values) - _SHOWN} other values"] if len(values) > _SHOWN else []
      *first, last = [*values[:_SHOWN], *rest]
      found.append(f"{name} is {', '.join(first)} and {last}")
  return found


def _refusal(found: Sequence[str]) -> str:
  more = f"; {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
  return (
    f"the processes of this run do not agree: {'; '.join(found[:_SHOWN])}{more}; give all of them the same command, "
    "software and files"
  )


def _shown(text: str) -> str:
  value = json.loads(text)
  if value is None:
    return "absent"
  shown = value if isinstance(value, str) and value else text
  return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _block_digests(names: Sequence[str]) -> list[str]:
  """Returns the digest of each 256 names."""
  return [
    digest(json.dumps(list(names[start : start + _BLOCK])).encode()) for start in range(0, len(names), _BLOCK)
  ]


def _first_unlike(columns: Sequence[Sequence[str]]) -> int | None:
  """Returns the first row in which lists differ, also where one is at its end; None where all are equal."""
  for row in range(max(map(len, columns))):
    if len({tuple(column[row : row + 1]) for column in columns}) > 1:
      return row
  return None


def _code_digest() -> str:
  """Returns a digest of the package's files: hosts of one version may hold other commits."""
  folder = pathlib.Path(rc_jax.__file__).parent
  content = hashlib.sha256()
  for path in sorted(folder.rglob("*.py")):
    content.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
  return content.hexdigest()[:16]
