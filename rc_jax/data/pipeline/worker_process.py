"""The lifetime of worker processes."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def exit_with_parent() -> None:
  """Makes this worker process exit when the process that started it does, however that ends.

  SIGTERM, SIGINT and SIGHUP are ignored: a scheduler or a terminal sends them to all processes of a job, and the main
  process, which still finishes its step, then ends the workers.
  """
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def wait() -> None:
    if parent is not None:
      multiprocessing.connection.wait([parent.sentinel])
      # Nobody reads from this process any more: it would wait for ever.
      os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
