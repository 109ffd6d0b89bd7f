"""The images a cell sees: the protocol, the data sets, decoding, resizing and the loader."""
