"""The folder of compiled programs: which one, how large, and what damage, disks and other machines do to it."""

import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

from rc_jax import compilation_cache, distributed, main
from rc_jax.compilation_cache import bound, default_folder, keep_programs
from rc_jax.modes import eval as eval_mode
from rc_jax.modes import summary
from tests.support.paths import CONFIGS, ROOT


@pytest.fixture(autouse=True)
def _no_cache_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
  """Undoes what ``keep_programs`` sets. No test here compiles in this process."""
  monkeypatch.setattr(compilation_cache, "_delete_what_fails", lambda folder: None)
  yield
  jax.config.update("jax_compilation_cache_dir", None)


def test_tests_keep_no_programs_in_the_cache_of_their_user() -> None:
  assert keep_programs("") is None and jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
  ("variables", "folder"),
  [
    ({"XDG_CACHE_HOME": "/scratch/me"}, "/scratch/me/rc_jax/programs"),
    ({"XDG_CACHE_HOME": "relative"}, "HOME/.cache/rc_jax/programs"),
    ({}, "HOME/.cache/rc_jax/programs"),
  ],
)
def test_the_default_folder_lies_in_the_cache_of_the_user(variables, folder, monkeypatch, tmp_path) -> None:
  monkeypatch.setenv("HOME", str(tmp_path))
  assert str(default_folder(variables)) == folder.replace("HOME", str(tmp_path))


def test_a_folder_is_made_for_this_user_alone(tmp_path, capsys) -> None:
  folder = tmp_path / "a" / "programs"
  assert keep_programs(str(folder)) == folder and jax.config.jax_compilation_cache_dir == str(folder)
  assert folder.stat().st_mode & 0o777 == 0o700 and not capsys.readouterr().out


def test_the_variable_of_jax_wins_and_off_is_off(tmp_path, monkeypatch) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert keep_programs(compilation_cache.OFF) is None and jax.config.jax_compilation_cache_dir is None
  jax.config.update("jax_compilation_cache_dir", "/elsewhere")  # as JAX does with its variable
  assert (
    keep_programs(str(tmp_path / "ours")) is None and jax.config.jax_compilation_cache_dir == "/elsewhere"
  )
  assert not list(tmp_path.iterdir())


def test_several_processes_need_a_folder_that_is_named(tmp_path, monkeypatch) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert keep_programs("", several_processes=True) is None and not list(tmp_path.iterdir())
  assert keep_programs(str(tmp_path / "shared"), several_processes=True) == tmp_path / "shared"


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path, monkeypatch, capsys) -> None:
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert keep_programs("") is None and not capsys.readouterr().out
  assert keep_programs(str(tmp_path / "file" / "x")) is None and jax.config.jax_compilation_cache_dir is None
  printed = capsys.readouterr().out
  assert printed == (
    f"WARNING: train.compilation_cache: {tmp_path}/file/x cannot be used; compiled programs are not kept\n"
  )


def test_the_longest_unused_programs_go_first(tmp_path) -> None:
  programs = {name: f"jit_{name}-{'0' * 64}-cache" for name in "abcd"}
  # A folder of other files, which a user has named: they stay.
  others = ("weights.npz", "runs/demo/config.json", f"jit_x-{'0' * 64}")
  for name, read, written in (("a", 50, 10), ("b", 20, 20), ("c", 30, 30), ("d", 40, 40)):
    (tmp_path / programs[name]).write_bytes(b"x" * 100)
    os.utime(tmp_path / programs[name], (read, written))
  for name in others:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x" * 1000)
    os.utime(tmp_path / name, (1, 1))

  def left() -> set[str]:
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}

  bound(tmp_path, 400)
  assert left() == {*programs.values(), *others}
  bound(tmp_path, 299)
  assert left() == {programs["a"], programs["d"], *others}


@pytest.mark.parametrize("mode", ["eval", "summary"])
def test_commands_that_run_networks_keep_programs(mode, monkeypatch, tmp_path) -> None:
  chosen = []
  monkeypatch.setattr(compilation_cache, "keep_programs", lambda *arguments: chosen.append(arguments))
  monkeypatch.setattr({"eval": eval_mode, "summary": summary}[mode], "run", lambda **values: None)
  flags = [
    f"--config={CONFIGS / 'demo.py'}",
    f"--mode={mode}",
    f"--config.train.compilation_cache={tmp_path}",
  ]
  assert main.main(["rc_jax", *flags]) == 0 and not chosen  # as in a test, or in a notebook
  assert main.main(["rc_jax", *flags], keep_programs=True) == 0
  assert chosen == ([(str(tmp_path), False)] if mode == "eval" else [])
  assert not distributed.is_one_of_several()


# Compiles a program with donated arguments again and again, as a new process would each time; says where it came from.
PROGRAMS = """
import pathlib, sys, warnings
import jax, jax.numpy as jnp, numpy as np
from rc_jax import compilation_cache
from tests.support import disks

folder = compilation_cache.keep_programs(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))

def step(state, batch):
  return {name: jnp.tanh(value @ batch) for name, value in state.items()}, state["a"].sum()

def run():
  jax.clear_caches()
  start = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
  state, batch = jax.device_put({"a": start, "b": start.T}), jax.device_put(start)
  events.clear()
  program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
  source = "read" if "cache_hits" in events else "kept" if "cache_misses" in events else "compiled"
  for _ in range(5):
    state, total = program(state, batch)
  return source, float(total), np.asarray(state["b"]).tobytes().hex()

def entry():
  (path,) = folder.glob("jit_step-*")
  return path

first = run()
print(first[0])
read = run()
print(read[0], read[1:] == first[1:])
if sys.argv[2:]:
  entry().write_bytes(entry().read_bytes()[:200])  # as after a kill, or by a process that still writes
  print(run() == first, run() == read)
  entry().unlink()
  with disks.file_size_limit(50):
    full = run()
    print(full[1:] == first[1:], run()[1:] == first[1:], list(folder.glob("jit_step-*")))
  warnings.warn("another warning")
"""


def started(*arguments: str, **variables: str) -> subprocess.Popen[str]:
  return subprocess.Popen(
    [sys.executable, "-c", PROGRAMS, *arguments],
    cwd=ROOT,
    env={**os.environ, **variables},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.run
def test_programs_are_read_equal_and_damage_heals(tmp_path: pathlib.Path) -> None:
  process = started(str(tmp_path), "damage")
  printed, errors = process.communicate(timeout=120)
  kept, read, healed, *note, full = printed.splitlines()
  assert (kept, read, healed, full) == ("kept", "read True", "True True", "True True []"), (printed, errors)
  (line,) = note
  assert (
    line.startswith(f"note: {tmp_path}: compiled programs are not kept (OSError: ") and "too large" in line
  )
  assert "another warning" in errors and "persistent compilation cache" not in errors


@pytest.mark.run
def test_processes_that_start_together_share_a_folder(tmp_path: pathlib.Path) -> None:
  processes = [started(str(tmp_path)) for _ in range(2)]
  for process in processes:
    printed, errors = process.communicate(timeout=120)
    first, second = printed.splitlines()
    assert first in ("kept", "read", "compiled") and second == "read True" and not errors, (printed, errors)


@pytest.mark.long
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the compiler's flag is for x86")
def test_the_key_of_a_program_holds_the_features_of_the_cpu(tmp_path: pathlib.Path) -> None:
  """The part of the key that describes devices: the same programs, for a CPU of fewer instructions."""
  code = "import jax; from jax._src.lib import xla_client; devices = jax.devices(); "
  code += "print(xla_client.get_topology_for_devices(devices).fingerprint())"
  fingerprints = []
  for flags in ("", "--xla_cpu_max_isa=SSE4_2"):
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    fingerprints.append(finished.stdout)
  assert len(set(fingerprints)) == 2
