"""Counts, shape runs, accuracies and reaches, kept between runs.

These are functions of code, weights and data: measuring them again gives the same values.  They take
more than half of a default sweep's time.  Each is stored in a file named by the hash of everything that it
depends on, and a row names those that it did not compute itself (`Row.cached`).  Latency, measured memory and
validity describe the process that ran, and are never stored here.

The key of an entry has the hash of the measuring code, the model's card and factory, `Environment.hash`
(machine, versions of Python and packages, environment variables that change numbers) and all fields of the
cell but those that have no influence on the kind of value (`_WITHOUT_INFLUENCE`); a new field of `Cell` is
therefore part of every key until it is listed there.  Shapes and counts depend on the versions, because torch
decides how operators decompose and which attention kernel runs.  An accuracy depends on the machine, too:
kernels and threads change the order of sums, and an image whose two largest logits nearly tie may change its
class.  So its key also has torch's settings as they were after timing, the classes' logits, and the hash of
the scans that the data sets are drawn from.

Only built-in and timm models on generated data are cached.  The code hash covers this package, and
`Environment.hash` the packages; a user's factory imports code that neither covers, and the name of a folder
does not change with its images.

An entry that is torn, damaged or not the one its name promises is computed again and replaced; a folder that
cannot be read or written only costs time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from longvis_bench.data.digits import scans_hash
from longvis_bench.data.protocol import is_generated
from longvis_bench.files import write_whole
from longvis_bench.hashing import digest, sha256_file
from longvis_bench.records import Request
from longvis_bench.registry.card import CARD_FILE
from longvis_bench.registry.discovery import BUILT_IN
from longvis_bench.registry.registry import Variant

T = TypeVar("T")
Kind = Literal["count", "operators", "shapes", "accuracy", "reach"]

VARIABLE = "LONGVIS_CACHE"
"""Environment variable with the folder of the cache; empty turns the cache off."""
_NO_VALUES = frozenset({"data", "images", "seed", "weights", "weights_sha256", "normalisation"})
"""Fields of a cell that decide values of tensors, never their shapes."""
_NOT_COUNTED = (
    _NO_VALUES
    | {"batch_size", "batch_auto", "mode", "dtype", "device", "threads", "memory_format", "fuse", "compile"}
    | {"grad_checkpointing", "metrics", "round", "world"}
)
_WITHOUT_INFLUENCE: dict[Kind, frozenset[str]] = {
    "count": _NOT_COUNTED,
    "operators": _NOT_COUNTED,
    "shapes": _NO_VALUES | {"batch_auto", "metrics", "round", "world"},
    "accuracy": frozenset({"batch_size", "batch_auto", "metrics", "round", "world"}),
    "reach": frozenset({"batch_size", "batch_auto", "mode", "dtype", "device", "memory_format", "fuse"})
    | {"compile", "grad_checkpointing", "images", "metrics", "round", "world"},
}
"""Fields of a cell that a kind does not depend on: the counter counts one image, in eval mode and float32; an
accuracy has batches of its own size; reach is that of a float32 model on the CPU."""


def cache_folder() -> Path | None:
    """Where entries are kept: `LONGVIS_CACHE`, else the platform's cache folder; None where it is off."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).expanduser().absolute() if given else None
    from platformdirs import user_cache_path

    return user_cache_path("longvis-bench", appauthor=False)


class Cache:
    """The entries of one cell.

    Arguments:
        request: the cell, the hash of its code, its environment and the cache's folder.
        variant: the model.
    """

    def __init__(self, request: Request, variant: Variant) -> None:
        self._request, self._variant = request, variant
        self._folder = request.cache_dir if _is_covered(request, variant) else None
        self.used: list[str] = []
        """Kinds that were read instead of computed, in the order of reading."""

    def get(self, kind: Kind, form: type[T], compute: Callable[[], T], **more: Any) -> T:
        """A stored value, or else a computed one, which is then stored.

        Arguments:
            kind: what it is.
            form: its type, by which a stored value is validated: a pydantic model or a dataclass.
            compute: called where no valid entry is there; its exceptions pass, and store nothing.
            more: plain values that the value depends on beside the cell, code and environment.
        """
        if self._folder is None:
            return compute()
        key, adapter = self._key(kind, more), TypeAdapter(form)
        path = self._folder / kind / f"{digest(key)}.json"
        try:
            value = adapter.validate_json(_read(path, key))
        except (OSError, ValueError):  # not there, or not what was stored
            value = compute()
            _write(path, key, adapter.dump_json(value).decode())
            return value
        self.used.append(kind)
        return value

    def _key(self, kind: Kind, more: dict[str, Any]) -> dict[str, Any]:
        request, variant = self._request, self._variant
        without = _WITHOUT_INFLUENCE[kind]
        return {
            "kind": kind,
            "code": request.code,
            "card": sha256_file(variant.folder / CARD_FILE) if variant.card is not None else None,
            "model": variant.full_name,
            "factory": variant.factory,
            "environment": request.environment,
            "cell": request.cell.conditions(without),
            "scans": scans_hash() if "data" not in without else None,
            **more,
        }


class _Entry(BaseModel):
    """A file of the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: dict[str, Any]
    sha256: str
    """Of `value`."""
    value: str
    """JSON."""


def _is_covered(request: Request, variant: Variant) -> bool:
    """Whether code hash, environment and cell determine the cell's values."""
    known = bool(request.code and request.environment)
    return known and variant.origin in (BUILT_IN, "timm") and is_generated(request.cell.data)


def _read(path: Path, key: dict[str, Any]) -> str:
    """The JSON of a stored value.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no whole entry of this key.
    """
    entry = _Entry.model_validate_json(path.read_bytes())
    if entry.key != key or entry.sha256 != _hash(entry.value):
        raise ValueError("an entry of another key, or a damaged one")
    return entry.value


def _write(path: Path, key: dict[str, Any], value: str) -> None:
    """Store a value; a torn file after a power cut is found on reading, so nothing is flushed."""
    content = _Entry(key=key, sha256=_hash(value), value=value).model_dump_json().encode()
    with suppress(OSError):  # a folder that is read-only, or full
        write_whole(path, lambda file: file.write(content), durable=False)


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
