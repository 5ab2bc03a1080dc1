"""Infers which network a file holds, as fields of ``config.model``, from the names and shapes of its arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rc_jax import models
from rc_jax.fields import Config
from rc_jax.models.network import Shapes
from rc_jax.weights.key_names import FAMILIES


class Architecture(NamedTuple):
  """A network as far as names and shapes of its arrays show it. Fields are without the prefix ``model.``.

  Attributes:
    backbone: ``backbone`` and the fields that its file infers; empty where no backbone is known. The name of a backbone
      that is not built here is a description.
    head: ``name``, ``channels``, perhaps ``aux_channels``, and the fields that the head's file infers; empty where no
      head is known.
    num_classes: ``N`` of the head's classifier; None without one.
  """

  backbone: dict[str, Any]
  head: dict[str, Any]
  num_classes: int | None

  @property
  def fields(self) -> dict[str, Any]:
    """All fields."""
    return self.backbone | self.head

  @property
  def is_built(self) -> bool:
    """Whether ``model.backbone`` takes the backbone's name."""
    return self.backbone.get("backbone") in models.BACKBONES

  def describe(self) -> str:
    """Describes the network in a clause, such as ``"pspnet on resnet50 with stem 32-32-64, 19 classes"``."""
    if not self.fields:
      return "a network"
    text = str(self.backbone.get("backbone", "an unknown backbone"))
    others = [f"{field} {value}" for field, value in self.backbone.items() if field != "backbone"]
    text += f" with {', '.join(others)}" if others else ""
    return f"{self.head['name']} on {text}, {self.num_classes} classes" if self.head else text


def from_shapes(shapes: Shapes, head: str | None = None) -> Architecture:
  """Infers the architecture of a file, or of a network of this project.

  Args:
    shapes: of all arrays by this project's names.
    head: a key of ``rc_jax.models.HEADS`` where the file's keys show it; None: found by the heads' markers.
  """
  classifier = shapes.get("head.classifier.weight")
  name = head or _head_by_markers(shapes)
  head_fields: dict[str, Any] = {}
  if name is not None and classifier is not None:
    auxiliary = shapes.get("aux_head.classifier.weight")
    head_fields = {"name": name, "channels": classifier[1]}
    head_fields |= {"aux_channels": auxiliary[1]} if auxiliary else {}
    head_fields |= models.heads()[name].fields_from_shapes(shapes)
  return Architecture(backbone_from_shapes(shapes), head_fields, classifier[0] if classifier else None)


def backbone_from_shapes(shapes: Shapes) -> dict[str, Any]:
  """Infers ``Architecture.backbone`` from the shapes of all arrays, by this project's names."""
  backbones: Mapping[str, models.Backbone] = models.backbones()
  for name, backbone in backbones.items():
    fields = backbone.fields_from_shapes(shapes)
    if fields is not None:
      return {"backbone": name} | fields
  description = next((text for each in backbones.values() if (text := each.description(shapes))), "")
  return {"backbone": description} if description else {}


def family_fields(family: str, architecture: Architecture, part: str) -> dict[str, Any]:
  """Returns the fields that a family's networks have and no shape shows, without the prefix ``model.``.

  Args:
    family: of the file.
    architecture: of the file.
    part: ``"backbone"`` or ``"all"``, the part that is imported.
  """
  fields: dict[str, Any] = {}
  if family in FAMILIES:
    fields |= FAMILIES[family].backbone_fields
    fields |= FAMILIES[family].fields if part == "all" else {}
  if architecture.is_built:
    backbone = models.backbones()[architecture.backbone["backbone"]]
    fields |= backbone.family_fields(family, architecture.backbone, part)
  if architecture.head and part == "all":
    published = models.heads()[architecture.head["name"]].published
    fields |= published[family].fields if family in published else {}
  return fields


def recorded_fields(
  recorded: Mapping[str, Any], architecture: Architecture, config_model: Config, part: str
) -> dict[str, Any]:
  """Returns the fields of a record that no shape shows and in which a network differs, without the prefix ``model.``.

  Args:
    recorded: fields of ``config.model`` of the network that the weights were trained in, as JSON knows them.
    architecture: of the weights.
    config_model: of the network that imports them.
    part: ``"backbone"`` or ``"all"``, the part that is imported.
  """
  readers: list[models.Backbone | models.Head] = [models.backbones()[config_model.backbone]]
  names = {"bn_epsilon"}
  if part == "all":
    readers.append(models.heads()[config_model.name])
    names |= {"align_corners", "output_stride"}
  fields = [field for reader in readers for field in reader.fields or () if not field.training_only]
  names |= {field.path.removeprefix("model.") for field in fields if field.path.startswith("model.")}
  return {
    name: recorded[name]
    for name in sorted(names - architecture.fields.keys())
    if name in recorded and _plain(config_model[name]) != _plain(recorded[name])
  }


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, list | tuple) else value


def _head_by_markers(shapes: Shapes) -> str | None:
  """Returns the head whose markers all occur; of several, the head with the most markers."""
  markers = {name: head.markers for name, head in models.heads().items() if head.markers}
  fitting = [
    name for name, starts in markers.items() if all(any(key.startswith(s) for key in shapes) for s in starts)
  ]
  return max(fitting, key=lambda name: len(markers[name]), default=None)
