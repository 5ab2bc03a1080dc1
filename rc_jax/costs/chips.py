"""Accelerators by their makers' data sheets, and what XLA reads to compile for a GPU that is not attached."""

import dataclasses
from typing import NamedTuple


class Chip(NamedTuple):
  """A device by its maker's data sheet.

  Attributes:
    memory: bytes.
    peak: bfloat16 operations a second, float32 sums, no sparsity.
    bandwidth: bytes a second between memory and processor.
    clock: of a TPU, cycles a second; the compiler's estimates for a v4 count one of its two cores. 0 for a GPU, whose
      compiler estimates nothing.
    link: bytes a second that it sends to the others of its slice or host, over all links; 0 if unknown.
  """

  memory: float
  peak: float
  bandwidth: float
  clock: float = 0.0
  link: float = 0.0


@dataclasses.dataclass(frozen=True)
class Gpu:
  """An NVIDIA GPU, as far as XLA's compiler reads its description.

  Attributes:
    name: ``device_kind``.
    capability: CUDA's compute capability.
    processors: streaming multiprocessors.
    lanes: float32 units of each.
    threads: resident threads of each, at most.
    shared_memory: bytes of each.
    block_shared_memory: bytes that one block may take.
    cache: bytes of the L2 cache.
    boost: GHz.
    chip: memory and rates.
  """

  name: str
  capability: tuple[int, int]
  processors: int
  lanes: int
  threads: int
  shared_memory: int
  block_shared_memory: int
  cache: int
  boost: float
  chip: Chip

  @property
  def float32_rate(self) -> float:
    """Float32 operations a second outside the matrix units, a multiply-add being two."""
    return 2 * self.processors * self.lanes * self.boost * 1e9

  @property
  def tf32_rate(self) -> float:
    """Operations a second of float32 products that may round their operands to TF32's 10 bits."""
    return self.chip.peak / 2


# Data sheets give the bandwidth of NVLink and PCIe as the sum of both directions; a link is half of it.
GPUS = {
  "h100": Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    processors=132,
    lanes=128,
    threads=2048,
    shared_memory=228 * 2**10,
    block_shared_memory=227 * 2**10,
    cache=50 * 2**20,
    boost=1.98,
    chip=Chip(80e9, 989e12, 3.35e12, link=450e9),
  ),
  "h200": Gpu(
    name="NVIDIA H200",
    capability=(9, 0),
    processors=132,
    lanes=128,
    threads=2048,
    shared_memory=228 * 2**10,
    block_shared_memory=227 * 2**10,
    cache=50 * 2**20,
    boost=1.98,
    chip=Chip(141e9, 989e12, 4.8e12, link=450e9),
  ),
  "a100": Gpu(
    name="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    processors=108,
    lanes=64,
    threads=2048,
    shared_memory=164 * 2**10,
    block_shared_memory=163 * 2**10,
    cache=40 * 2**20,
    boost=1.41,
    chip=Chip(80e9, 312e12, 2.039e12, link=300e9),
  ),
  "l4": Gpu(
    name="NVIDIA L4",
    capability=(8, 9),
    processors=58,
    lanes=128,
    threads=1536,
    shared_memory=100 * 2**10,
    block_shared_memory=99 * 2**10,
    cache=48 * 2**20,
    boost=2.04,
    chip=Chip(24e9, 121e12, 300e9, link=32e9),
  ),
  "rtx4090": Gpu(
    name="NVIDIA GeForce RTX 4090",
    capability=(8, 9),
    processors=128,
    lanes=128,
    threads=1536,
    shared_memory=100 * 2**10,
    block_shared_memory=99 * 2**10,
    cache=72 * 2**20,
    boost=2.52,
    chip=Chip(24e9, 165e12, 1.008e12, link=32e9),
  ),
}

# By ``device_kind``. A TPU's clock follows from the peak and the operations a cycle of the matrix units. By the
# compiler's estimates, a product of 8192 x 8192 matrices then reaches 88 % (v5e), 90 % (v4, v5p) and 70 % (v6e) of the
# peak.
CHIPS = {
  "TPU v4": Chip(32 * 2**30, 275e12, 1228e9, 2 * 1.05e9, link=300e9),
  "TPU v5 lite": Chip(16 * 2**30, 197e12, 819e9, 1.5e9, link=200e9),
  "TPU v5": Chip(95 * 2**30, 459e12, 2765e9, 1.75e9, link=600e9),
  "TPU v6 lite": Chip(32 * 2**30, 918e12, 1640e9, 1.75e9, link=448e9),
  **{gpu.name: gpu.chip for gpu in GPUS.values()},
}


def gpu_of(kind: str) -> Gpu | None:
  """Returns the GPU of a ``device_kind``; None if it is not in `GPUS`."""
  return next((gpu for gpu in GPUS.values() if gpu.name == kind), None)


def xla_description(gpu: Gpu) -> str:
  """Returns XLA's ``GpuTargetConfigProto`` of a GPU as text (``xla/stream_executor/device_description.proto``)."""
  major, minor = gpu.capability
  # Without this, XLA chooses no instructions that only a Hopper has.
  extension = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.processors}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.chip.bandwidth:.0f}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.boost}
  device_memory_size: {gpu.chip.memory:.0f}
  shared_memory_per_block_optin: {gpu.block_shared_memory}
  cuda_compute_capability {{ major: {major} minor: {minor}{extension} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.name}"
"""
