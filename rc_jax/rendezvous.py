"""Connects the processes of a run before JAX does: prints which ones are missing, and compares their settings.

JAX waits without a message for a missing process, and aborts after five minutes without its number. Here process 0
listens on the coordinator's port first, and the others connect to it. Then it closes the port, on which JAX's
coordination service listens next. The connections stay open, see `rc_jax.process_group`.
"""

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any

from rc_jax import console, streams
from rc_jax.agreement import disagreements
from rc_jax.process_group import Connection, Disconnected, ProcessGroup, error_reason, listed_processes

_FIRST_NOTICE_SECONDS = 1.0
_NOTICE_SECONDS = 30.0
_RETRY_SECONDS = 0.3
_CONNECT_SECONDS = 5.0
_GREETING_SECONDS = 10.0  # in which a new connection must send its greeting
_CONFLICT_SECONDS = 10.0  # in which processes that connect after a conflict still receive its message


def connect_processes(
  address: str, processes: int, index: int, timeout: float, facts: Mapping[str, Any]
) -> ProcessGroup:
  """Waits until all processes of a run have connected, and checks that they have the same settings.

  Args:
    address: ``host:port`` of process 0.
    processes: number of processes.
    index: index of this process, from 0.
    timeout: seconds until this process stops waiting.
    facts: what must be equal in all processes, as for ``agreement.disagreements``.

  Returns:
    The connected processes.

  Raises:
    ValueError: the address is not ``host:port``, a process is missing at the end, two have the same index, or they do
      not agree; one line, in all processes that have connected.
  """
  _, port = split_address(address)
  greeting = {
    **{"index": index, "processes": processes},
    **{"host": socket.gethostname(), "pid": os.getpid(), "facts": dict(facts)},
  }
  wait = _Wait(timeout)
  if index == 0:
    return _Coordinator(address, greeting, wait).connect(port)
  return _connect_to_coordinator(address, greeting, wait)


def split_address(address: str) -> tuple[str, int]:
  """Returns host and port; an IPv6 address stands in brackets.

  >>> split_address("node0:1234"), split_address("[::1]:80")
  (('node0', 1234), ('::1', 80))

  Raises:
    ValueError: it is no ``host:port``.
  """
  host, _, port = address.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise ValueError(f"{address}: expected host:port of the first process, such as node0:1234")
  return host.removeprefix("[").removesuffix("]"), int(port)


class _Wait:
  """A time limit, and the lines that name the missing processes.

  Attributes:
    limit: seconds from the start at which the wait ends.
    has_notified: whether a line was printed.
  """

  def __init__(self, timeout: float):
    self.limit, self.has_notified = timeout, False
    self._timeout, self._start = timeout, time.monotonic()
    self._notice = self._start + _FIRST_NOTICE_SECONDS

  def elapsed(self) -> float:
    return time.monotonic() - self._start

  def is_over(self) -> bool:
    return self.elapsed() >= self.limit

  def extend(self, margin: float) -> None:
    """Moves the end to a timeout from now, and ``margin`` seconds more."""
    self.limit = self.elapsed() + self._timeout + margin

  def shorten(self, seconds: float) -> None:
    """Moves the end to ``seconds`` from now, if it is later."""
    self.limit = min(self.limit, self.elapsed() + seconds)

  def is_notice_due(self) -> bool:
    """Returns whether the next line is due; it then counts as printed."""
    if time.monotonic() < self._notice:
      return False
    self._notice, self.has_notified = time.monotonic() + _NOTICE_SECONDS, True
    return True

  def text(self) -> str:
    return f"{self.elapsed():.0f} of at most {self.limit:.0f} s"

  def say(self, line: str) -> None:
    # Not `console.say`: it asks JAX for the index of this process, which would initialise the devices.
    console.clear_line()
    streams.write_output(f"{line}\n")


class _Coordinator:
  """Process 0 until all processes have connected."""

  def __init__(self, address: str, greeting: dict[str, Any], wait: _Wait):
    self._address, self._wait, self._count = address, wait, greeting["processes"]
    self._greetings: dict[int, dict[str, Any]] = {0: greeting}
    self._arrived: dict[int, Connection] = {}
    self._pending: dict[Connection, float] = {}  # since when they have sent no greeting
    self._refused: list[Connection] = []
    self._conflicts: list[str] = []
    self._strangers = 0  # connections of other programs
    self._selector = selectors.DefaultSelector()

  def connect(self, port: int) -> ProcessGroup:
    with self._selector, self._listen(port) as listener:
      self._selector.register(listener, selectors.EVENT_READ)
      while len(self._greetings) < self._count and not self._wait.is_over():
        for key, _ in self._selector.select(0.2):
          if key.fileobj is listener:
            self._accept(listener)
          else:
            self._receive(key.fileobj)  # type: ignore[arg-type]
        self._drop_silent()
        if not self._conflicts and self._wait.is_notice_due():
          self._say_missing()
    # The port must be free again before another process connects to JAX's service on it.
    greetings = [self._greetings[index] for index in sorted(self._greetings)]
    error = self._problem()
    for connection in self._pending:
      connection.close()
    if error:
      for connection in (*self._arrived.values(), *self._refused):
        with contextlib.suppress(Disconnected):
          connection.send({"refused": error})
        connection.close()
      raise ValueError(error)
    names = [f"process {g['index']} of {self._count} ({g['host']})" for g in greetings]
    for connection in self._arrived.values():
      with contextlib.suppress(Disconnected):  # the group's thread reports it
        connection.send({"names": names})
    if self._wait.has_notified:
      self._wait.say(f"all {self._count} processes have connected")
    return ProcessGroup(0, names, self._arrived)

  def _listen(self, port: int) -> socket.socket:
    """Opens the port on all addresses of this machine, or on that of JAX_COORDINATOR_BIND_ADDRESS, as JAX will."""
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    host, port = split_address(bind) if bind else ("", port)
    while True:
      try:
        if host not in ("", "::"):
          family = socket.AF_INET6 if ":" in host else socket.AF_INET
          return socket.create_server((host, port), family=family, backlog=1024)
        if socket.has_dualstack_ipv6():
          try:
            return socket.create_server(
              ("::", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
            )
          except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
              raise
        return socket.create_server(("", port), backlog=1024)  # IPv6 is switched off
      except OSError as error:
        # Another program may use the port, such as the last run, which is about to end.
        reason = error_reason(error)
        if self._wait.is_over():
          raise ValueError(
            f"process 0 cannot listen on port {port} of this machine ({reason}); end the other program there, or "
            "choose another port with --coordinator=host:port in all processes"
          ) from error
        if self._wait.is_notice_due():
          self._wait.say(f"process 0 waits for port {port} of this machine: {reason} ({self._wait.text()})")
        time.sleep(_RETRY_SECONDS)

  def _accept(self, listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
      connection = Connection(listener.accept()[0])
      self._selector.register(connection, selectors.EVENT_READ)
      self._pending[connection] = time.monotonic()

  def _receive(self, connection: Connection) -> None:
    is_pending = connection in self._pending
    try:
      for message in connection.receive():
        if self._pending.pop(connection, None) is not None:
          self._accept_greeting(connection, message)
    except Disconnected:
      self._selector.unregister(connection)
      self._pending.pop(connection, None)
      if is_pending:
        self._strangers += 1
      for index, arrived in list(self._arrived.items()):
        if arrived is connection:  # it may be started again, and will then connect again
          del self._arrived[index], self._greetings[index]
      connection.close()

  def _accept_greeting(self, connection: Connection, greeting: dict[str, Any]) -> None:
    try:
      index, processes = int(greeting["index"]), int(greeting["processes"])
      place = f"{greeting['host']}, pid {int(greeting['pid'])}"
      facts = greeting["facts"]
      if not isinstance(facts, dict) or not 0 <= index < processes:
        raise ValueError
    except (KeyError, TypeError, ValueError):
      raise Disconnected("it is no process of rc_jax") from None
    if processes != self._count:
      self._conflict(
        connection,
        f"--processes is {self._count} on process 0 ({_place(self._greetings[0])}) and {processes} on process {index} "
        f"({place}); give all processes the same number",
      )
    elif index in self._greetings:
      self._conflict(
        connection,
        f"--process_id={index} is the number of two processes of {self._count} ({_place(self._greetings[index])}; "
        f"{place}); give each its own number, from 0",
      )
    else:
      self._arrived[index], self._greetings[index] = connection, greeting
      with contextlib.suppress(Disconnected):
        connection.send({"missing": self._missing()})

  def _conflict(self, connection: Connection, text: str) -> None:
    self._conflicts.append(text)
    self._refused.append(connection)
    self._wait.shorten(_CONFLICT_SECONDS)

  def _drop_silent(self) -> None:
    for connection, since in list(self._pending.items()):
      if time.monotonic() - since > _GREETING_SECONDS:
        self._selector.unregister(connection)
        del self._pending[connection]
        self._strangers += 1
        connection.close()

  def _missing(self) -> list[int]:
    return [index for index in range(self._count) if index not in self._greetings]

  def _say_missing(self) -> None:
    missing = self._missing()
    listed = listed_processes(missing, self._count)
    self._wait.say(f"waiting for {listed} at {self._address} ({self._wait.text()})")
    for connection in self._arrived.values():
      with contextlib.suppress(Disconnected):
        connection.send({"missing": missing})

  def _problem(self) -> str:
    """Returns why the processes do not start, in one line; empty: they do."""
    if self._conflicts:
      return self._conflicts[0]
    if missing := self._missing():
      calls = f" ({self._strangers} connections came from other programs)" if self._strangers else ""
      return (
        f"{listed_processes(missing, self._count)} did not connect to {self._address} within "
        f"{self._wait.limit:.0f} s{calls}; start all processes with the same --coordinator and --processes, open the "
        "port between the hosts, or raise --connect_timeout"
      )
    return disagreements([self._greetings[index]["facts"] for index in range(self._count)])


def _connect_to_coordinator(address: str, greeting: dict[str, Any], wait: _Wait) -> ProcessGroup:
  """Connects to process 0, and tries again until it answers; returns the connected processes."""
  host, port = split_address(address)
  index, count = greeting["index"], greeting["processes"]
  place = f"process 0 of {count} at {address}"
  reason = ""
  while not wait.is_over():
    try:
      connection = _connect(host, port)
      try:
        return _wait_for_result(connection, greeting, wait)
      except BaseException:
        connection.close()
        raise
    except (OSError, Disconnected) as error:
      reason = error_reason(error)
    if wait.is_notice_due():
      wait.say(f"process {index} waits for {place}: {reason} ({wait.text()})")
    time.sleep(_RETRY_SECONDS)
  raise ValueError(
    f"process {index}: {place} did not answer within {wait.limit:.0f} s ({reason or 'no connection'}); start it, "
    "check --coordinator and that the port is open between the hosts, or raise --connect_timeout"
  )


def _connect(host: str, port: int) -> Connection:
  """Connects to the first address of a host that answers; raises OSError."""
  errors = []
  for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
    connected = socket.socket(family, kind, protocol)
    try:
      # Without it, process 0 could not listen on a port that the kernel gave to one of these connections.
      connected.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      connected.settimeout(_CONNECT_SECONDS)
      connected.connect(address)
      # On one machine, the kernel may give the free port to this end, so that the socket connects to itself.
      if connected.getsockname() == connected.getpeername():
        raise ConnectionRefusedError(0, "connection refused")
      return Connection(connected)
    except OSError as error:
      connected.close()
      errors.append(error)
  raise errors[-1]


def _wait_for_result(connection: Connection, greeting: dict[str, Any], wait: _Wait) -> ProcessGroup:
  """Sends the greeting and waits until process 0 accepts or refuses it.

  Raises:
    Disconnected: process 0 has closed the connection, or does not answer.
    ValueError: process 0 refuses the processes.
  """
  connection.send(greeting)
  missing: list[int] = []
  with selectors.DefaultSelector() as selector:
    selector.register(connection, selectors.EVENT_READ)
    while not wait.is_over():
      if not selector.select(0.5):
        continue
      messages = connection.receive()
      for number, message in enumerate(messages):
        if "refused" in message:
          raise ValueError(str(message["refused"]))
        if "names" in message:
          early = messages[number + 1 :]
          return ProcessGroup(greeting["index"], message["names"], {0: connection}, early)
        if "missing" in message:
          # Process 0 must give up first, because it can name the missing processes.
          wait.extend(_CONFLICT_SECONDS)
          missing = message["missing"]
          if missing and wait.is_notice_due():
            listed = listed_processes(missing, greeting["processes"])
            wait.say(f"process {greeting['index']} waits for {listed} ({wait.text()})")
  raise Disconnected("it does not continue" if missing else "it does not answer")


def _place(greeting: Mapping[str, Any]) -> str:
  return f"{greeting['host']}, pid {greeting['pid']}"
