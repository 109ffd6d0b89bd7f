"""MACs and FLOPs: the counter, its formulas, and a comparison with fvcore."""
