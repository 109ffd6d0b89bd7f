"""MACs and FLOPs: the counter, its formulas, and fvcore beside it."""
