"""The images a cell sees: labelled, real, at the cell's resolution."""
