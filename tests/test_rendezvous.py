"""How the processes of one run meet: whom they wait for, and what they refuse."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from rc_jax import distributed, rendezvous
from rc_jax.process_group import LOST_PROCESS, ProcessGroup, listed_processes
from tests.support import processes
from tests.support.paths import ROOT


@pytest.fixture
def address() -> str:
  """A free port of this machine."""
  return f"127.0.0.1:{processes.free_port()}"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
  with ThreadPoolExecutor(8) as threads:
    yield threads


def meet(
  pool: ThreadPoolExecutor, address: str, count: int, index: int, timeout: float = 20, **facts: object
) -> Future[ProcessGroup]:
  return pool.submit(rendezvous.meet, address, count, index, timeout, facts)


def leave(*groups: ProcessGroup) -> None:
  for group in groups:
    group.leave(0)


def test_processes_meet_in_any_order_and_exchange_values(address: str, pool: ThreadPoolExecutor) -> None:
  joining = [meet(pool, address, 4, index) for index in (3, 1, 0, 2)]
  groups = sorted((each.result(30) for each in joining), key=lambda group: group.index)
  assert [group.index for group in groups] == [0, 1, 2, 3]
  assert groups[2].names == groups[0].names and groups[0].names[3].startswith("process 3 of 4 (")
  for round_ in range(3):
    values = [pool.submit(group.gather, [group.index, round_], "wait") for group in reversed(groups)]
    assert all(value.result(30) == [[index, round_] for index in range(4)] for value in values)
  leave(*groups)


def test_the_port_is_free_after_each_meeting(
  address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(rendezvous, "_RETRY_SECONDS", 0.01)
  host, port = rendezvous.split_address(address)
  for _ in range(50):
    joining = [meet(pool, address, 2, index) for index in (1, 0)]
    groups = [each.result(30) for each in joining]
    # The connections are open, and the service of JAX listens on the same port.
    with socket.create_server((host, port)), socket.create_connection((host, port)):
      pass
    leave(*groups)


def test_a_missing_process_is_named_at_once_and_at_the_end(
  address: str, pool: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
  present = [meet(pool, address, 5, index, timeout=3) for index in (0, 3)]
  time.sleep(2)
  assert f"waiting for processes 1, 2, 4 of 5 at {address}" in capsys.readouterr().out
  for each in present:
    with pytest.raises(
      ValueError, match=rf"^processes 1, 2, 4 of 5 did not connect to {address} within 3 s; .*port"
    ):
      each.result(30)


def test_a_missing_coordinator_is_named(address: str, capsys: pytest.CaptureFixture[str]) -> None:
  with pytest.raises(
    ValueError, match=rf"^process 1: process 0 of 2 at {address} did not answer within 2 s .*refused"
  ):
    rendezvous.meet(address, 2, 1, 2, {})
  assert f"process 1 waits for process 0 of 2 at {address}: connection refused" in capsys.readouterr().out


def test_a_host_without_address_is_named(capsys: pytest.CaptureFixture[str]) -> None:
  with pytest.raises(ValueError, match=r"at nowhere\.invalid:1234 did not answer within 1 s \("):
    rendezvous.meet("nowhere.invalid:1234", 2, 1, 1, {})


def test_two_processes_of_one_number_are_refused_everywhere(
  address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(rendezvous, "_CONFLICT_SECONDS", 1.0)
  present = [meet(pool, address, 3, index) for index in (0, 1, 1)]
  for each in present:
    with pytest.raises(ValueError, match=r"^--process_id=1 is the number of two processes of 3 \(.*pid"):
      each.result(30)


def test_two_coordinators_of_one_port_are_refused(
  address: str, pool: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
  refused = pytest.raises(ValueError, match=r"^process 0 cannot listen on port \d+ .*in use.*--coordinator")
  with socket.create_server(rendezvous.split_address(address)), refused:
    rendezvous.meet(address, 2, 0, 2, {})
  assert "process 0 waits for port" in capsys.readouterr().out


def test_another_number_of_processes_is_refused_everywhere(
  address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(rendezvous, "_CONFLICT_SECONDS", 1.0)
  present = [meet(pool, address, 2, 0), meet(pool, address, 3, 2)]
  for each in present:
    with pytest.raises(ValueError, match=r"^--processes is 2 on process 0 \(.*\) and 3 on process 2 \("):
      each.result(30)


def test_other_facts_are_refused_everywhere(address: str, pool: ThreadPoolExecutor) -> None:
  present = [meet(pool, address, 3, index, seed=index // 2, sizes=(1, 2)) for index in range(3)]
  for each in present:
    with pytest.raises(ValueError, match=r"do not agree: seed is 0 on processes 0, 1 and 1 on process 2; "):
      each.result(30)


def test_a_process_that_was_started_again_takes_its_place(address: str, pool: ThreadPoolExecutor) -> None:
  first = meet(pool, address, 3, 0)
  host, port = rendezvous.split_address(address)
  for _ in range(100):
    try:
      with socket.create_connection((host, port)) as connection:
        connection.sendall(b'{"rc_jax": 1, "index": 1, "processes": 3, "host": "a", "pid": 1, "facts": {}}\n')
        assert b"missing" in connection.recv(100)
      break
    except OSError:
      time.sleep(0.05)
  groups = [each.result(30) for each in (first, meet(pool, address, 3, 1), meet(pool, address, 3, 2))]
  assert all("(a)" not in name for name in groups[0].names)
  leave(*groups)


NO_INDEX = b'{"rc_jax": 1, "index": -1, "processes": 2, "host": "a", "pid": 1, "facts": {}}\n'


@pytest.mark.parametrize(
  "sent",
  [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"{}\n",
    b'{"index": []}\n',
    b"[1]\n",
    b"",
    b'{"index": 1',
    b"[" * 50000 + b"\n",
    NO_INDEX,
  ],
)
def test_other_programs_are_ignored(sent: bytes, address: str, pool: ThreadPoolExecutor) -> None:
  first = meet(pool, address, 2, 0)
  host, port = rendezvous.split_address(address)
  stranger = None
  while stranger is None:
    try:
      stranger = socket.create_connection((host, port))
    except OSError:
      time.sleep(0.05)
  stranger.sendall(sent)
  groups = [first.result(30) for first in (first, meet(pool, address, 2, 1))]
  stranger.close()
  leave(*groups)


def test_a_coordinator_that_does_not_answer_is_not_waited_for(address: str) -> None:
  with socket.create_server(rendezvous.split_address(address)):
    start = time.monotonic()
    with pytest.raises(ValueError, match="did not answer within 2 s"):
      rendezvous.meet(address, 2, 1, 2, {})
    assert time.monotonic() - start < 10


def test_the_service_of_another_run_is_no_coordinator(address: str) -> None:
  def greet(server: socket.socket) -> None:
    while True:
      try:
        connection, _ = server.accept()
      except OSError:
        return
      with connection:
        connection.sendall(b"\0\0\x12\4\0\0\0\0\0")  # as gRPC begins

  with socket.create_server(rendezvous.split_address(address)) as server:
    threading.Thread(target=greet, args=(server,), daemon=True).start()
    with pytest.raises(ValueError, match=r"did not answer within 2 s \(another program answers"):
      rendezvous.meet(address, 2, 1, 2, {})
    server.shutdown(socket.SHUT_RDWR)


def test_long_lists_of_processes_are_short() -> None:
  assert listed_processes(range(1, 64), 64) == "processes 1-63 of 64"


RUN = """
import sys, time
from rc_jax import distributed
distributed.connect(connect_timeout=60)
import jax
assert jax.process_count() == 2
{body}
"""


def run_two(body: str) -> list[subprocess.Popen]:
  return processes.start(["-c", RUN.format(body=body)], processes=2)


@pytest.mark.run
def test_jax_connects_after_the_meeting_and_processes_may_end_apart() -> None:
  for process in run_two("time.sleep(4 * jax.process_index()); print('done')"):
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and printed.rstrip().endswith("done"), printed


@pytest.mark.run
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_others_in_one_line(killed: int) -> None:
  started = run_two("print('connected', flush=True); time.sleep(100)")
  for process in started:
    assert process.stdout is not None
    while "connected" not in (line := process.stdout.readline()):
      assert line, "the process ended before it was connected"
  started[killed].kill()
  start = time.monotonic()
  printed, _ = started[1 - killed].communicate(timeout=60)
  assert started[1 - killed].returncode == LOST_PROCESS and time.monotonic() - start < 20
  (line,) = [line for line in printed.splitlines() if line.startswith("error")]
  assert f"process {killed} of 2 (" in line and "has ended unexpectedly" in line and "start all" in line
  started[killed].communicate()


@pytest.mark.run
def test_the_error_of_one_process_is_that_of_all(tmp_path) -> None:
  """Process 1 sees no data set: process 0, which would wait for it, says so and ends with the same status."""
  (tmp_path / "0").mkdir()
  code = (
    "import os, sys; from rc_jax import main, data\n"
    "if os.environ['RC_JAX_PROCESS_ID'] == '1':\n"
    "  def load(*unused, **options): raise FileNotFoundError('there is no such folder')\n"
    "  data.load = load\n"
    f"sys.exit(main.main(['rc_jax', '--config=demo', '--workdir={tmp_path / 'run'}']))"
  )
  started = processes.start(["-c", code], processes=2)
  printed = [process.communicate(timeout=200)[0] for process in started]
  assert [process.returncode for process in started] == [2, 2], printed
  assert "error: process 1 of 2 (" in printed[0] and "failed: there is no such folder" in printed[0]
  assert "error: there is no such folder" in printed[1]


@pytest.mark.run
def test_a_missing_process_is_one_line_of_the_command(address: str) -> None:
  command = [
    "-m",
    "rc_jax.main",
    "--config=demo",
    f"--coordinator={address}",
    "--processes=2",
    "--process_id=0",
  ]
  finished = subprocess.run(
    [sys.executable, *command, "--connect_timeout=2"], cwd=ROOT, capture_output=True, text=True, timeout=100
  )
  assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr
  assert "waiting for process 1 of 2" in finished.stdout
  assert finished.stderr.startswith("error: process 1 of 2 did not connect to ")


SLURM = {
  **{"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"},
  **{"SLURM_STEP_NUM_TASKS": "4", "JAX_PLATFORMS": "cpu"},
}
GKE = {"TPU_WORKER_HOSTNAMES": "a-0.b,a-1.b", "TPU_WORKER_ID": "1", "JAX_PLATFORMS": "tpu,cpu"}


@pytest.mark.parametrize(
  ("variables", "expected"),
  [
    (SLURM | {"SLURM_STEP_NODELIST": "node001"}, ("node001:61441", 4, 2)),
    (SLURM | {"SLURM_STEP_NODELIST": "node001,gpu2"}, ("node001:61441", 4, 2)),
    (SLURM | {"SLURM_STEP_NODELIST": "node-[001-015,20],gpu2"}, ("node-001:61441", 4, 2)),
    (SLURM | {"SLURM_STEP_NODELIST": "node[007,9]", "JAX_COORDINATOR_PORT": "99"}, ("node007:99", 4, 2)),
    (SLURM | {"SLURM_STEP_NODELIST": "n1", "JAX_COORDINATOR_ADDRESS": "h:5"}, ("h:5", 4, 2)),
    (SLURM | {"SLURM_STEP_NODELIST": "rack[1-2]node[1-9]"}, (None, None, None)),
    (SLURM, (None, None, None)),
    (GKE, ("a-0.b:8482", 2, 1)),
    (GKE | {"MEGASCALE_COORDINATOR_ADDRESS": "c:1"}, (None, None, None)),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:2"}, (None, None, None)),
  ],
)
def test_clusters_whose_variables_say_all_meet_too(
  variables: dict[str, str], expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
  for name in (*SLURM, *GKE, "SLURM_STEP_NODELIST", "JAX_COORDINATOR_PORT", "JAX_COORDINATOR_ADDRESS"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  met, joined = [], []
  monkeypatch.setattr(distributed, "meet", lambda *arguments: met.append(arguments[:3]))
  monkeypatch.setattr(
    distributed.jax.distributed,
    "initialize",
    lambda *arguments, **options: joined.append((arguments, options)),
  )
  distributed.connect(connect_timeout=7)
  assert joined == [(expected, {"initialization_timeout": 7})]
  assert met == ([expected] if expected[0] else [])
