"""Legal resolutions of each architecture, and its adaptation to them.  Without torch."""

from longvis_bench.sizes.plan import SizePlan, near_multiples, require_multiple

__all__ = ["SizePlan", "near_multiples", "require_multiple"]
