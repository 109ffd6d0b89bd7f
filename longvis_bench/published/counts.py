"""Parameters and MACs of published models, counted on the meta device and kept in the cache.

Counting all takes about a minute of one core, so a second process counts from the other end; its counts come
through the cache.  Run as a module, this file is that process: it reads what to count from standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from longvis_bench.environment import read_environment
from longvis_bench.errors import LongvisError
from longvis_bench.measure.cache import Cache, cache_folder
from longvis_bench.measure.flops.counter import OperatorCount, count_variant
from longvis_bench.published.numbers import Claim
from longvis_bench.records import Cell, Request
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.sweep.code_hash import code_hash

ALONE = 4
"""Number of counts that are made before a second process is started, which takes seconds itself."""
Key = tuple[str, int, int]
"""Model, resolution in pixels, number of classes."""


class Counts:
    """Counts of models, each made once; a context, which ends the second process.

    Arguments:
        cache: whether counts are read from the cache and kept there.
        ahead: all that will be asked for, in this order, so that a second process can begin at the end.
        models_dirs: further folders of cards.
    """

    def __init__(
        self, *, cache: bool = True, ahead: Sequence[Claim] = (), models_dirs: Sequence[Path] = ()
    ) -> None:
        self._folder = cache_folder() if cache else None
        self._environment = read_environment().hash if cache else ""
        self._codes: dict[str, str] = {}
        self._known: dict[Key, OperatorCount | str] = {}
        self._ahead, self._models_dirs = ahead, models_dirs
        self._made = 0
        self._second: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Counts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._second is not None:
            self._second.kill()
            self._second.wait()

    def of(self, claim: Claim) -> OperatorCount | str:
        """The count of a claim's model at its published size; the reason if there is none."""
        key = _key(claim)
        if isinstance(key, str):
            return key
        if key not in self._known:
            self._known[key] = self.count(claim.variant, *key[1:])
        return self._known[key]

    def count(self, variant: Variant, resolution: int, classes: int) -> OperatorCount | str:
        """The count of a model; the reason if there is none."""

        def made() -> OperatorCount:
            self._made += 1
            if self._made == ALONE:
                self._start_second()
            return count_variant(variant, resolution, classes).operators()

        try:
            cache = Cache(self._request(variant, resolution, classes), variant)
            return cache.get("operators", OperatorCount, made)
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

    def _start_second(self) -> None:
        keys = [key for key in dict.fromkeys(map(_key, reversed(self._ahead))) if not isinstance(key, str)]
        if self._folder is None or len(keys) <= 2 * ALONE:
            return
        asked = {"models_dirs": list(map(str, self._models_dirs)), "keys": keys}
        self._second = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert self._second.stdin is not None
        with self._second.stdin as pipe:
            pipe.write(json.dumps(asked).encode())


def count_all(asked: str) -> None:
    """Count into the cache what another process will ask for.

    Arguments:
        asked: JSON, as `Counts` writes it.
    """
    content = json.loads(asked)
    registry, counts = Registry(list(map(Path, content["models_dirs"]))), Counts()
    for model, resolution, classes in content["keys"]:
        counts.count(registry.find(model), resolution, classes)


def _key(claim: Claim) -> Key | str:
    """What to count for a claim; the reason if there is nothing to count."""
    resolution, classes = claim.entry.resolution, claim.classes
    if resolution is None:
        return "the size is not stated"
    if classes is None:
        return f"the number of classes of {claim.entry.dataset or 'its dataset'} is not stated"
    return claim.model, resolution, classes


if __name__ == "__main__":
    count_all(sys.stdin.read())
