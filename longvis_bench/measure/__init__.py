"""One file a quantity: what it is, its unit, how it is obtained."""
