"""Kernels of a trace are matched with the fusions of the program, also inside of graphs of kernels."""

import gzip
import json
import pathlib

import pytest

from benchmarks import gpu_trace
from rc_jax.costs import chips

H100 = chips.GPUS["h100"]

HLO = """\
HloModule step, is_scheduled=true

%fused_scale (p0: f32[1000,1000]) -> f32[1000,1000] {
  %p0 = f32[1000,1000]{1,0} parameter(0)
  ROOT %scaled = f32[1000,1000]{1,0} negate(%p0)
}

ENTRY %main (x: f32[1000,1000]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %loop_fusion.1 = f32[1000,1000]{1,0} fusion(%x), kind=kLoop, calls=%fused_scale, metadata={op_name="jit(step)/a/neg" deduplicated_name="loop_fusion.1"}
  %loop_fusion.2 = f32[1000,1000]{1,0} fusion(%loop_fusion.1), kind=kLoop, calls=%fused_scale, metadata={op_name="jit(step)/b/neg" deduplicated_name="loop_fusion.1"}
  ROOT %library.7 = f32[1000,1000]{1,0} custom-call(%loop_fusion.2), custom_call_target="__library"
}
"""  # noqa: E501


def event(name: str, operation: str, microseconds: float, process: int = 1) -> dict[str, object]:
  return {"ph": "X", "pid": process, "name": name, "dur": microseconds, "args": {"hlo_op": operation}}


# Two steps: a fusion by itself and in a graph, a library's kernel of another name, and a copy that is in a graph alone.
STEP = [
  event("loop_fusion_1", "loop_fusion.1", 4.0),
  event("loop_fusion_1", "command_buffer_3", 6.0),
  event("void gemm<float>", "library.7", 30.0),
  event("memcpy32_post", "command_buffer_3", 1.0),
]


def test_time_of_a_kernel_stands_beside_the_least_time_of_all_its_fusions() -> None:
  kernels = gpu_trace.measure([*STEP, *STEP], 2, HLO, H100)
  found = {each.name: each for each in kernels}
  assert list(found) == ["library_7", "loop_fusion_1", "command_buffer_3: memcpy32_post"]
  fusion = found["loop_fusion_1"]
  assert (fusion.launches, fusion.kind) == (2, "elementwise")
  assert fusion.milliseconds == pytest.approx(0.010)
  # Two fusions read and write 4 MB each.
  assert fusion.at_best == pytest.approx(1e3 * 2 * 8e6 / H100.chip.bandwidth)
  assert found["library_7"].milliseconds == pytest.approx(0.030)
  unknown = found["command_buffer_3: memcpy32_post"]
  assert (unknown.kind, unknown.at_best) == ("unknown", 0)


def test_table_begins_with_the_kernel_that_loses_most() -> None:
  kernels = gpu_trace.measure(STEP, 1, HLO, H100)
  lines = gpu_trace.table(kernels, top=1)
  assert "library_7" in lines[-1] and "0.030 ms" in lines[-1]


def test_only_events_of_gpus_are_read(tmp_path: pathlib.Path) -> None:
  names = [
    {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
    {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
  ]
  events = [*names, event("a", "a", 1.0, process=1), event("b", "b", 1.0, process=2)]
  path = tmp_path / "plugins" / "machine.trace.json.gz"
  path.parent.mkdir()
  path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
  assert [each["name"] for each in gpu_trace.read_trace(str(tmp_path))] == ["a"]
