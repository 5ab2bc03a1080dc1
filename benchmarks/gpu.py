"""Times a recipe's train step on a GPU, also against PyTorch, and each form of a convolution's gradients.

  python -m benchmarks.gpu convolutions [--batch_size=8]
  python -m benchmarks.gpu step --config=configs/cityscapes.py [--rounds=20] [--top=60]
  python -m benchmarks.gpu torch --config=configs/cityscapes.py [--rounds=20]
  python -m benchmarks.gpu numerics --config=configs/demo.py

``step`` times the step with full banks and with cross entropy alone, in turn; ``--top`` also prints kernels of a trace.
``torch`` times the same network in PyTorch (bfloat16 autocast, channels last, ``torch.compile``) with cross entropy
alone: loss, gradients, SGD. ``numerics`` compares one float32 step on the GPU with the same step on the CPU. Each
prints JSON lines. ``benchmarks/gpu_recipes.py`` runs several of these on one GPU.
"""

import argparse
import dataclasses
import functools
import gzip
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu_trace, steps
from rc_jax import data, models, sharding
from rc_jax.config import Config, load_recipe
from rc_jax.costs import chips
from rc_jax.files import one_line
from rc_jax.ops import conv_taps, conv_xla
from rc_jax.training import initial_state

# Height, input channels, output channels, kernel size, stride and dilation of ResNet-50's convolutions at crop 769.
CONVOLUTIONS = (
  *((97, 256, 256, 3, 1, 2), (97, 512, 512, 3, 1, 4), (97, 512, 512, 3, 1, 8), (97, 512, 512, 3, 1, 16)),
  *(
    (97, 2048, 256, 3, 1, 12),
    (97, 2048, 256, 3, 1, 24),
    (97, 2048, 256, 3, 1, 36),
    (97, 1280, 256, 3, 1, 1),
  ),
  *((193, 64, 64, 3, 1, 1), (193, 128, 128, 3, 2, 1), (97, 1024, 256, 1, 1, 1), (97, 512, 2048, 1, 1, 1)),
  *((385, 64, 128, 3, 1, 1), (193, 64, 256, 1, 1, 1)),
)


def median_ms(function: Callable[[], Any], rounds: int) -> float:
  """Returns the median time of a call in milliseconds, after two calls that are not counted."""
  for _ in range(2):
    jax.block_until_ready(function())
  seconds = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(function())
    seconds.append(time.perf_counter() - start)
  return 1e3 * statistics.median(seconds)


def gradient_by_product(
  dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int
) -> jax.Array:
  x = x[:, ::stride, ::stride]
  return jnp.einsum("bhwc,bhwo->co", x, dy, preferred_element_type=jnp.float32)[None, None]


def convolutions(arguments: argparse.Namespace) -> None:
  """Times forward, input gradient and each form of the kernel gradient of ``CONVOLUTIONS`` in bfloat16."""
  for height, inputs, outputs, size, stride, dilation in CONVOLUTIONS:
    keys = jax.random.split(jax.random.key(0), 3)
    batch, out = arguments.batch_size, -(-height // stride)
    x = jax.random.normal(keys[0], (batch, height, height, inputs), jnp.bfloat16)
    dy = jax.random.normal(keys[1], (batch, out, out, outputs), jnp.bfloat16)
    kernel = jax.random.normal(keys[2], (size, size, inputs, outputs), jnp.bfloat16)
    options = {"stride": stride, "dilation": dilation}
    forms: dict[str, Callable[..., Any]] = {
      "forward": lambda dy, x, kernel, **o: conv_xla.forward(x, kernel, **o),
      "input gradient": conv_xla.input_gradient,
      "kernel gradient, transposed": conv_xla.transposed_kernel_gradient,
      "kernel gradient, float32 result": conv_xla.kernel_gradient,
    }
    if size > 1:
      forms["kernel gradient, taps"] = conv_taps.kernel_gradient
    if dilation > 1:
      forms["kernel gradient, phases"] = conv_xla.phases_kernel_gradient
    if size == 1:
      forms["kernel gradient, product"] = gradient_by_product
    tera = 2 * batch * out * out * inputs * outputs * size**2 / 1e12
    row: dict[str, Any] = {
      "convolution": [height, inputs, outputs, size, stride, dilation],
      "ms_at_700": tera / 0.7,
    }
    reference = None
    for name, form in forms.items():
      start = time.perf_counter()
      try:
        function = jax.jit(functools.partial(form, **options))
        result = np.asarray(function(dy, x, kernel), np.float32)
        if "transposed" in name:
          reference = result
        milliseconds = median_ms(functools.partial(function, dy, x, kernel), 10)
        row[name] = {"ms": round(milliseconds, 3), "first_s": round(time.perf_counter() - start, 1)}
        if name.startswith("kernel") and reference is not None:
          row[name]["difference"] = float(np.linalg.norm(result - reference) / np.linalg.norm(reference))
      except Exception as error:  # the table continues with the other forms
        row[name] = {"error": one_line(error)}
    print(json.dumps(row), flush=True)


def compiled_step(config: Config, mesh: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
  """Returns the compiled step without norms, as nearly all steps of a run, its state and batch, and its size."""
  classes = data.info(config.dataset.name, config.dataset.root).num_classes
  network = models.build(config.model, classes)
  images = steps.TRAINING_IMAGES[config.dataset.name]
  state, update_rule = initial_state.initial_state(config, network, images, mesh, fresh=False)
  if state.bank is not None:
    state = dataclasses.replace(state, bank=steps.full_bank(state.bank))
  state = initial_state.in_training_formats(state, mesh)
  batch = sharding.put_batch(steps.made_up_batch(config, classes), mesh)
  step = initial_state.jitted_step(config, network, update_rule, state, mesh, norms=False)
  start = time.perf_counter()
  compiled = step.lower(state, batch).compile()
  memory: Any = compiled.memory_analysis()
  said = {
    "compile_s": round(time.perf_counter() - start, 1),
    "temporaries_gb": memory.temp_size_in_bytes / 1e9,
  }
  return compiled, state, batch, said


def use_forms(names: str) -> None:
  """Replaces kernel gradients: ``transposed`` for dilated convolutions, ``phases`` for ASPP's, ``product`` for 1x1."""
  transposed = conv_xla.transposed_kernel_gradient
  if "transposed" in names:
    conv_xla.phases_kernel_gradient = conv_xla.product_kernel_gradient = transposed
  if "phases" in names:
    conv_xla.product_kernel_gradient = conv_xla.phases_kernel_gradient
  if "product" in names:

    def gradient(dy: jax.Array, x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
      form = gradient_by_product if kernel.shape[0] == 1 else transposed
      return form(dy, x, kernel, stride=stride, dilation=dilation)

    conv_xla.transposed_kernel_gradient = gradient


def wait_for_turn(arguments: argparse.Namespace) -> None:
  """Says on standard output that all is compiled and, with ``--wait``, reads a line before anything is timed."""
  if arguments.wait:
    print(json.dumps({"ready": case(arguments)}), flush=True)
    sys.stdin.readline()


def step(arguments: argparse.Namespace) -> None:
  """Times the step with the contrastive loss and with cross entropy alone, in turn."""
  if arguments.forms:
    use_forms(arguments.forms)
  mesh = sharding.global_mesh()
  runs: dict[str, list[Any]] = {}
  scopes = {"RegionContrast": "bank"}
  if not (arguments.forms or arguments.contrast_only):
    scopes["cross entropy"] = "none"
  for name, scope in scopes.items():
    config = settings(arguments)
    config.contrast.scope = scope
    compiled, state, batch, said = compiled_step(config, mesh)
    runs[name] = [compiled, state, batch]
    print(json.dumps({"step": name, **case(arguments), **said}), flush=True)
  wait_for_turn(arguments)
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for count in range(-3, arguments.rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      run[1], metrics = run[0](run[1], run[2])
      jax.block_until_ready((run[1], metrics))
      if count >= 0:
        seconds[name].append(time.perf_counter() - start)
  for name, values in seconds.items():
    row = {"step": name, **case(arguments), **described(), **spread(values)}
    print(json.dumps(row), flush=True)
  if arguments.top:
    print_kernels(*runs["RegionContrast"], arguments)


def spread(seconds: list[float]) -> dict[str, float]:
  """Returns median, least and most of times, in milliseconds."""
  return {"ms": 1e3 * statistics.median(seconds), "least": 1e3 * min(seconds), "most": 1e3 * max(seconds)}


def print_kernels(compiled: Any, state: Any, batch: Any, arguments: argparse.Namespace) -> None:
  """Prints the kernels of a step by a trace of a few steps, beside the least times that they need."""
  count = 5
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(count):
        state, metrics = compiled(state, batch)
      jax.block_until_ready((state, metrics))
    events = gpu_trace.read_trace(folder)
  text = compiled.as_text() or ""
  if arguments.trace:
    pathlib.Path(arguments.trace + ".hlo.gz").write_bytes(gzip.compress(text.encode()))
    pathlib.Path(arguments.trace + ".json.gz").write_bytes(gzip.compress(json.dumps(events).encode()))
  gpu = chips.gpu_of(jax.devices()[0].device_kind)
  if gpu is None:
    print(f"no data sheet of {jax.devices()[0].device_kind} in rc_jax/costs/chips.py: no least times")
    return
  kernels = gpu_trace.measure(events, count, text, gpu)
  print("\n".join(gpu_trace.table(kernels, arguments.top)), flush=True)


def torch_step(arguments: argparse.Namespace) -> None:
  """Times the same network in PyTorch: cross entropy, auxiliary loss, gradients, SGD."""
  import torch

  from benchmarks.cpu_steps import torch_network

  config = settings(arguments)
  classes = data.info(config.dataset.name, config.dataset.root).num_classes
  network = torch_network(config, classes).train().cuda().to(memory_format=torch.channels_last)
  torch.set_float32_matmul_precision("high")
  compiled = torch.compile(network)
  rule = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=True)
  batch = steps.made_up_batch(config, classes)
  images = torch.from_numpy(batch["image"]).cuda().permute(0, 3, 1, 2).float()
  images = images.contiguous(memory_format=torch.channels_last)
  labels = torch.from_numpy(batch["label"]).cuda().long()

  def loss_of(logits: Any) -> Any:
    upsampled = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
    return torch.nn.functional.cross_entropy(upsampled.float(), labels, ignore_index=255)

  def update() -> None:
    with torch.autocast("cuda", torch.bfloat16):
      logits, auxiliary = compiled(images)
      loss = loss_of(logits)
      if auxiliary is not None:
        loss = loss + 0.4 * loss_of(auxiliary)
    rule.zero_grad(set_to_none=True)
    loss.backward()
    rule.step()
    torch.cuda.synchronize()

  start = time.perf_counter()
  for _ in range(2):
    update()
  first = time.perf_counter() - start
  rule.zero_grad(set_to_none=True)
  torch.cuda.empty_cache()
  wait_for_turn(arguments)
  # Only now, because it times kernels, and other processes may have used the GPU before.
  torch.backends.cudnn.benchmark = True
  torch.cuda.reset_peak_memory_stats()
  values = []
  for count in range(-5, arguments.rounds):
    start = time.perf_counter()
    update()
    if count >= 0:
      values.append(time.perf_counter() - start)
  peak = torch.cuda.max_memory_allocated() / 1e9
  row = {**spread(values), "first_two_s": first, "peak_gb": peak, "torch": torch.__version__}
  print(json.dumps({"step": "PyTorch", "config": arguments.config, **row}), flush=True)


def numerics(arguments: argparse.Namespace) -> None:
  """Compares the new state and metrics of one float32 step on the GPU with those on the CPU."""
  config = settings(arguments)
  config.model.dtype = "float32"
  config.model.dropout = 0.0
  results = []
  for device in (jax.devices("cpu")[0], jax.devices()[0]):
    mesh = jax.sharding.Mesh(np.asarray([device]), (sharding.DATA_AXIS,))
    with jax.default_matmul_precision("highest"), jax.default_device(device):
      compiled, state, batch, _ = compiled_step(config, mesh)
      results.append(jax.device_get(compiled(state, batch)))
  (state, metrics), (other_state, other_metrics) = results
  row: dict[str, Any] = {}
  for name in ("params", "batch_stats", "opt_state", "bank"):
    ours, theirs = jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(other_state, name))
    squares = sum(
      float(np.sum(np.square(np.float64(a) - np.float64(b)))) for a, b in zip(ours, theirs, strict=True)
    )
    row[name] = (squares / max(1e-30, sum(float(np.sum(np.square(np.float64(a)))) for a in ours))) ** 0.5
  row["metrics"] = {
    name: [float(metrics[name]), float(other_metrics[name])]
    for name in metrics
    if np.ndim(metrics[name]) == 0
  }
  print(json.dumps({"numerics": arguments.config, **described(), "relative difference": row}), flush=True)


def settings(arguments: argparse.Namespace) -> Config:
  """Returns the recipe with the command line's sizes."""
  config = load_recipe(arguments.config)
  config.train.batch_size = arguments.batch_size or config.train.batch_size
  if arguments.crop_size:
    config.train.crop_size = (arguments.crop_size,)
  return config


def case(arguments: argparse.Namespace) -> dict[str, str]:
  return {"config": arguments.config, "forms": arguments.forms}


def described() -> dict[str, str]:
  return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("convolutions", "step", "torch", "numerics"))
  parser.add_argument("--config", default="configs/cityscapes.py")
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--batch_size", type=int, default=0, help="default: the recipe's; 8 for convolutions")
  parser.add_argument("--crop_size", type=int, default=0, help="default: the recipe's")
  parser.add_argument("--top", type=int, default=0, help="step: so many kernels of a trace are printed")
  parser.add_argument(
    "--trace", default="", help="step with --top: files for trace and program, without the endings"
  )
  parser.add_argument(
    "--forms", default="", help="step: transposed, phases, product in place of the project's forms"
  )
  parser.add_argument("--contrast_only", action="store_true", help="step: not with cross entropy alone")
  parser.add_argument("--wait", action="store_true", help="times nothing before a line on standard input")
  arguments = parser.parse_args()
  if arguments.what == "convolutions":
    arguments.batch_size = arguments.batch_size or 8
  runs = {"convolutions": convolutions, "step": step, "torch": torch_step, "numerics": numerics}
  runs[arguments.what](arguments)


if __name__ == "__main__":
  main()
