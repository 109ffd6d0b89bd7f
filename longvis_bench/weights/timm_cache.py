"""timm's pretrained weights in the local caches (`--pretrained`).  longvis never downloads weights.

The caches are those that timm fills: of the Hugging Face hub (HF_HOME, HF_HUB_CACHE) and of torch.hub
(TORCH_HOME).  A `timm:` name identifies the weights itself (without a tag: timm's default); for a built-in
model its card does, in the field `timm`.  timm also has the normalisation and the resolution of the training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from longvis_bench.errors import CheckpointError
from longvis_bench.records import Normalisation
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution, resolution_of

HUB = "hf-hub:"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Pretrained weights of timm."""

    name: str
    """timm's name with its tag, e.g. "convnext_base.fb_in1k"."""
    path: Path
    resolution: Resolution | None
    """Pixels per side of the training images."""
    normalisation: Normalisation | None
    """Normalisation of the training images."""


def find_pretrained(variant: Variant, file: Path | None = None) -> Pretrained:
    """The weights that timm has for a model.

    Arguments:
        variant: the model.
        file: path of the weights; None to search the local caches.

    Raises:
        CheckpointError: timm has no weights for the model, or they are not in the local caches; the message
            says which file belongs where.
    """
    name = _timm_name(variant)
    facts = _hub_facts(name) if name.startswith(HUB) else _timm_facts(name)
    found = file or next(_cached(facts), None)
    if found is None:
        raise CheckpointError(_wanted(variant, name, facts))
    size = facts.get("input_size")
    return Pretrained(
        name=facts.get("name", name),
        path=found,
        resolution=resolution_of(size[-2:]) if size else None,
        normalisation=_normalisation(facts),
    )


def _normalisation(facts: Mapping[str, Any]) -> Normalisation | None:
    """Mean and deviation per channel; None unless both have three channels."""
    mean: Sequence[float] = facts.get("mean") or ()
    deviation: Sequence[float] = facts.get("std") or ()
    if len(mean) != 3 or len(deviation) != 3:
        return None
    return (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2])


def _timm_name(variant: Variant) -> str:
    """The name that timm has for the weights, with the tag if there are several."""
    if variant.origin == "timm":
        return variant.variant
    entries = variant.card.weights if variant.card is not None else ()
    own = [entry for entry in entries if entry.variant == variant.variant and entry.url]
    named = next((entry.timm for entry in own if entry.timm), None)
    if named is None or variant.implementation != "timm":
        where = f"; the authors' are at {own[0].url}" if own else ""
        raise CheckpointError(f"timm has no weights for {variant.name}: give a file with --weights{where}.")
    return named


def _timm_facts(name: str) -> Mapping[str, Any]:
    """The entry that timm has for one of its names."""
    from timm.models import get_pretrained_cfg

    from longvis_bench.backbones.timm import require_known

    require_known(name)
    entry = get_pretrained_cfg(name)
    if entry is None or not (entry.hf_hub_id or entry.url):
        raise CheckpointError(f"timm publishes no weights for {name}: give a file with --weights FILE.")
    return {**vars(entry), "name": f"{entry.architecture}.{entry.tag}" if entry.tag else name}


def _hub_facts(name: str) -> Mapping[str, Any]:
    """The same facts for a model of the hub, from its config.json if the cache has it."""
    repository = name.removeprefix(HUB)
    facts: dict[str, Any] = {}
    config = next(_hub_files(repository, ["config.json"]), None)
    if config is not None:
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
            facts = dict(content.get("pretrained_cfg", content))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"the cached config.json of {repository} is damaged: {error}.") from error
    return {**facts, "hf_hub_id": repository}


def _cached(facts: Mapping[str, Any]) -> Iterator[Path]:
    """Cached weight files, in order of preference."""
    if facts.get("hf_hub_id"):
        yield from _hub_files(facts["hf_hub_id"], _file_names(facts))
    if facts.get("url"):
        import torch

        file = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(facts["url"]).name)
        yield from [file] if file.is_file() else []


def _file_names(facts: Mapping[str, Any]) -> list[str]:
    """File names of weights in a repository of the hub, in order of preference."""
    if facts.get("hf_hub_filename"):
        return [facts["hf_hub_filename"]]
    return ["model.safetensors", "pytorch_model.bin"]


def _hub_files(repository: str, names: list[str]) -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    identity, _, revision = repository.partition("@")
    for name in names:
        found = try_to_load_from_cache(identity, name, revision=revision or None)
        if isinstance(found, str):
            yield Path(found)


def _wanted(variant: Variant, name: str, facts: Mapping[str, Any]) -> str:
    """Message with the missing file and the folder it belongs to."""
    weights = name if variant.origin == "timm" else f"{variant.name} ({name})"
    if not facts.get("hf_hub_id"):
        import torch

        there = Path(torch.hub.get_dir(), "checkpoints")
        return (
            f"the weights of {weights} are not in the local cache, and nothing is downloaded here: put "
            f"{facts['url']} into {there} (TORCH_HOME), or give the file with --weights FILE."
        )
    from huggingface_hub import constants

    file, repository = _file_names(facts)[0], facts["hf_hub_id"]
    identity, _, revision = repository.partition("@")
    at = f" --revision {revision}" if revision else ""
    return (
        f"the weights of {weights} are not in the local cache, and nothing is downloaded here: wanted is "
        f"{file} of {repository} on the Hugging Face hub; `hf download {identity} {file}{at}` puts it into "
        f"{constants.HF_HUB_CACHE} (HF_HOME), or give the file with --weights FILE."
    )
