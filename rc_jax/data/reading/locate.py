"""Where a data set may lie when it is not where the config says: a folder too high or too deep, or another data set."""

import difflib
import pathlib
from collections.abc import Iterator

# The paths below a root by which each data set is known; one of the alternatives is enough. The most telling come
# first: CamVid's two folders are in many a data set.
_SIGNS: dict[str, tuple[tuple[str, ...], ...]] = {
  "cityscapes": (("leftImg8bit",), ("gtFine",)),
  "ade20k": (("images/training", "annotations/training"), ("images/validation", "annotations/validation")),
  "coco_stuff_10k": (("imageLists",),),
  "coco_stuff_164k": (("images/train2017",), ("images/val2017",), ("train2017",), ("val2017",)),
  "folder": (("classes.csv",),),
  "camvid": (("images/train", "labels/train"), ("images/val", "labels/val")),
}
_FOLDERS_READ = 200  # of a level: a wrong root may be a whole disk


def hint(name: str, root: str) -> str:
  """Says where data set ``name`` seems to lie, when ``root`` lacks a folder of it; empty when nothing is found."""
  if not root or name not in _SIGNS:
    return ""
  path = pathlib.Path(root).expanduser()
  if not path.is_dir():
    siblings = [sibling.name for sibling in _folders(path.parent)]
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
  for folder in _folders(path):
    for inner in _folders(folder):
      if folder.name == inner.name:
        return f"; found {inner}, unpacked into a folder of its own name: move what is in it one level up"
  if _is_root(name, path):
    return ""
  above = tuple(path.resolve().parents)[:2]
  for near in (*above, *_folders(path), *(inner for folder in _folders(path) for inner in _folders(folder))):
    if _is_root(name, near):
      return f"; found the data set in {near}: give that folder"
  for other in _SIGNS:
    if other != name and _is_root(other, path):
      return f"; this looks like {other}: set --config.dataset.name={other}"
  return ""


def contents(folder: pathlib.Path) -> str:
  """Says what a folder holds in place of what was looked for: ``"3 files ending .gif"``, ``"the folders a, b"``."""
  ends: dict[str, int] = {}
  folders = []
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.is_dir():
      folders.append(path.name)
    elif not path.name.startswith("."):
      ends[path.suffix.lower()] = ends.get(path.suffix.lower(), 0) + 1
  files = [f"{count:,} files ending {end}" if end else f"{count:,} files" for end, count in ends.items()]
  if folders:
    files.append(f"the folders {', '.join(folders[:4])}" + (", ..." if len(folders) > 4 else ""))
  return ", ".join(files) or "nothing else"


def _is_root(name: str, path: pathlib.Path) -> bool:
  return any(all((path / sign).exists() for sign in signs) for signs in _SIGNS[name])


def _folders(path: pathlib.Path) -> Iterator[pathlib.Path]:
  try:
    found = sorted(entry for entry in path.iterdir() if entry.is_dir())
  except OSError:  # no right to look
    return
  yield from found[:_FOLDERS_READ]
