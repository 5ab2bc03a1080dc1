"""TensorBoard events of a run, written in the thread that trains.

The writer of tensorboardX has a thread of its own. On a full disk that thread ends, and training waits for it forever.
"""

import pathlib
import socket
import struct
import time

from rc_jax import files

_NAME = "events.out.tfevents."  # TensorBoard reads files with it, in the order of the number that follows


class EventLog:
  """A file of TensorBoard scalars. Records are complete or absent: TensorBoard stops at a cut one."""

  def __init__(self, folder: pathlib.Path, first_step: int):
    """Names a new file; creates nothing.

    Args:
      folder: of the event files of the run.
      first_step: TensorBoard hides what earlier files hold of this and later steps.
    """
    # Imports PyTorch where that is installed, which takes two seconds.
    from tensorboardX.proto import event_pb2

    self._event = event_pb2.Event
    # Later than all others, also after the clock was set back: a number that is not the newest would hide nothing.
    newest = max((_number(path) for path in folder.glob(f"{_NAME}*")), default=0)
    number = max(int(time.time()), newest + 1)
    self._file = files.AppendedFile(folder / f"{_NAME}{number:010d}.{socket.gethostname()}")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    now = time.time()
    self._header = _record(event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    self._header += _record(
      event_pb2.Event(wall_time=now, step=first_step, session_log=start).SerializeToString()
    )

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Appends the scalars of a step, and those that could not be written before.

    Raises:
      WriteError: they cannot be written; one line.
    """
    from tensorboardX import summary

    event = self._event(wall_time=time.time(), step=step)
    for name, value in scalars.items():
      event.summary.MergeFrom(summary.scalar(name, value))
    self._file.keep(self._header + _record(event.SerializeToString()))
    self._header = b""
    self.flush()

  def flush(self) -> None:
    """Appends what could not be written before.

    Raises:
      WriteError: something could not be written; one line.
    """
    if not self._file.is_complete:
      files.make_folder(self._file.path.parent)
      self._file.flush()

  def close(self) -> None:
    """Appends what could not be written before; raises as ``flush``."""
    self.flush()


def _record(content: bytes) -> bytes:
  """Frames an event as TFRecord does: length, checksum of the length, content, checksum of the content."""
  length = struct.pack("<Q", len(content))
  return length + _masked_crc(length) + content + _masked_crc(content)


def _masked_crc(content: bytes) -> bytes:
  from tensorboardX.record_writer import masked_crc32c

  return struct.pack("<I", masked_crc32c(content))


def _number(path: pathlib.Path) -> int:
  digits = path.name.removeprefix(_NAME).partition(".")[0]
  return int(digits) if digits.isdecimal() else 0
