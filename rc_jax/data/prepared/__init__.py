"""Data sets packed into ArrayRecord files by ``--mode=prepare``: the writer, the reader, and compressed tiles."""
