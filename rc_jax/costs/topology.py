"""Meshes of TPU slices and GPUs that are not attached, to compile for them."""

import importlib.util
import os
import re
from typing import Any

from jax.experimental import topologies
from jax.sharding import Mesh

from rc_jax.costs.chips import GPUS, xla_description
from rc_jax.files import one_line
from rc_jax.sharding import mesh_of

EXAMPLES = (
  f"v5e:2x4, v6e:4x8, v5p:2x2x2 or v4:2x2x4; {', '.join(GPUS)}, such as h100:8, or h100:2x8 for 2 hosts"
)


def topology_mesh(name: str) -> Mesh:
  """Returns the mesh of devices that are not attached.

  Args:
    name: a TPU's generation and the chips along each axis, ``v5e:4x8``, ``v5p:2x2x4``; or a GPU of `GPUS` and the GPUs
      of a host, ``h100:8``, or hosts and the GPUs of each, ``h100:2x8``.

  Raises:
    ValueError: there is no such device, or the package that compiles for it is not installed; one line.
  """
  kind, _, size = name.partition(":")
  return _gpu_mesh(name, kind, size) if kind in GPUS else _tpu_mesh(name)


def _gpu_mesh(name: str, kind: str, size: str) -> Mesh:
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", size):
    raise ValueError(f"--topology={name}: expected GPUs of a host, {kind}:8, or hosts and GPUs, {kind}:2x8")
  if _find("jax_plugins") is None or _find("jax_plugins.xla_cuda13") is None:
    raise ValueError(
      f"--topology={name}: needs JAX's plugin for CUDA, but no GPU and no CUDA: pip install 'rc_jax[gpu-compile]'"
    )
  hosts, _, gpus = size.rpartition("x")
  # Partitions, hosts of each, GPUs of each.
  shape = f"1x{hosts or 1}x{gpus}"
  described = topologies.get_topology_desc(
    platform="cuda", target_config=xla_description(GPUS[kind]), topology=shape
  )
  return mesh_of(described.devices)


def _tpu_mesh(name: str) -> Mesh:
  if _find("libtpu") is None:
    raise ValueError(f"--topology={name}: needs libtpu, which needs no TPU: pip install 'rc_jax[tpu]'")
  # Otherwise libtpu queries a cloud's metadata server for its machine, and logs errors where there is none.
  for variable, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
    os.environ.setdefault(variable, value)
  try:
    return mesh_of(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
  except Exception as error:
    reason = one_line(error)
    raise ValueError(
      f"--topology={name}: no such devices ({reason}); expected a generation and its chips along each axis, or a "
      f"GPU: {EXAMPLES}"
    ) from error


def _find(module: str) -> Any:
  return importlib.util.find_spec(module)
