"""The accuracy of a cell: of its model, with its weights, on its data; or the reason why it has none."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from longvis_bench.data.protocol import ImageData
from longvis_bench.measure.accuracy import StoredAccuracy, batch_for, measure_accuracy
from longvis_bench.measure.cache import Cache
from longvis_bench.measure.iteration import DTYPES
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import Request
from longvis_bench.resolution import Resolution, resolution_of
from longvis_bench.weights.resolving import no_weights
from longvis_bench.weights.store import read_metadata


def add_accuracy(
    request: Request, model: nn.Module, data: ImageData, builder: RowBuilder, cache: Cache
) -> None:
    """Add top-1 and top-5 to the row, and the predictions to the run; else the reason why there are none.

    Arguments:
        request: the cell and its weights.
        model: as it was measured.
        data: the cell's.
        builder: receives the accuracy.
        cache: may have it already.
    """
    cell = request.cell
    reason = _no_accuracy(request, builder)
    if reason is not None:
        builder.null_reasons["accuracy"] = reason
        return
    with builder.timed("accuracy"):
        stored = cache.get(
            "accuracy",
            StoredAccuracy,
            lambda: _measure(request, model, data),
            logits=request.class_indices,
            numerics=builder.numerics,
        )
    result = stored.restore()
    builder.accuracy = result.to_record(
        weights=cell.weights or "", trained_resolution=_trained_resolution(request)
    ).model_copy(update={"class_doubt": request.class_doubt})
    if request.predictions_path is not None:
        result.to_predictions().save(request.predictions_path)


def _measure(request: Request, model: nn.Module, data: ImageData) -> StoredAccuracy:
    cell = request.cell
    result = measure_accuracy(
        model,
        data,
        resolution=cell.resolution,
        images=cell.images,
        batch_size=batch_for(cell.resolution),
        device=torch.device(cell.device),
        dtype=DTYPES[cell.dtype],
        logits=cell.num_classes,
        logit_indices=request.class_indices,
    )
    return StoredAccuracy.of(result)


def _trained_resolution(request: Request) -> Resolution | None:
    assert request.weights_path is not None
    if request.trained_resolution is not None:
        return request.trained_resolution
    resolution = read_metadata(request.weights_path).get("resolution")
    with suppress(ValueError):
        return resolution_of(resolution)
    return None


def _no_accuracy(request: Request, builder: RowBuilder) -> str | None:
    cell = request.cell
    if "accuracy" not in cell.metrics:
        return "not asked for (--metrics)"
    if cell.output == "features":
        return "maps have no classes (--output features)"
    if cell.mode == "train":
        return "measured in inference cells only"
    if request.weights_path is None:
        return no_weights(cell.model, cell.data, cell.resolution)
    random = builder.size.random_tensors if builder.size is not None else ()
    if random:
        return (
            f"{len(random)} tensors are random with these weights at {cell.resolution} px: {random[0]}, ..."
        )
    return None
