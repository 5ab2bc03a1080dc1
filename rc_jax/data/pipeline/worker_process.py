"""What processes that work for a run have in common: they end with it, whatever ends it."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def tie_to_parent() -> None:
  """Makes this worker process live exactly as long as the process that started it.

  SIGTERM and SIGINT are ignored: a scheduler signals all processes of a job, and the main one, which still finishes
  what it does, then ends the workers.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def wait() -> None:
    if parent is not None:
      multiprocessing.connection.wait([parent.sentinel])
      # Nobody reads what this process makes any more: without this it would wait for ever.
      os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
