"""Models by name: the schema of cards, where cards are looked for, and the variants they declare."""

from longvis_bench.registry.registry import Registry, Variant

__all__ = ["Registry", "Variant"]
