"""How the processes of one run connect: which ones they wait for, what they refuse, and their messages."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from rc_jax import agreement, distributed, process_group, rendezvous
from rc_jax.process_group import LOST_PROCESS, Connection, Disconnected, ProcessGroup, listed_processes
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


def connect(
  pool: ThreadPoolExecutor, address: str, count: int, index: int, timeout: float = 20, **facts: object
) -> Future[ProcessGroup]:
  return pool.submit(rendezvous.connect_processes, address, count, index, timeout, facts)


def leave(*groups: ProcessGroup) -> None:
  for group in groups:
    group.leave(0)


def test_processes_connect_in_any_order_and_exchange_values(address: str, pool: ThreadPoolExecutor) -> None:
  joining = [connect(pool, address, 4, index) for index in (3, 1, 0, 2)]
  groups = sorted((each.result(30) for each in joining), key=lambda group: group.index)
  assert [group.index for group in groups] == [0, 1, 2, 3]
  assert groups[2].names == groups[0].names and groups[0].names[3].startswith("process 3 of 4 (")
  for round_ in range(3):
    values = [pool.submit(group.gather, [group.index, round_], "wait") for group in reversed(groups)]
    assert all(value.result(30) == [[index, round_] for index in range(4)] for value in values)
  leave(*groups)


def test_the_port_is_free_after_the_processes_have_connected(
  address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(rendezvous, "_RETRY_SECONDS", 0.01)
  host, port = rendezvous.split_address(address)
  for _ in range(50):
    joining = [connect(pool, address, 2, index) for index in (1, 0)]
    groups = [each.result(30) for each in joining]
    # The connections are open, and the service of JAX listens on the same port.
    with socket.create_server((host, port)), socket.create_connection((host, port)):
      pass
    leave(*groups)


@pytest.mark.long
def test_a_missing_process_is_named_at_once_and_at_the_end(
  address: str, pool: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
  present = [connect(pool, address, 5, index, timeout=3) for index in (0, 3)]
  time.sleep(2)
  assert f"waiting for processes 1, 2, 4 of 5 at {address}" in capsys.readouterr().out
  for each in present:
    with pytest.raises(
      ValueError, match=rf"^processes 1, 2, 4 of 5 did not connect to {address} within 3 s; .*port"
    ):
      each.result(30)


def test_a_missing_coordinator_is_named(
  address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  monkeypatch.setattr(rendezvous, "_FIRST_NOTICE_SECONDS", 0.1)
  with pytest.raises(
    ValueError, match=rf"^process 1: process 0 of 2 at {address} did not answer within 1 s .*refused"
  ):
    rendezvous.connect_processes(address, 2, 1, 1, {})
  assert f"process 1 waits for process 0 of 2 at {address}: connection refused" in capsys.readouterr().out


def test_a_host_without_address_is_named(capsys: pytest.CaptureFixture[str]) -> None:
  with pytest.raises(ValueError, match=r"at nowhere\.invalid:1234 did not answer within 1 s \("):
    rendezvous.connect_processes("nowhere.invalid:1234", 2, 1, 1, {})


def test_two_processes_of_one_number_are_refused_everywhere(
  address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(rendezvous, "_CONFLICT_SECONDS", 1.0)
  present = [connect(pool, address, 3, index) for index in (0, 1, 1)]
  for each in present:
    with pytest.raises(ValueError, match=r"^--process_id=1 is the number of two processes of 3 \(.*pid"):
      each.result(30)


def test_two_coordinators_of_one_port_are_refused(
  address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  monkeypatch.setattr(rendezvous, "_FIRST_NOTICE_SECONDS", 0.1)
  refused = pytest.raises(ValueError, match=r"^process 0 cannot listen on port \d+ .*in use.*--coordinator")
  with socket.create_server(rendezvous.split_address(address)), refused:
    rendezvous.connect_processes(address, 2, 0, 1, {})
  assert "process 0 waits for port" in capsys.readouterr().out


def test_another_number_of_processes_is_refused_everywhere(
  address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(rendezvous, "_CONFLICT_SECONDS", 1.0)
  present = [connect(pool, address, 2, 0), connect(pool, address, 3, 2)]
  for each in present:
    with pytest.raises(ValueError, match=r"^--processes is 2 on process 0 \(.*\) and 3 on process 2 \("):
      each.result(30)


def test_a_message_that_arrives_with_the_acceptance_is_not_lost(
  address: str, pool: ThreadPoolExecutor
) -> None:
  names = ["process 0 of 2 (a)", "process 1 of 2 (b)"]
  before = set(threading.enumerate())
  with socket.create_server(rendezvous.split_address(address)) as server:
    second = connect(pool, address, 2, 1)
    connection, _ = server.accept()
    connection.recv(1 << 20)
    lines = (json.dumps(message) for message in ({"names": names}, {"value": [3, 4]}))
    connection.sendall("".join(f"{line}\n" for line in lines).encode())
    group = second.result(30)
    assert pool.submit(group.gather, 4, "test").result(30) == [3, 4]
    leave(group)
    connection.close()
    for thread in set(threading.enumerate()) - before:
      if thread.name == "processes":
        thread.join(30)  # it may be about to wait for the other end
    group._peers[0].close()


def test_other_facts_are_refused_everywhere(address: str, pool: ThreadPoolExecutor) -> None:
  present = [connect(pool, address, 3, index, seed=index // 2, sizes=(1, 2)) for index in range(3)]
  for each in present:
    with pytest.raises(ValueError, match=r"do not agree: seed is 0 on processes 0, 1 and 1 on process 2; "):
      each.result(30)


def test_a_process_that_was_started_again_takes_its_place(address: str, pool: ThreadPoolExecutor) -> None:
  first = connect(pool, address, 3, 0)
  host, port = rendezvous.split_address(address)
  for _ in range(100):
    try:
      with socket.create_connection((host, port)) as connection:
        connection.sendall(b'{"index": 1, "processes": 3, "host": "a", "pid": 1, "facts": {}}\n')
        assert b"missing" in connection.recv(100)
      break
    except OSError:
      time.sleep(0.05)
  else:
    pytest.fail("process 0 did not listen within 5 s")
  groups = [each.result(30) for each in (first, connect(pool, address, 3, 1), connect(pool, address, 3, 2))]
  assert all("(a)" not in name for name in groups[0].names)
  leave(*groups)


NO_INDEX = b'{"index": -1, "processes": 2, "host": "a", "pid": 1, "facts": {}}\n'


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
  first = connect(pool, address, 2, 0)
  host, port = rendezvous.split_address(address)
  stranger = None
  while stranger is None:
    try:
      stranger = socket.create_connection((host, port))
    except OSError:
      time.sleep(0.05)
  stranger.sendall(sent)
  groups = [first.result(30) for first in (first, connect(pool, address, 2, 1))]
  stranger.close()
  leave(*groups)


def test_a_coordinator_that_does_not_answer_is_not_waited_for(address: str) -> None:
  with socket.create_server(rendezvous.split_address(address)):
    start = time.monotonic()
    with pytest.raises(ValueError, match="did not answer within 1 s"):
      rendezvous.connect_processes(address, 2, 1, 1, {})
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
    with pytest.raises(ValueError, match=r"did not answer within 1 s \(another program answers"):
      rendezvous.connect_processes(address, 2, 1, 1, {})
    server.shutdown(socket.SHUT_RDWR)


def test_long_lists_of_processes_are_short() -> None:
  assert listed_processes(range(1, 64), 64) == "processes 1-63 of 64"
  assert listed_processes(range(0, 64, 2), most=3) == "processes 0, 2, 4 and 29 more"


@pytest.mark.long
def test_a_wait_that_process_0_extends_shows_its_new_limit(
  address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  monkeypatch.setattr(rendezvous, "_CONFLICT_SECONDS", 2.0)
  monkeypatch.setattr(rendezvous, "_NOTICE_SECONDS", 0.1)
  with socket.create_server(rendezvous.split_address(address)) as server:
    waiting = connect(pool, address, 3, 1, timeout=3)
    connection, _ = server.accept()
    with connection:
      for _ in range(3):
        time.sleep(2)
        connection.sendall(b'{"missing": [2]}\n')
      time.sleep(1)
      connection.sendall(b'{"refused": "no process 2"}\n')
      with pytest.raises(ValueError, match=r"^no process 2$"):
        waiting.result(30)
  lines = re.findall(r"waits for process 2 of 3 \((\d+) of at most (\d+) s\)", capsys.readouterr().out)
  assert len(lines) == 3
  # Each message of process 0 adds the timeout and two seconds; both numbers of a line are rounded.
  assert all(4 <= int(limit) - int(waited) <= 6 for waited, limit in lines), lines


def test_an_address_of_ipv6_is_shown_in_brackets() -> None:
  address = f"[::1]:{processes.free_port()}"
  with pytest.raises(ValueError, match=rf"^process 1: process 0 of 2 at {re.escape(address)} did not"):
    rendezvous.connect_processes(address, 2, 1, 1, {})


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
  """Both ends of a TCP connection."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    first = Connection(socket.create_connection(server.getsockname()))
    second = Connection(server.accept()[0])
  yield first, second
  first.close()
  second.close()


def received(connection: Connection) -> list[dict]:
  """Returns the next messages; waits for them."""
  end = time.monotonic() + 20
  while time.monotonic() < end:
    if messages := connection.receive():
      return messages
    time.sleep(0.001)
  pytest.fail("no message within 20 s")


def test_receiving_does_not_wait(ends: tuple[Connection, Connection]) -> None:
  first, second = ends
  start = time.monotonic()
  assert first.receive() == []
  assert time.monotonic() - start < 5
  second.send({"a": 1})
  second.send({"b": 2})
  messages = received(first)
  assert (messages if len(messages) == 2 else messages + received(first)) == [{"a": 1}, {"b": 2}]


def test_only_processes_of_the_run_may_send_long_messages(
  ends: tuple[Connection, Connection], pool: ThreadPoolExecutor
) -> None:
  first, second = ends
  message = {"value": "x" * (9 << 20)}
  first.allow_long_messages()
  sending = pool.submit(second.send, message)
  assert received(first) == [message]
  sending.result(30)
  sending = pool.submit(first.send, message)
  with pytest.raises(Disconnected, match="another program"):
    received(second)
  second.close()
  with pytest.raises(Disconnected):
    sending.result(30)


def test_a_message_that_is_not_taken_ends_the_connection_at_both_ends(
  ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
  """A part of the line is on its way: a next message would be read as the rest of this one."""
  first, second = ends
  second.allow_long_messages()
  monkeypatch.setattr(process_group, "_SEND_SECONDS", 1.0)
  start = time.monotonic()
  with pytest.raises(Disconnected, match="took no message for 1 s"):
    first.send({"value": "x" * (64 << 20)})
  assert time.monotonic() - start < 15
  with pytest.raises(Disconnected):
    first.send({"value": 1})
  with pytest.raises(Disconnected, match="took no message for 1 s"):
    received(first)
  with pytest.raises(Disconnected, match="closed the connection"):
    received(second)


def test_many_processes_with_long_names_still_name_the_difference(address: str) -> None:
  """Process 0 sends the names of all processes in one message, here of 12 MB."""
  count = 24
  names = [f"{'x' * 2000}/{number}.png" for number in range(256)]
  with ThreadPoolExecutor(count) as threads:
    connecting = [connect(threads, address, count, index, timeout=60) for index in range(count)]
    groups = [each.result(90) for each in connecting]

    def refusal(group: ProcessGroup) -> str:
      listing = [*names[:255], "cat.png"] if group.index == 5 else names
      with pytest.raises(ValueError, match=r"do not agree: ") as raised:
        agreement.check_agreement(lambda value: group.gather(value, "wait"), {}, {"image": listing})
      return str(raised.value)

    (message,) = set(threads.map(refusal, groups))
  assert "image number 256 is" in message and "on processes 0-4, 6-23 and cat.png on process 5" in message
  leave(*groups)


def test_a_process_that_finishes_instead_of_exchanging_is_named(
  address: str, pool: ThreadPoolExecutor
) -> None:
  groups = [each.result(30) for each in [connect(pool, address, 2, index) for index in range(2)]]
  groups[1].leave(0)
  with pytest.raises(ValueError, match=r"^process 1 of 2 \(.* has finished while the others read the data; "):
    groups[0].gather(1, "read the data")
  groups[0].leave(0)


@pytest.mark.parametrize(("count", "index"), [("²", "0"), ("2", "¹"), ("-1", "0"), ("2", "2"), ("two", "0")])
def test_numbers_of_processes_that_cannot_be_are_refused(count: str, index: str) -> None:
  with pytest.raises(
    ValueError, match=f"^--process_id={index} of --processes={count}: expected 0..processes-1"
  ):
    distributed.connect("localhost:1", count, index)


def test_a_failure_of_jax_to_connect_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
  def initialize(*unused: object, **options: object) -> None:
    raise RuntimeError("DEADLINE_EXCEEDED: barrier\ntimed out")

  monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
  with pytest.raises(
    ValueError,
    match=r"^JAX could not connect the processes of this run \(DEADLINE_EXCEEDED: barrier timed out\); check .*ports",
  ):
    distributed.connect("localhost:1", "1", "0")


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


@pytest.mark.long
@pytest.mark.run
def test_jax_connects_afterwards_and_processes_may_end_apart() -> None:
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


@pytest.mark.long
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


@pytest.mark.long
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
def test_processes_of_clusters_with_known_variables_connect_first(
  variables: dict[str, str], expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
  for name in (*SLURM, *GKE, "SLURM_STEP_NODELIST", "JAX_COORDINATOR_PORT", "JAX_COORDINATOR_ADDRESS"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  connected, initialized = [], []
  monkeypatch.setattr(distributed, "connect_processes", lambda *arguments: connected.append(arguments[:3]))
  monkeypatch.setattr(
    distributed.jax.distributed,
    "initialize",
    lambda *arguments, **options: initialized.append((arguments, options)),
  )
  distributed.connect(connect_timeout=7)
  assert initialized == [(expected, {"initialization_timeout": 7})]
  assert connected == ([expected] if expected[0] else [])
