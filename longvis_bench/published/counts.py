"""Parameters and MACs of published models, counted on the meta device and kept in the cache."""

from __future__ import annotations

from longvis_bench.environment import read_environment
from longvis_bench.errors import LongvisError
from longvis_bench.measure.cache import Cache, cache_folder
from longvis_bench.measure.flops.counter import OperatorCount, count_variant
from longvis_bench.published.numbers import Claim
from longvis_bench.records import Cell, Request
from longvis_bench.registry.registry import Variant
from longvis_bench.sweep.code_hash import code_hash


class Counts:
    """Counts of models, each made once.

    Arguments:
        cache: whether counts of earlier calls are read from the cache.
    """

    def __init__(self, *, cache: bool = True) -> None:
        self._folder = cache_folder() if cache else None
        self._environment = read_environment().hash if cache else ""
        self._codes: dict[str, str] = {}
        self._known: dict[tuple[str, int, int], OperatorCount | str] = {}

    def of(self, claim: Claim) -> OperatorCount | str:
        """The count of a claim's model at its published size; the reason if there is none."""
        resolution, classes = claim.entry.resolution, claim.classes
        if resolution is None:
            return "the size is not stated"
        if classes is None:
            return f"the number of classes of {claim.entry.dataset or 'its dataset'} is not stated"
        key = (claim.model, resolution, classes)
        if key not in self._known:
            self._known[key] = self._count(claim.variant, resolution, classes)
        return self._known[key]

    def _count(self, variant: Variant, resolution: int, classes: int) -> OperatorCount | str:
        try:
            cache = Cache(self._request(variant, resolution, classes), variant)
            return cache.get(
                "operators",
                OperatorCount,
                lambda: count_variant(variant, resolution, classes).operators(),
            )
        except LongvisError as error:
            return str(error).rstrip(".")

    def _request(self, variant: Variant, resolution: int, classes: int) -> Request:
        cell = Cell(
            model=variant.full_name,
            family=variant.family,
            variant=variant.variant,
            implementation=variant.implementation,
            arguments=variant.arguments,
            resolution=resolution,
            num_classes=classes,
        )
        return Request(
            cell=cell,
            code=self._code(variant) if self._folder else None,
            environment=self._environment,
            cache_dir=self._folder,
        )

    def _code(self, variant: Variant) -> str:
        """The hash of the counting code; models of one factory share it."""
        if variant.factory not in self._codes:
            self._codes[variant.factory] = code_hash(variant)
        return self._codes[variant.factory]
