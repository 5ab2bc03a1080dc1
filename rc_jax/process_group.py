"""Messages between the processes of one run, which also show at once that one of them has ended.

Process 0 has a connection to each other process. `rc_jax.rendezvous` opens these connections, and they stay open until
the end of the run: the kernel closes them when a process ends, for whatever reason. JAX alone notices a missing process
after 100 seconds, and then aborts.
"""

import collections
import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from rc_jax import console, streams

# EX_TEMPFAIL of sysexits.h: the same command may succeed, where 2 means that it must be changed.
LOST_PROCESS = 75
_RECEIVE_BYTES = 1 << 16  # at a time
# Until a connection is known to belong to the run, another program may send without end.
_MOST_GREETING_BYTES = 1 << 22
_SEND_SECONDS = 30.0
_NOTICE_SECONDS = 30.0  # between two lines about a wait
_FIRST_NOTICE_SECONDS = 3.0
# Where all processes fail of the same cause, each prints its own error rather than that of another.
_GRACE_SECONDS = 2.0
# The error of a collective may arrive before the message that says why the other process is gone.
_CAUSE_SECONDS = 0.5

Message: TypeAlias = Mapping[str, Any]


class Disconnected(Exception):
  """Raised where the other end of a connection has ended, or is no process of rc_jax."""


class Connection:
  """Sends and receives JSON objects, one a line, over a TCP connection.

  A message may have at most 4 MiB until ``allow_long_messages`` is called.
  """

  def __init__(self, connected: socket.socket):
    self._socket, self._lock = connected, threading.Lock()
    self._parts: list[bytes] = []  # of the message that has not yet arrived completely
    self._most_bytes: int | None = _MOST_GREETING_BYTES
    self._timeout_reason = ""
    # With a timeout, Python would wait for data even under MSG_DONTWAIT.
    connected.setblocking(False)
    # A machine that loses its power closes no connection: the kernel finds out in about a minute.
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
      if hasattr(socket, name):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def fileno(self) -> int:
    return self._socket.fileno()

  def send(self, message: Message) -> None:
    """Sends a message; waits at most 30 seconds until the other end has taken it.

    Raises:
      Disconnected: the other end has closed the connection, or takes nothing. Then this end closes it too.
    """
    try:
      with self._lock:
        self._send_all(json.dumps(message).encode() + b"\n")
    except TimeoutError:
      self._timeout_reason = f"it took no message for {_SEND_SECONDS:.0f} s"
      # A part of the line may have been sent, so that no other message can follow. Both ends now read an end of file.
      with contextlib.suppress(OSError):
        self._socket.shutdown(socket.SHUT_RDWR)
      raise Disconnected(self._timeout_reason) from None
    except OSError as error:
      raise Disconnected(error_reason(error)) from None

  def _send_all(self, content: bytes) -> None:
    end = time.monotonic() + _SEND_SECONDS
    unsent = memoryview(content)
    while unsent:
      try:
        unsent = unsent[self._socket.send(unsent) :]
      except BlockingIOError:
        remaining = end - time.monotonic()
        if remaining <= 0:
          raise TimeoutError from None
        with selectors.DefaultSelector() as selector:
          selector.register(self._socket, selectors.EVENT_WRITE)
          selector.select(remaining)

  def allow_long_messages(self) -> None:
    """Removes the limit of a message's length: the other end belongs to this run."""
    self._most_bytes = None

  def receive(self) -> list[dict[str, Any]]:
    """Returns the messages that have arrived; does not wait.

    Raises:
      Disconnected: the other end has closed the connection, or sends something else than these messages.
    """
    try:
      received = self._socket.recv(_RECEIVE_BYTES)
    except BlockingIOError:
      return []
    except OSError as error:
      raise Disconnected(error_reason(error)) from None
    if not received:
      raise Disconnected(self._timeout_reason or "it closed the connection")
    first, *others = received.split(b"\n")
    self._parts.append(first)
    lines = []
    for part in others:
      lines.append(b"".join(self._parts))
      self._parts = [part] if part else []
    try:
      messages = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
      messages = [None]
    is_json = all(isinstance(message, dict) for message in messages)
    is_json &= not self._parts or self._parts[0].startswith(b"{")
    is_too_long = self._most_bytes is not None and sum(map(len, self._parts)) > self._most_bytes
    if is_too_long or not is_json:
      raise Disconnected("another program answers, or a run that has already started")
    return messages

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._socket.close()


class ProcessGroup:
  """The processes of a run, seen from one of them; a thread receives the messages.

  Attributes:
    index: of this process.
    names: of all processes, in order: ``process 1 of 2 (node1)``.
  """

  def __init__(
    self, index: int, names: Sequence[str], peers: Mapping[int, Connection], early: Sequence[Message] = ()
  ):
    """Starts the thread.

    Args:
      index: of this process.
      names: of all processes.
      peers: index -> connection; process 0 has all others, each of them has process 0.
      early: messages of process 0 that have been received already.
    """
    self.index, self.names, self._peers = index, tuple(names), dict(peers)
    for connection in self._peers.values():
      connection.allow_long_messages()  # process 0 sends the values of all processes in one message
    self._changed = threading.Condition()
    self._received: dict[int, collections.deque[Any]] = {peer: collections.deque() for peer in peers}
    self._finished: set[int] = set()
    self._leaving, self._exiting = threading.Event(), threading.Lock()
    self._lost: tuple[str, int] | None = None  # the reason to end, and the exit status
    threading.Thread(target=self._receive, args=(early,), name="processes", daemon=True).start()

  def gather(self, value: Any, purpose: str) -> list[Any]:
    """Exchanges values; every process calls this in the same order, and waits for all others.

    Args:
      value: of this process, as JSON knows it.
      purpose: what the others do until they call it, ``"read the data"``; for the line that names the missing ones.

    Returns:
      The values of all processes, in order.

    Raises:
      ValueError: another process has finished without this call; one line.
    """
    if self.index > 0:
      self._send(0, {"value": value})
      return self._take([0], purpose)[0]
    others = sorted(self._peers)
    values = [value, *self._take(others, purpose)]
    for peer in others:
      self._send(peer, {"value": values})
    return values

  def leave(self, status: int, message: str = "") -> None:
    """Sends the others the exit status and error of this process, which ends on purpose.

    Args:
      status: its exit status.
      message: its error, in one line; the others end with it too. Empty: it has finished.
    """
    self._leaving.set()
    for peer in self._peers:
      self._send(peer, {"end": status, "message": message})

  def _send(self, peer: int, message: Message) -> None:
    # Why a connection has ended, the thread finds out.
    with contextlib.suppress(Disconnected):
      self._peers[peer].send(message)

  def _take(self, peers: Sequence[int], purpose: str) -> list[Any]:
    """Returns the next value of each of the peers; prints which ones are missing."""
    start, notice = time.monotonic(), _FIRST_NOTICE_SECONDS
    with self._changed:
      while missing := [peer for peer in peers if not self._received[peer]]:
        for peer in missing:
          if peer in self._finished:
            raise ValueError(
              f"{self.names[peer]} has finished while the others {purpose}; give all the same command"
            )
        self._changed.wait(0.5)
        waited = time.monotonic() - start
        if self.index == 0 and waited > notice and missing:
          notice = waited + _NOTICE_SECONDS
          console.clear_line()
          streams.write_output(
            f"waiting for {listed_processes(missing, len(self.names))} to {purpose} ({waited:.0f} s)\n"
          )
      return [self._received[peer].popleft() for peer in peers]

  def _receive(self, early: Sequence[Message]) -> None:
    """Receives the messages of all peers, until one is lost or this process ends."""
    for message in early:
      self._handle(0, message)
    with selectors.DefaultSelector() as selector:
      for peer, connection in self._peers.items():
        selector.register(connection, selectors.EVENT_READ, peer)
      while selector.get_map():
        for key, _ in selector.select():
          peer = key.data
          try:
            for message in self._peers[peer].receive():
              self._handle(peer, message)
          except Disconnected as error:
            selector.unregister(key.fileobj)
            if peer not in self._finished:
              self._end(f"{self.names[peer]} has ended unexpectedly ({error})", LOST_PROCESS)

  def _handle(self, peer: int, message: Message) -> None:
    if "value" in message:
      with self._changed:
        self._received[peer].append(message["value"])
        self._changed.notify_all()
    elif "lost" in message:
      self._end(message["lost"], int(message["status"]))
    elif "end" in message:
      if message["message"]:
        self._end(f"{self.names[peer]} failed: {message['message']}", int(message["end"]))
      with self._changed:
        self._finished.add(peer)
        self._changed.notify_all()

  def exit_if_lost(self) -> None:
    """Ends this process with the reason if another is lost: its own error is then a consequence of that."""
    with self._changed:
      lost = self._changed.wait_for(lambda: self._lost, _CAUSE_SECONDS)
    if lost:
      self._exit(*lost)

  def _end(self, reason: str, status: int) -> None:
    """Ends this process, because another is lost: the main thread may wait for it in a collective for ever."""
    if self.index == 0:
      for peer in self._peers:
        self._send(peer, {"lost": reason, "status": status})
    with self._changed:
      self._lost = (reason, status)
      self._changed.notify_all()
    if not self._leaving.wait(_GRACE_SECONDS if status != LOST_PROCESS else 0):
      self._exit(reason, status)

  def _exit(self, reason: str, status: int) -> None:
    with self._exiting:  # for ever: one thread prints, and ends both
      console.clear_line()
      remedy = "; see its output, then start all processes again" if status == LOST_PROCESS else ""
      streams.write_error(f"error: {reason}{remedy}\n")
      streams.flush()
      os._exit(status)


def listed_processes(indices: Iterable[int], count: int | None = None, most: int | None = None) -> str:
  """Names some processes of a run.

  >>> listed_processes([1], 2), listed_processes([1, 2, 3, 5], 8)
  ('process 1 of 2', 'processes 1-3, 5 of 8')
  >>> listed_processes([0, 2, 4, 6, 7, 8], most=2)
  'processes 0, 2 and 4 more'

  Args:
    indices: of the processes, at least one.
    count: the number of all processes of the run; None: the text does not contain it.
    most: numbers and ranges of numbers in the text; None: all.
  """
  ranges: list[list[int]] = []
  for index in sorted(indices):
    if ranges and ranges[-1][-1] == index - 1:
      ranges[-1].append(index)
    else:
      ranges.append([index])
  entries: list[tuple[str, int]] = []  # text, number of processes
  for members in ranges:
    if len(members) > 2:
      entries.append((f"{members[0]}-{members[-1]}", len(members)))
    else:
      entries += [(str(member), 1) for member in members]
  shown = entries[:most]
  noun = "process" if sum(map(len, ranges)) == 1 else "processes"
  text = f"{noun} {', '.join(text for text, _ in shown)}"
  if len(shown) < len(entries):
    text += f" and {sum(number for _, number in entries[len(shown) :])} more"
  return text if count is None else f"{text} of {count}"


def error_reason(error: OSError | Disconnected) -> str:
  """Returns why a connection failed, for the middle of a message: ``connection refused``."""
  return (getattr(error, "strerror", None) or str(error)).lower()
