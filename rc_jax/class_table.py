"""The classes that something was made for: a run, a folder of predictions. Recorded beside it, read and compared.

A network knows its classes by their places alone. Of a data set that states its classes in a file, another order of
that file would swap them in silence.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rc_jax import files
from rc_jax.console import say

FILE = "classes.json"  # in the folder of a run
FORMAT = 1
MERGED = "merged_ids"
_SHOWN = 3  # differences in one message

ClassTable: TypeAlias = Mapping[str, Any]
"""``DatasetInfo.table()`` as JSON knows it: ``dataset``, ``class_names``, ``label_ids``, ``palette``, ``ignore_label``,
and ``merged_ids`` where classes are merged."""


def write_class_table(folder: pathlib.Path, table: ClassTable) -> None:
  """Writes ``folder/classes.json``."""
  files.atomic_write_text(folder / FILE, json.dumps({"format": FORMAT, **table}, indent=1) + "\n")


def check_class_table(folder: pathlib.Path, table: ClassTable) -> None:
  """Checks that a run was trained on these classes, in this order, with these ids.

  Other colours change no result: they are said. The same goes for a run of an earlier version, which has no record.

  Args:
    folder: of the run.
    table: the classes of the data set as it is now.

  Raises:
    ValueError: the classes differ, or the record cannot be read; one line.
  """
  path = folder / FILE
  if not path.is_file():
    say(
      f"{folder}: does not record its classes, as runs of earlier versions; whether they are still those of the data "
      "set, in the same order, cannot be checked"
    )
    return
  remedy = "restore the file, or remove it if the classes are still the same"
  recorded = files.read_json_object(path, lambda: remedy)
  defect = table_defect(recorded)
  if defect:
    raise ValueError(f"{path}: {defect}, expected the classes of the run; {remedy}")
  found, colors = class_differences(table, recorded), color_differences(table, recorded)
  if found:
    raise ValueError(
      f"{path}: the run was trained on other classes than those of the data set now ({'; '.join(found)}); restore the "
      "data set's table of classes or train in another folder; after a mere change of spelling, change this file too"
    )
  if colors:
    say(
      f"{path}: the colours of the run's classes have changed ({'; '.join(colors)}); pictures have the new ones"
    )


def table_defect(table: Any) -> str:
  """Returns what a table lacks that was read from a file, such as ``"label_ids is missing"``; empty for a valid one.

  >>> table_defect({"class_names": ["car", "road"], "label_ids": [1], "palette": [], "ignore_label": 255})
  'label_ids has 1 entries for 2 classes'
  """
  if not isinstance(table, Mapping):
    return f"it is {files.one_line(repr(table), 40)}"
  names, ignored = table.get("class_names"), table.get("ignore_label")
  if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
    return "class_names is no list of names"
  if type(ignored) is not int or not 0 <= ignored < 2**16:
    return "ignore_label is no id"
  checks = {"label_ids": lambda entry: _is_number(entry, 2**16), "palette": _is_color}
  for field, is_valid in checks.items():
    entries = table.get(field)
    if not isinstance(entries, list):
      return f"{field} is missing"
    if len(entries) != len(names):
      return f"{field} has {len(entries)} entries for {len(names)} classes"
    if not all(map(is_valid, entries)):
      return f"{field} has an entry out of range"
  merged = table.get(MERGED, {})
  if not isinstance(merged, Mapping) or not all(
    own_id.isdecimal() and len(own_id) < 6 and _is_number(label, len(names))
    for own_id, label in merged.items()
  ):
    return f"{MERGED} is no map from ids to classes"
  return ""


def _is_number(value: Any, end: int) -> bool:
  return type(value) is int and 0 <= value < end


def _is_color(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 3 and all(_is_number(part, 256) for part in value)


def class_differences(ours: ClassTable, theirs: ClassTable) -> list[str]:
  """Lists the classes whose names, places or ids differ, as ``class 1: car (id 2 with 3), there road (id 1)``.

  Args:
    ours: the classes as they are now.
    theirs: the classes as they were recorded.

  >>> ours = {"class_names": ["car", "road"], "label_ids": [2, 1], "ignore_label": 255}
  >>> class_differences(ours, {"class_names": ["road", "road 2"], "label_ids": [1, 2], "ignore_label": 255})
  ['class 0: car (id 2), there road (id 1)', 'class 1: road (id 1), there road 2 (id 2)']
  """
  one, other = _entries(ours), _entries(theirs)
  found = []
  for index in range(max(len(one), len(other))):
    here, there = (entries[index] if index < len(entries) else "absent" for entries in (one, other))
    if here != there:
      found.append(f"class {index}: {here}, there {there}")
  found = _shortened(found)
  if ours["ignore_label"] != theirs["ignore_label"]:
    found.append(f"ignored: {ours['ignore_label']}, there {theirs['ignore_label']}")
  return found


def color_differences(ours: ClassTable, theirs: ClassTable) -> list[str]:
  """Lists the classes whose colours differ, as ``road: #804080, there #00ff00``; of equal classes."""
  pairs = zip(ours["class_names"], ours["palette"], theirs["palette"], strict=False)
  return _shortened(
    [f"{name}: {_hex(here)}, there {_hex(there)}" for name, here, there in pairs if list(here) != list(there)]
  )


def _entries(table: ClassTable) -> list[str]:
  merged: dict[int, list[str]] = {}
  for own_id, label in sorted(table.get(MERGED, {}).items(), key=lambda item: int(item[0])):
    merged.setdefault(label, []).append(own_id)
  return [
    f"{files.one_line(name, 60)} (id {label_id}{_with(merged.get(label, []))})"
    for label, (name, label_id) in enumerate(zip(table["class_names"], table["label_ids"], strict=True))
  ]


def _with(own_ids: Sequence[str]) -> str:
  more = len(own_ids) - _SHOWN
  shown = [*own_ids[:_SHOWN], f"{more} more"] if more > 1 else own_ids
  return f" with {', '.join(shown)}" if shown else ""


def _hex(color: list[int]) -> str:
  return "#" + bytes(color).hex()


def _shortened(found: list[str]) -> list[str]:
  more = len(found) - _SHOWN
  return [*found[:_SHOWN], f"{more} more"] if more > 1 else found
