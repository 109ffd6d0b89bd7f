"""Conformance checks of an adapter, under the name that tests written by `longvis new` import."""

from longvis_bench.adapters.conformance import CHECKS, check_model

__all__ = ["CHECKS", "check_model"]
