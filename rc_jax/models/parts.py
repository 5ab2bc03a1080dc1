"""Parts of a network that a config freezes or rematerialises: the stages of its backbone, the backbone, the head."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax

from rc_jax.fields import require
from rc_jax.models.layers import BatchNorm
from rc_jax.models.network import Tree

# Keys from the top of ``params`` or ``batch_stats`` to a sub-tree.
Path: TypeAlias = tuple[str, ...]


def part_paths(
  field: str, text: str, backbone: str, stages: Mapping[str, tuple[str, ...]]
) -> tuple[Path, ...]:
  """Returns the sub-trees of the parts that a config field names.

  >>> part_paths("model.freeze", "stem, head", "resnet50", {"stem": ("conv1", "bn1")})
  (('backbone', 'conv1'), ('backbone', 'bn1'), ('head',))

  Args:
    field: path of the field, for the error message.
    text: names of parts, separated by commas; empty: none.
    backbone: name of the backbone, for the error message.
    stages: of ``Backbone.stages``.

  Raises:
    ValueError: a name is none of a part.
  """
  parts: dict[str, tuple[Path, ...]] = {
    name: tuple(("backbone", module) for module in modules) for name, modules in stages.items()
  }
  parts |= {"backbone": (("backbone",),), "head": (("head",),)}
  names = [name.strip() for name in text.split(",")] if text else []
  expected = f"parts of a network on {backbone}, separated by commas: {', '.join(parts)}"
  require(all(name in parts for name in names), field, text, expected)
  return tuple(dict.fromkeys(path for name in names for path in parts[name]))


def split(tree: Tree, paths: tuple[Path, ...]) -> tuple[Tree, Tree]:
  """Splits nested dicts in two, of which the second holds the sub-trees at ``paths``; absent ones are ignored.

  >>> split({"backbone": {"conv1": 1, "layer1": 2}, "head": 3}, (("backbone", "conv1"), ("head",)))
  ({'backbone': {'layer1': 2}}, {'backbone': {'conv1': 1}, 'head': 3})
  """
  rest: Tree = {}
  taken: Tree = {}
  for key, value in tree.items():
    below = tuple(path[1:] for path in paths if path[0] == key)
    if () in below:
      taken[key] = value
    elif below and isinstance(value, Mapping):
      kept, removed = split(dict(value), below)
      rest |= {key: kept} if kept else {}
      taken |= {key: removed} if removed else {}
    else:
      rest[key] = value
  return rest, taken


def merge(one: Tree, other: Tree) -> Tree:
  """Joins what `split` has split.

  >>> merge({"backbone": {"layer1": 2}}, {"backbone": {"conv1": 1}, "head": 3})
  {'backbone': {'layer1': 2, 'conv1': 1}, 'head': 3}
  """
  merged = dict(one)
  for key, value in other.items():
    merged[key] = merge(merged[key], value) if key in merged else value
  return merged


def lies_in(path: Path, paths: tuple[Path, ...]) -> bool:
  """Whether a path leads to, or into, one of the sub-trees at ``paths``."""
  return any(path[: len(top)] == top for top in paths)


@contextlib.contextmanager
def frozen_statistics(paths: tuple[Path, ...]) -> Iterator[None]:
  """Makes BatchNorm layers in the sub-trees at ``paths`` normalise with their running statistics, which do not move.

  Holds for modules that are called within the context, also for Flax's own BatchNorm.
  """

  def call(
    next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    module = context.module
    is_norm = isinstance(module, BatchNorm | nn.BatchNorm) and context.method_name == "__call__"
    if not (is_norm and lies_in(module.path, paths)):
      return next_call(*args, **kwargs)
    argument, value = ("train", False) if isinstance(module, BatchNorm) else ("use_running_average", True)
    if getattr(module, argument, None) is not None:
      # Flax's takes the choice as an attribute or as an argument, never as both. The module belongs to this trace.
      object.__setattr__(module, argument, value)
      return next_call(*args, **kwargs)
    x, *others = args
    return next_call(x, value, *others[1:], **{name: kwargs[name] for name in kwargs if name != argument})

  with nn.intercept_methods(call):
    yield


@contextlib.contextmanager
def rematerialised(paths: tuple[Path, ...]) -> Iterator[None]:
  """Makes the gradient compute the modules directly below ``paths`` again, in place of keeping what they computed.

  Of each such module, a block of a ResNet's stage for example, only the arguments are kept. Values and gradients are
  the same up to rounding. Holds for modules that are called within the context.

  Source: Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016.
  """
  inside = False

  def call(
    next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
  ) -> Any:
    module = context.module
    if inside or context.method_name != "__call__" or module.path[:-1] not in paths:
      return next_call(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def again(module: nn.Module, *arrays: jax.Array) -> Any:
      nonlocal inside
      given = dict(zip(places, arrays, strict=True))
      values = [given.get(place, leaf) for place, leaf in enumerate(leaves)]
      again_args, again_kwargs = jax.tree.unflatten(structure, values)
      inside = True
      try:
        return module(*again_args, **again_kwargs)
      finally:
        inside = False

    return nn.checkpoint(again)(module, *(leaves[place] for place in places))

  with nn.intercept_methods(call) if paths else contextlib.nullcontext():
    yield
