"""The page of accelerators: messages against counts by hand, and the committed page against its rows."""

import json
import math

from benchmarks import accelerators
from rc_jax.costs import chips
from tests.support.paths import ROOT

MESSAGES = [
  {"kind": "all-reduce", "count": 10, "size": 9e9, "largest": 9e9},
  {"kind": "all-gather", "count": 2, "size": 3e9, "largest": 3e9},
]


def test_the_time_of_messages_equals_counts_by_hand() -> None:
  h100 = chips.GPUS["h100"].name
  sent = 2 * 9e9 + 3e9
  seconds = accelerators.message_seconds
  assert math.isclose(seconds("h100:1", h100, MESSAGES), 12 * 10e-6)  # nothing is sent
  assert math.isclose(seconds("h100:8", h100, MESSAGES), 12 * 10e-6 + 7 / 8 * sent / 450e9)
  # Eight network cards of 50 GB/s, and the links of a host of two GPUs.
  assert math.isclose(seconds("h100:4x8", h100, MESSAGES), 12 * 30e-6 + 31 / 32 * sent / 400e9)
  assert math.isclose(seconds("h100:4x2", h100, MESSAGES), 12 * 30e-6 + 7 / 8 * sent / 100e9)
  assert math.isclose(seconds("v5e:4x8", "TPU v5 lite", MESSAGES), 12 * 2 * 12e-6 + 31 / 32 * sent / 200e9)


def test_a_batch_is_the_papers_on_up_to_eight_devices() -> None:
  sizes = [accelerators.batch_size("configs/ade20k.py:resnet101", devices) for devices in (1, 8, 64)]
  assert sizes == [16, 16, 128]


def test_a_later_row_wins_unless_it_has_no_times(tmp_path) -> None:
  path = tmp_path / "rows.jsonl"
  key = {"recipe": "a", "topology": "v5e:2x4"}
  made = [{"fast": True, "n": 1}, {"fast": False, "n": 2}, {"fast": True, "n": 3}]
  path.write_text("".join(json.dumps({**key, **row}) + "\n" for row in made))
  assert accelerators.read_rows(path)["a", "v5e:2x4"]["n"] == 2
  path.write_text(path.read_text() + json.dumps({**key, "fast": False, "n": 4}))
  assert accelerators.read_rows(path)["a", "v5e:2x4"]["n"] == 4


def test_the_committed_page_shows_the_committed_rows() -> None:
  rows = accelerators.read_rows(accelerators.ROWS)
  assert {recipe for recipe, _ in rows} == set(accelerators.RECIPES)
  assert (ROOT / "docs" / "accelerators.md").read_text() == accelerators.page(accelerators.ordered(rows))
