"""Fonts for names in pictures: Pillow's, or the first one of this system that has the letters.

Pillow's font has the letters of English. A letter that a font lacks would be drawn as an empty box.
"""

import functools
import os
import pathlib
import sys
import threading
import unicodedata
from collections.abc import Iterable, Iterator

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from rc_jax.console import say
from rc_jax.data import DatasetInfo

_FOLDERS = {
  "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
  "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
  "win32": ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
}
_SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
# Parts of the names of fonts with the letters of many languages: these are tried first.
_WIDE = (
  *(
    "dejavusans.",
    "notosans-regular",
    "liberationsans-regular",
    "arial.",
    "notosanscjk-regular",
    "notosanscjk",
  ),
  *("sourcehansans", "droidsansfallback", "wqy", "arialunicode", "arial unicode", "pingfang", "hiragino"),
  *("msyh", "yugoth", "malgun"),
)
_MOST_FONTS = 300  # that are opened
_ABSENT = "\U0010fffe"  # no character: fonts draw the same box for it as for all that they lack
_SIZE = 16  # pixels, for the comparison with that box
_REPLACEMENT = "?"

_lock = threading.Lock()


def font_of(texts: Iterable[str], size: int) -> FreeTypeFont | ImageFont.ImageFont:
  """Returns the font that has most letters of some texts, Pillow's where it has them all.

  Args:
    texts: to write.
    size: of the letters, in pixels.
  """
  return _load(_path_for(frozenset("".join(texts))), size)


def drawable(text: str) -> str:
  """Returns a text in which simpler letters or ``?`` stand for those that no font of this system has."""
  path = _path_for(frozenset(text))
  lacking = _lacking(path, frozenset(text))
  return "".join(_simpler(letter, path) if letter in lacking else letter for letter in text)


def drawable_names(info: DatasetInfo) -> tuple[str, ...]:
  """Returns the names of the classes as pictures show them; ids and what can be drawn stand for the others.

  Args:
    info: names and ids.
  """
  with _lock:  # threads draw predictions, and only one may print
    return _drawable_names(info.class_names, tuple(info.label_ids.tolist()))


@functools.cache
def _drawable_names(names: tuple[str, ...], label_ids: tuple[int, ...]) -> tuple[str, ...]:
  # One font for all, so that a legend has one.
  path = _path_for(frozenset("".join(names)))
  drawn, replaced = [], []
  for name, label_id in zip(names, label_ids, strict=True):
    lacking = _lacking(path, frozenset(name))
    if lacking:
      replaced.append(name)
      simpler = "".join(_simpler(letter, path) if letter in lacking else letter for letter in name)
      name = f"id {label_id} {simpler}" if set(simpler) - {_REPLACEMENT, " "} else f"id {label_id}"
    drawn.append(name)
  if replaced:
    more = ", ..." if len(replaced) > 3 else ""
    say(
      f"pictures: no font of this system has the letters of {', '.join(replaced[:3])}{more}: pictures show the ids of "
      "these classes; install a font that has them, such as Noto Sans CJK"
    )
  return tuple(drawn)


@functools.cache
def _path_for(letters: frozenset[str]) -> str | None:
  """Returns the path of the font that lacks the fewest letters; None for Pillow's, which wins where all are equal."""
  best, fewest = None, len(_lacking(None, letters))
  for path in _system_fonts() if fewest else ():
    count = len(_lacking(path, letters))
    if count < fewest:
      best, fewest = path, count
    if not fewest:
      break
  return best


@functools.cache
def _lacking(path: str | None, letters: frozenset[str]) -> frozenset[str]:
  try:
    font = _load(path, _SIZE)
    box = _drawn(font, _ABSENT)
    # Spaces have no pixels, as the box of some fonts has none.
    return frozenset(letter for letter in letters if not letter.isspace() and _drawn(font, letter) == box)
  except (OSError, ValueError):  # a damaged font, or one of a kind that Pillow does not read
    return letters


def _drawn(font: FreeTypeFont | ImageFont.ImageFont, letter: str) -> tuple[tuple[int, int], bytes]:
  mask = font.getmask(letter)
  return mask.size, bytes(mask)


def _simpler(letter: str, path: str | None) -> str:
  """Returns the letter without its accents where the font has it so, and ``?`` otherwise."""
  plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
  return plain if plain != letter and not _lacking(path, frozenset(plain)) else _REPLACEMENT


def _load(path: str | None, size: int) -> FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size=size) if path is None else ImageFont.truetype(path, size)


@functools.cache
def _system_fonts() -> tuple[str, ...]:
  """Returns the paths of this system's fonts, those with the letters of many languages first."""
  paths = [path for folder in font_folders() for path in _fonts_below(folder)]

  def rank(path: pathlib.Path) -> tuple[int, str]:
    name = path.name.lower()
    return next((place for place, part in enumerate(_WIDE) if part in name), len(_WIDE)), str(path)

  return tuple(str(path) for path in sorted(paths, key=rank)[:_MOST_FONTS])


def font_folders() -> tuple[pathlib.Path, ...]:
  """Returns the folders in which this system keeps fonts."""
  return tuple(pathlib.Path(os.path.expanduser(folder)) for folder in _FOLDERS.get(sys.platform, ()))


def _fonts_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  for parent, _, names in os.walk(folder):
    yield from (pathlib.Path(parent) / name for name in names if name.lower().endswith(_SUFFIXES))
