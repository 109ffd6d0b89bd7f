"""Which resolutions each architecture takes, and what is done to it to take them.  Torch-free."""

from longvis_bench.sizes.plan import SizePlan, near_multiples, require_multiple

__all__ = ["SizePlan", "near_multiples", "require_multiple"]
