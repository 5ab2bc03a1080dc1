"""Finds labels whose names differ from those of their images in an ending, such as ``_mask``, and reads some."""

import collections
import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator, Mapping

from rc_jax.data.reading.dataset_info import DatasetInfo
from rc_jax.data.reading.decode import check_sizes, read_image, read_label

# Words without digits: a number at the end of a name counts frames.
_ENDING = re.compile(r"(?:[._-]+[A-Za-z]+)+$")


@dataclasses.dataclass(frozen=True)
class _Pair:
  """An image and a label that may belong to each other; ``endings`` are those of their keys."""

  image: str
  label: str
  endings: tuple[str, str]


def find_renames(
  info: DatasetInfo,
  train_ids: Mapping[int, int],
  images: Mapping[str, pathlib.Path],
  labels: Mapping[str, pathlib.Path],
  labels_at: str,
) -> tuple[dict[str, str], set[str]]:
  """Finds the labels that pair with an image once they are renamed.

  The first pair with each ending is read: a file with the colours of the classes, for example, is no label.

  Args:
    info: the data set's classes.
    train_ids: the data set's id -> train id or ``info.ignore_label``.
    images: key -> image path.
    labels: key -> label path.
    labels_at: the expected path of a label, with ``*`` for the key.

  Returns:
    Key of an image without label -> advice; and the keys of these labels.
  """
  by_endings: dict[tuple[str, str], list[_Pair]] = {}
  for pair in _pairs(images.keys() - labels.keys(), labels.keys() - images.keys()):
    by_endings.setdefault(pair.endings, []).append(pair)
  readable = [
    pairs
    for pairs in by_endings.values()
    if _is_pair(images[pairs[0].image], labels[pairs[0].label], train_ids, info)
  ]
  chosen = [pair for pairs in readable for pair in pairs]
  labels_of_image = collections.Counter(pair.image for pair in chosen)
  advice: dict[str, str] = {}
  explained: set[tuple[pathlib.Path, tuple[str, str]]] = set()
  for pair in sorted(chosen, key=lambda pair: pair.image):
    if labels_of_image[pair.image] > 1:
      continue
    path = labels[pair.label]
    expected = pathlib.Path(labels_at.replace("*", pair.image)).name
    name = expected[: -len(pathlib.Path(expected).suffix)] + path.suffix
    group = path.parent, pair.endings
    command = "" if group in explained else _command(path, name, pair)
    explained.add(group)
    advice[pair.image] = f"found {path.name}: rename it to {name}{command}"
  return advice, {pair.label for pair in chosen if pair.image in advice}


def _pairs(images: set[str], labels: set[str]) -> Iterator[_Pair]:
  """Yields images and labels without counterpart whose keys are equal without an ending of one or both."""
  by_base: dict[str, list[str]] = {}
  for image in images:
    by_base.setdefault(_ENDING.sub("", image), []).append(image)
  for label in sorted(labels):
    for base in _shorter(label):
      if base in images:
        yield _Pair(base, label, ("", label[len(base) :]))
        break
    else:
      longer = [image for image in by_base.get(_ENDING.sub("", label), ()) if image not in labels]
      if len(longer) == 1:
        shared = next((base for base in (label, *_shorter(label)) if longer[0].startswith(base)), None)
        if shared is not None:
          yield _Pair(longer[0], label, (longer[0][len(shared) :], label[len(shared) :]))


def _shorter(key: str) -> Iterator[str]:
  """Yields a key without one, two, ... of the words at its end."""
  match = _ENDING.search(key)
  ending = match.group() if match else ""
  for word in reversed(list(re.finditer(r"[._-]+[A-Za-z]+", ending))):
    yield key[: len(key) - len(ending) + word.start()]


def _is_pair(
  image_at: pathlib.Path, label_at: pathlib.Path, train_ids: Mapping[int, int], info: DatasetInfo
) -> bool:
  try:
    check_sizes(read_image(image_at), read_label(label_at, train_ids, info), str(image_at), str(label_at))
  except ValueError:
    return False
  return True


def _command(path: pathlib.Path, name: str, pair: _Pair) -> str:
  """Returns the end of an advice: the line for a shell that renames all labels of a folder with this ending."""
  old, new = (ending + path.suffix for ending in reversed(pair.endings))
  shared = path.name[: -len(old)]
  if shared + new != name:  # the data set's own names end in more than the key
    return ""
  loop = f'for f in *{old}; do mv -n "$f" "${{f%{old}}}{new}"; done'
  return f"; all like it: cd {shlex.quote(str(path.parent))} && {loop}"
