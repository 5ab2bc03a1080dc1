"""Writes to standard output and standard error that never raise: what cannot be shown must not end a training."""

import contextlib
import errno
import os
import sys
from typing import TextIO

# A full disk, or a terminal that is slow to read: a later line may appear again.
_TEMPORARY = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)


def write_output(text: str) -> None:
  """Writes a text to standard output as far as that is possible; adds no line break."""
  _write(text, sys.stdout)


def write_error(text: str) -> None:
  """Writes a text to standard error as far as that is possible; adds no line break."""
  _write(text, sys.stderr)


def flush() -> None:
  """Writes out what is buffered; afterwards the interpreter finds nothing that could fail when it ends."""
  for stream in (sys.stdout, sys.stderr):
    try:
      if stream is not None:
        stream.flush()
    except (OSError, ValueError):
      # Python would replace the exit status by 120 when it fails to flush.
      _discard(stream)


def is_terminal() -> bool:
  """Returns whether standard output is a terminal that can erase a line."""
  return _is_a_screen(sys.stdout) and os.environ.get("TERM") != "dumb"


def _is_a_screen(stream: TextIO | None) -> bool:
  try:
    return stream is not None and stream.isatty()
  except ValueError:  # closed
    return False


def _write(text: str, stream: TextIO | None) -> None:
  if stream is None:  # as after ``>&-`` in a shell
    return
  try:
    stream.write(_encodable(text, stream.encoding or "utf-8"))
    stream.flush()
  except OSError as error:
    if error.errno not in _TEMPORARY:
      _discard(stream)
  except ValueError:
    pass  # closed


def _encodable(text: str, encoding: str) -> str:
  """Returns a text in which escapes stand for the characters that the encoding lacks.

  >>> _encodable("3 x Straße", "ascii"), _encodable("caf\\udce9.png", "utf-8")
  ('3 x Stra\\\\xdfe', 'caf\\\\udce9.png')
  """
  return text.encode(encoding, "backslashreplace").decode(encoding)


def _discard(stream: TextIO) -> None:
  """Connects a stream whose reader is gone to the null device, for this and for all later writes."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    descriptor = stream.fileno()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
