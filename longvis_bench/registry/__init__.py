"""Models by name: the schema of cards, the folders searched for cards, and the variants of cards."""

from longvis_bench.registry.registry import Registry, Variant

__all__ = ["Registry", "Variant"]
