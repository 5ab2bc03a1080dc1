"""Finding, pairing, decoding and checking the files of a raw data set."""
