"""The classes of a data set: names, colours, ids, and the rules of its benchmark."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal

import numpy as np

IGNORE_LABEL = 255

AbsentClass = Literal["unless_predicted", "not_in_truth", "zero"]


def no_mistake(*ids: Set[int]) -> str:
  """Knows no mistake in any ids: returns ``""``."""
  del ids
  return ""


@dataclasses.dataclass(frozen=True)
class IdMistakes:
  """The wrong ids that labels of a data set often have, so that an error can name the cause and the remedy.

  The functions return a noun phrase with the remedy, such as ``"train ids: give the *_labelIds.png"``, or ``""``. They
  are defined at the top level of a module, because worker processes receive splits by pickling.

  Attributes:
    in_label: ``(ids, unknown)``, the ids of one label and those that the data set lacks. It is called for each label,
      because some wrong ids are also ids of the data set.
    in_split: ``(ids,)``, all ids of a split, for mistakes that no single label shows.
    remedy: the advice for an unknown id where ``in_label`` returns ``""``.
  """

  in_label: Callable[[Set[int], Set[int]], str] = no_mistake
  in_split: Callable[[Set[int]], str] = no_mistake
  remedy: str = "convert the labels, or check dataset.name"


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
  """The classes of a data set, in the order of their train ids ``0..N-1``.

  Attributes:
    name: the data set's name in ``config.dataset.name``.
    class_names: ``N`` names.
    palette: uint8 ``[N,3]``, the RGB colour of each class in pictures.
    label_ids: int ``[N]``, train id -> the data set's id, in which predictions are written.
    ignore_label: the value of pixels that count nowhere.
    absent_class: what the mean IoU does with a class without true positives in the evaluated images: left out
      unless it was predicted, left out if the ground truth lacks it, or scored 0. Each benchmark has a rule of these.
    categories: of each class, where the benchmark also scores groups of classes; otherwise empty.
    mistakes: wrong ids that are common in labels of this data set.
    made_up_colors: train ids of the classes whose colour in ``palette`` neither the release nor the user states. The
      colours in label files are not compared with these.
    merged_ids: further ids of the labels -> the train id of the class that they are part of.
    colors_in_labels: colour -> the ids that may have it in the palette of a label, where classes are merged or left
      out; empty: as ``palette`` states them.
    notes: sentences on what is odd in the table of the classes; training and inspection print them.
  """

  name: str
  class_names: tuple[str, ...]
  palette: np.ndarray
  label_ids: np.ndarray
  ignore_label: int = IGNORE_LABEL
  absent_class: AbsentClass = "unless_predicted"
  categories: tuple[str, ...] = ()
  mistakes: IdMistakes = IdMistakes()
  made_up_colors: frozenset[int] = frozenset()
  merged_ids: Mapping[int, int] = dataclasses.field(default_factory=dict)
  colors_in_labels: Mapping[tuple[int, ...], Sequence[int]] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def ids_by_color(self) -> dict[tuple[int, ...], list[int]]:
    """Returns each colour that the release or the user states, with the ids of its classes."""
    if self.colors_in_labels:
      return {color: list(ids) for color, ids in self.colors_in_labels.items()}
    ids: dict[tuple[int, ...], list[int]] = {}
    for label, (color, own_id) in enumerate(zip(self.palette.tolist(), self.label_ids.tolist(), strict=True)):
      if label not in self.made_up_colors:
        ids.setdefault(tuple(color), []).append(own_id)
    return ids

  def table(self) -> dict[str, Any]:
    """Returns the classes as JSON knows them, for records of what was made for them (``rc_jax.class_table``)."""
    # Only where there are such, so that the record of another data set is that of earlier versions.
    merged = {str(own_id): label for own_id, label in sorted(self.merged_ids.items())}
    return {
      "dataset": self.name,
      "class_names": list(self.class_names),
      "palette": self.palette.tolist(),
      "label_ids": self.label_ids.tolist(),
      "ignore_label": self.ignore_label,
      "absent_class": self.absent_class,
      **({"merged_ids": merged} if merged else {}),
    }
