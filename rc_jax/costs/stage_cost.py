"""The cost of each stage of a network: parameters, operations, and memory kept for the backward pass.

The network is traced and not run. Flax names the scope of every operation by the path of its module, and parameters
have such paths too. Cut at the second level, ``backbone/layer3`` or ``head/aspp``, these paths are the stages of any
backbone and any head.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import (
  ClosedJaxpr,
  DebugInfo,
  Jaxpr,
  JaxprEqn,
  Literal,
  Var,
  jaxpr_as_fun,
  jaxprs_in_params,
)

from rc_jax.models.network import Network, Tree

Path = tuple[str, ...]

LEVELS = 2  # of a module's path, that name a stage

# Operations are counted in XLA's program, not in the machine code. On a CPU this halves the time to compile.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {"cpu": {"xla_backend_optimization_level": "0"}}


@dataclasses.dataclass(frozen=True)
class StageCost:
  """One stage of a network in training, for one image.

  Attributes:
    name: path of its module. A normalisation on the same level belongs to the module before it:
      ``backbone/conv1+bn1``.
    shapes: ``[h,w,C]`` of its arrays that other stages or the caller of the network read; each shape once.
    parameters: number of its parameters.
    predicting: number of its parameters that prediction reads.
    flops: operations of the forward pass as XLA counts them for the attached platform: elementwise ones too, and those
      of a convolution without those on padding.
    compiled: whether they are counted in the compiled program. XLA cannot count inside the calls of a library, such as
      a GPU's convolutions; then this is False, and operations are counted before optimisation.
    dense_flops: ``2 x`` multiply-adds of convolutions and matrix products, padding included, as papers count them.
    kept_bytes: arrays of this stage that ``jax.vjp`` of the network keeps for the gradient of the parameters, each
      once, without parameters and their copies in another dtype.
  """

  name: str
  shapes: tuple[tuple[int, ...], ...]
  parameters: int
  predicting: int
  flops: float
  compiled: bool
  dense_flops: int
  kept_bytes: int


@dataclasses.dataclass(frozen=True)
class NetworkCost:
  """All stages, in the order in which an image passes them, and the grid ``(h,w)`` of the logits."""

  stages: tuple[StageCost, ...]
  grid: tuple[int, int]


class _Partition(NamedTuple):
  """The stages of a traced network: the stage of each equation, and the parameters of each stage by its name."""

  stage_of: list[int]
  parameters: dict[str, list[Path]]


def measure(network: Network, image_size: tuple[int, int], count_flops: bool = True) -> NetworkCost:
  """Measures each stage of a network; compiles each stage alone and runs none.

  Operations of a module between two of its submodules (a pooling, a concatenation, dropout) count with the submodule
  before them.

  Args:
    network: functions of the network.
    image_size: ``(H,W)`` of the image.
    count_flops: whether to compile each stage, which takes most of the time; without it ``flops`` are 0.

  Returns:
    The costs; together the stages have every parameter of the network.

  Raises:
    ValueError: of ``network.init``.
  """
  variables = network.init(jax.random.key(0), image_size=image_size)
  params, batch_stats = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(variables))
  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
  arguments = (params, batch_stats, images, jax.eval_shape(lambda: jax.random.key(0)))

  # Without the new statistics, which no stage reads.
  train = jax.make_jaxpr(lambda *arguments: network.train(*arguments)[0], return_shape=True)
  traced, outputs = train(*arguments)
  program: Jaxpr = traced.jaxpr
  partition = _partition(program.eqns, params, batch_stats)
  kept = _kept_bytes(program, traced.consts, partition, arguments)
  of_image = _reached(program, program.invars[len(jax.tree.leaves((params, batch_stats))) :])
  sizes = {path: math.prod(leaf.shape) for path, leaf in _leaves(params)}
  read = _read_in_prediction(network, params, batch_stats, images)

  costs = []
  for stage, (name, paths) in enumerate(partition.parameters.items()):
    inside = [equation for equation, of in zip(program.eqns, partition.stage_of, strict=True) if of == stage]
    outside = [equation for equation, of in zip(program.eqns, partition.stage_of, strict=True) if of != stage]
    wanted = _variables([atom for equation in outside for atom in equation.invars] + program.outvars)
    results = [var for equation in inside for var in equation.outvars if var in wanted]
    shapes = [_array(var).shape[1:] for var in results if var in of_image and _array(var).ndim > 1]
    flops, compiled = _flops(inside, results) if count_flops else (0.0, True)
    costs.append(
      StageCost(
        name=name,
        shapes=tuple(dict.fromkeys(shapes)),
        parameters=sum(sizes[path] for path in paths),
        predicting=sum(sizes[path] for path in paths if path in read),
        flops=flops,
        compiled=compiled,
        dense_flops=sum(map(_dense_flops, inside)),
        kept_bytes=kept[stage],
      )
    )
  return NetworkCost(tuple(costs), outputs.logits.shape[1:3])


def forward_flops(network: Network, image_size: tuple[int, int]) -> int:
  """Returns ``2 x`` multiply-adds of all convolutions and products of one image in training, padding included."""
  variables = network.init(jax.random.key(0), image_size=image_size)
  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
  traced = jax.make_jaxpr(network.train)(*variables, images, jax.eval_shape(lambda: jax.random.key(0)))
  return sum(map(_dense_flops, traced.jaxpr.eqns))


def _partition(equations: Sequence[JaxprEqn], params: Tree, batch_stats: Tree) -> _Partition:
  """Divides a traced network into stages along the paths of its modules."""
  paths = [_module_path(str(equation.source_info.name_stack)) for equation in equations]
  traced = {path[:LEVELS] for path in paths}
  leaves = [path for path, _ in _leaves(params)]

  def stage(leaf: Path) -> Path:
    # A module in nn.jit or nn.remat is one equation of the module around it.
    module = leaf[:-1][:LEVELS]
    return module if module in traced else module[:1]

  known = {stage(leaf) for leaf in leaves}
  direct = [path[:LEVELS] if path[:LEVELS] in known else None for path in paths]
  # A module without parameters, or without parameters in its submodules, is one stage.
  divided = {stage[0] for stage in direct if stage}
  for i, path in enumerate(paths):
    if path and path[0] not in divided:
      direct[i] = path[:1]
  nearest = _fill(direct, paths)

  order = list(dict.fromkeys([*filter(None, direct), *map(stage, leaves)]))
  norms = {path[:-1] for path, _ in _leaves(batch_stats)}
  members: list[list[Path]] = []
  for path in order:
    if path in norms and len(path) == LEVELS and members and members[-1][0][0] == path[0]:
      members[-1].append(path)
    else:
      members.append([path])
  index = {path: i for i, paths in enumerate(members) for path in paths}
  names = ["/".join(paths[0]) + "".join(f"+{path[-1]}" for path in paths[1:]) for paths in members]
  parameters: dict[str, list[Path]] = {name: [] for name in names}
  for leaf in leaves:
    parameters[names[index[stage(leaf)]]].append(leaf)
  return _Partition([index[path] for path in nearest], parameters)


def _fill(direct: list[Path | None], paths: list[Path]) -> list[Path]:
  """Gives an equation without a stage the stage of the nearest one before it in its module, or else after it."""
  stages = list(direct)
  for order in (range(len(stages)), range(len(stages) - 1, -1, -1)):
    last: dict[str, Path] = {}
    for i in order:
      module = paths[i][0] if paths[i] else ""
      stage = direct[i]
      if stage:
        last[stage[0]] = last[""] = stage
      elif stages[i] is None:
        stages[i] = last.get(module)
  return [stage for stage in stages if stage]


def _module_path(scopes: str) -> Path:
  """Returns the path of a module, ``Segmenter/backbone/layer1/0`` -> ``("backbone", "layer1", "0")``.

  Flax names the scope of a method other than ``__call__`` ``module.method``. If a module calls such a method of itself,
  that scope follows the module's: ``Segmenter/head/head.method``.
  """
  path: list[str] = []
  for scope in scopes.split("/"):
    module, method, _ = scope.partition(".")
    if not (method and path and path[-1] == module):
      path.append(module)
  return tuple(path[1:])


def _leaves(tree: Tree) -> list[tuple[Path, Any]]:
  return [(tuple(str(key.key) for key in path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def _variables(atoms: Iterable[Any]) -> set[Var]:
  return {atom for atom in atoms if not isinstance(atom, Literal)}


def _reached(program: Jaxpr, sources: Iterable[Var]) -> set[Var]:
  """Returns the variables that depend on some of a program's inputs, these included."""
  reached = set(sources)
  for equation in program.eqns:
    if not reached.isdisjoint(_variables(equation.invars)):
      reached.update(equation.outvars)
  return reached


def _read_in_prediction(
  network: Network, params: Tree, batch_stats: Tree, images: jax.ShapeDtypeStruct
) -> set[Path]:
  """Returns the paths of the parameters on which a prediction depends."""
  program = jax.make_jaxpr(network.predict)(params, batch_stats, images).jaxpr
  needed = _variables(program.outvars)
  for equation in reversed(program.eqns):
    if not needed.isdisjoint(equation.outvars):
      needed |= _variables(equation.invars)
  inputs = program.invars[: len(jax.tree.leaves(params))]
  return {path for (path, _), var in zip(_leaves(params), inputs, strict=True) if var in needed}


def _kept_bytes(
  program: Jaxpr, consts: Sequence[Any], partition: _Partition, arguments: tuple[Any, ...]
) -> list[int]:
  """Returns, for each stage, the bytes of its forward pass that the backward pass keeps.

  Args:
    program: the network, ``(params, batch_stats, images, key) -> outputs``.
    consts: values of the program's constants.
    partition: the stage of each of its equations.
    arguments: shapes of its arguments.
  """

  def kept(params: Tree, *rest: Any) -> list[jax.Array]:
    def outputs(params: Tree) -> list[jax.Array]:
      values = dict(zip(program.constvars, consts, strict=True))
      values.update(zip(program.invars, jax.tree.leaves((params, *rest)), strict=True))
      for equation, stage in zip(program.eqns, partition.stage_of, strict=True):
        with jax.named_scope(f"stage {stage}"):
          _evaluate(equation, values)
      return [values[var] for var in program.outvars if not isinstance(var, Literal)]

    return jax.tree.leaves(jax.vjp(outputs, params)[1])

  traced = jax.make_jaxpr(kept)(*arguments).jaxpr
  of_image = _reached(traced, traced.invars[len(jax.tree.leaves(arguments[:2])) :])
  kept_vars = _variables(traced.outvars) & of_image
  sizes = [0] * len(partition.parameters)
  for equation in traced.eqns:
    stage = re.search(r"stage (\d+)", str(equation.source_info.name_stack))
    for var in kept_vars.intersection(equation.outvars):
      assert stage, f"{equation.primitive} belongs to no stage"
      sizes[int(stage[1])] += _array(var).size * _array(var).dtype.itemsize
  return sizes


def _evaluate(equation: JaxprEqn, values: dict[Var, Any]) -> None:
  """Traces one equation again; a choice by platform becomes the choice of the attached platform."""
  inputs = list(dict.fromkeys(atom for atom in equation.invars if not isinstance(atom, Literal)))
  arrays = [values[var] for var in inputs]
  named = DebugInfo(equation.primitive.name, equation.primitive.name, None, None)
  alone = Jaxpr([], inputs, equation.outvars, [equation], equation.effects, named)
  function = jaxpr_as_fun(ClosedJaxpr(alone, ()))
  if equation.primitive.name == "platform_index":
    with jax.ensure_compile_time_eval():
      outputs = function(*arrays)
  elif equation.primitive.name == "cond" and not isinstance(arrays[0], jax.core.Tracer):
    # With all branches, the backward pass would keep the arrays of every platform.
    branch = jaxpr_as_fun(equation.params["branches"][int(arrays[0])])
    outputs = branch(
      *(atom.val if isinstance(atom, Literal) else values[atom] for atom in equation.invars[1:])
    )
  else:
    outputs = function(*arrays)
  values.update(zip(equation.outvars, outputs, strict=True))


def _flops(equations: Sequence[JaxprEqn], results: Sequence[Var]) -> tuple[float, bool]:
  """Returns XLA's count of operations for equations as one program, and whether it counted the compiled program."""
  if not results:
    return 0.0, True
  made = {var for equation in equations for var in equation.outvars}
  needed = [atom for equation in equations for atom in equation.invars if not isinstance(atom, Literal)]
  inputs = [var for var in dict.fromkeys(needed) if var not in made]

  def run(*arrays: jax.Array) -> list[jax.Array]:
    values: dict[Var, Any] = dict(zip(inputs, arrays, strict=True))
    for equation in equations:
      _evaluate(equation, values)
    return [values[var] for var in results]

  lowered = jax.jit(run).lower(*map(_array, inputs))
  compiled = lowered.compile(compiler_options=COMPILER_OPTIONS.get(jax.default_backend()))
  countable = "custom-call" not in (compiled.as_text() or "")
  costs = (compiled if countable else lowered).cost_analysis()
  return float((costs or {}).get("flops", 0)), countable


def _dense_flops(equation: JaxprEqn) -> int:
  params, inputs, outputs = equation.params, [*map(_array, equation.invars)], [*map(_array, equation.outvars)]
  if equation.primitive.name == "conv_general_dilated":
    kernel = inputs[1].shape
    return 2 * outputs[0].size * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
  if equation.primitive.name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * outputs[0].size * math.prod(inputs[0].shape[axis] for axis in contracted)
  inner = [sum(map(_dense_flops, jaxpr.eqns)) for jaxpr in jaxprs_in_params(params)]
  if equation.primitive.name == "cond":
    return max(inner)  # the form of a convolution that also computes on padding
  return sum(inner) * params.get("length", 1)


def _array(atom: Var | Literal) -> jax.ShapeDtypeStruct:
  aval: Any = atom.aval
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
