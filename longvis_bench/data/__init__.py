"""Images of a cell: the protocol, the data sets, decoding, resizing and the loader."""
