"""Make the golden vectors again, with the authors' own code.

    python scripts/golden/make.py --atlas CHECKOUT --torchscale CHECKOUT --mambavision CHECKOUT \
        --fastervit CHECKOUT --out FOLDER

Each CHECKOUT is the root of a clone of YalaLab/atlas, microsoft/torchscale, NVlabs/MambaVision or
NVlabs/FasterViT (or the folder in which the package fastervit is installed); families without one are left
out, and `--only TEXT` takes the vectors whose names hold that text.  The authors' model is built, given its
weights strictly and run on the input that README.md defines.  Prints each vector's largest absolute
difference from the file that is here, and writes complete files to FOLDER.

Weights and configuration of the first kind of vector come from the files that are here; those of the other
two kinds, published sizes and gradients, from `CASES` and `formula.py`.

None of the authors' code is here: it is imported from the checkouts, which need einops.  What it imports
besides and cannot be had on a laptop is stood in for: fairscale (wrappers that are not used), flash-attn by
attention in float64, mamba-ssm by a scan in float64, as the vectors' metadata says.
"""

import argparse
import importlib
import io
import json
import sys
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from math import isqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from formula import GRADIENT_SAMPLES, image, sample, uniform, weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"

Config = dict[str, Any]
Vector = dict[str, Tensor]

ATLAS_S = {"family": "atlas", "dim": 384, "heads": 6, "stem_dim": 96, "window": 16, "stride": 4}
ATLAS_B = {**ATLAS_S, "dim": 768, "heads": 12, "stem_dim": 192}
LONGVIT_S = {"family": "longvit", "dim": 384, "depth": 12, "num_heads": 16, "patch_size": 32}
SMALL_ATLAS = {"dim": 32, "heads": 4, "stem_dim": 8, "depths": [1, 1, 2], "window": 4, "stride": 4}
SMALL_LONGVIT = {"dim": 48, "depth": 2, "num_heads": 12, "patch_size": 16}
SMALL_SEGMENTS = {"segment_length": [32, 64, 128, 256], "dilated_ratio": [1, 2, 4, 8]}
SMALL_MAMBAVISION = {
    "dim": 16,
    "in_dim": 8,
    "depths": [1, 1, 3, 3],
    "window_size": [8, 8, 14, 7],
    "mlp_ratio": 4,
    "num_heads": [1, 1, 2, 4],
    "layer_scale": 0.1,
}
SMALL_FASTERVIT = {
    "dim": 8,
    "in_dim": 8,
    "depths": [1, 1, 2, 2],
    "window_size": [7, 7, 7, 7],
    "ct_size": 2,
    "mlp_ratio": 4,
    "num_heads": [1, 1, 2, 4],
    "layer_scale": 0.1,
    "do_propagation": True,
}
CASES: dict[str, Config] = {
    "published/atlas-s_1024px": {**ATLAS_S, "variant": "atlas-s", "resolution": 1024, "depths": [2, 10]},
    "published/atlas-b_1024px": {**ATLAS_B, "variant": "atlas-b", "resolution": 1024, "depths": [2, 10]},
    **{
        f"published/atlas-s_2048px_{order}": {
            **ATLAS_S,
            "variant": "atlas-s",
            "resolution": 2048,
            "depths": [2, 2, 8],
            "window_order": order,
        }
        for order in ("position", "official")
    },
    **{
        f"published/longvit-s_{size}px": {**LONGVIT_S, "variant": "longvit-s", "resolution": size}
        for size in (1024, 2048, 4096)
    },
    **{
        f"published/mambavision-{size}_{resolution}px": {
            "family": "mambavision",
            "variant": f"mambavision-{size}",
            "entry": f"mamba_vision_{size.upper()}",
            "resolution": resolution,
        }
        for size in "tsb"
        for resolution in (224, 1024)
    },
    **{
        f"published/fastervit-{size}_{resolution}px": {
            "family": "fastervit",
            "variant": f"fastervit-{size}[window_size=(7,7,7,7)]",
            "entry": f"faster_vit_{size}_any_res",
            "resolution": resolution,
        }
        for size, resolution in ((0, 224), (0, 1024), (3, 224))
    },
    **{
        f"gradients/atlas_3scale_w4_512px_{order}": {
            "family": "atlas",
            **SMALL_ATLAS,
            "resolution": 512,
            "window_order": order,
        }
        for order in ("position", "official")
    },
    "gradients/atlas-s_512px": {**ATLAS_S, "variant": "atlas-s", "resolution": 512, "depths": [2, 10]},
    "gradients/longvit_h12_p16_272px_ragged": {
        "family": "longvit",
        **SMALL_LONGVIT,
        **SMALL_SEGMENTS,
        "resolution": 272,
    },
    "gradients/longvit_h4_p8_104px_shifted": {
        "family": "longvit",
        **SMALL_LONGVIT,
        "num_heads": 4,
        "patch_size": 8,
        "segment_length": [22, 139, 26, 3],
        "dilated_ratio": [5, 1, 4, 4],
        "resolution": 104,
    },
    "gradients/longvit-s_1024px": {**LONGVIT_S, "variant": "longvit-s", "resolution": 1024},
    # The authors round carrier tokens to float32 as they add them to the map.
    "gradients/fastervit_224px": {
        "family": "fastervit",
        **SMALL_FASTERVIT,
        "do_propagation": False,
        "resolution": 224,
    },
    "gradients/fastervit_320px_padded": {
        "family": "fastervit",
        **SMALL_FASTERVIT,
        "ct_size": 3,
        "layer_scale": None,
        "resolution": 320,
    },
    "gradients/mambavision_320px_padded": {"family": "mambavision", **SMALL_MAMBAVISION, "resolution": 320},
    "gradients/mambavision-t_224px": {
        "family": "mambavision",
        "variant": "mambavision-t",
        "entry": "mamba_vision_T",
        "resolution": 224,
    },
}
"""Vectors whose weights are a formula.  What is not said: published, 1 image and 100 classes; gradients, 2
images and 10 classes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for family in FAMILIES:
        parser.add_argument(f"--{family.replace('longvit', 'torchscale')}", type=Path, dest=family)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, config, stored in [*_stored(), *_formulated()]:
        checkout = getattr(arguments, config["family"])
        if checkout is None or arguments.only not in name:
            continue
        with redirect_stdout(io.StringIO()):
            made = _make(name.partition("/")[0], checkout, config, stored)
        compared = [key for key in made if key in stored]
        apart = [(made[key].double() - stored[key].double()).abs().max().item() for key in compared]
        print(f"{name}: {max(apart):.1e}" if apart else f"{name}: new", flush=True)
        path = arguments.out / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({**stored, **made}, path, {"config": json.dumps(config)})


def _stored() -> Iterator[tuple[str, Config, Vector]]:
    """Vectors that hold their weights."""
    for path in sorted(GOLDEN.glob("*.safetensors")):
        yield path.stem, *_read(path)


def _formulated() -> Iterator[tuple[str, Config, Vector]]:
    """Vectors whose weights are a formula, with what is stored of them."""
    for name, config in CASES.items():
        usual = (1, 100) if name.startswith("published") else (2, 10)
        path = GOLDEN / f"{name}.safetensors"
        stored = _read(path)[1] if path.exists() else {}
        yield name, {"batch": usual[0], "num_classes": usual[1], **config}, stored


def _read(path: Path) -> tuple[Config, Vector]:
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _make(kind: str, checkout: Path, config: Config, stored: Vector) -> Vector:
    """Build the authors' model of a vector, run it and keep what the vector keeps."""
    model, stages, around = FAMILIES[config["family"]](checkout, config, stored)
    with around:
        if kind == "published":
            return {**_shapes(model), **_tokens(model, stages, config)}
        if kind == "gradients":
            return {**_shapes(model), **_gradients(model, config)}
        model.load_state_dict({k: v for k, v in stored.items() if k != "expected.logits"}, strict=True)
        with torch.inference_mode():
            return {"expected.logits": _logits(model.eval(), config).clone()}


def _logits(model: nn.Module, config: Config) -> Tensor:
    first = next(model.parameters())
    out = model(image(config["batch"], config["resolution"]).to(first.dtype))
    logits = out["logit"] if isinstance(out, dict) else out
    assert isinstance(logits, Tensor)
    return logits


def _shapes(model: nn.Module) -> Vector:
    """Official names and shapes as compressed JSON, and the formula's weights put into the model."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights(shapes), strict=True)
    packed = zlib.compress(json.dumps(shapes).encode(), 9)
    return {"shapes": torch.frombuffer(bytearray(packed), dtype=torch.uint8)}


def _tokens(model: nn.Module, stages: dict[str, nn.Module], config: Config) -> Vector:
    """Samples of what every stage gives, and of the logits, in eval mode."""
    kept: Vector = {}

    def keep(name: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(_: nn.Module, __: object, out: Any) -> None:
            outputs = out if isinstance(out, list) else [out[0] if isinstance(out, tuple) else out]
            for scale, tensor in enumerate(outputs):
                kept[f"tokens.{name}.{scale}"] = sample(tensor)

        return hook

    for name, stage in stages.items():
        stage.register_forward_hook(keep(name))
    with torch.inference_mode():
        kept["logits"] = sample(_logits(model.eval(), config))
    return kept


def _gradients(model: nn.Module, config: Config) -> Vector:
    """Samples of every parameter's gradient in train mode, computed in float64; a row a parameter.

    The loss is a weighted sum of the logits.  Parameters come in the order of their names; rows of parameters
    with fewer values end in zeros, and a parameter without gradient is a row of zeros.
    """
    logits = _logits(model.double().train(), config)
    (logits * uniform("loss", logits.shape)).sum().backward()  # type: ignore[no-untyped-call]
    parameters = sorted(model.named_parameters())
    rows = torch.zeros(len(parameters), GRADIENT_SAMPLES, dtype=torch.float64)
    for row, (_, parameter) in zip(rows, parameters, strict=True):
        if parameter.grad is not None:
            values = sample(parameter.grad, GRADIENT_SAMPLES)
            row[: len(values)] = values
    return {"logits": sample(logits).float(), "gradients": rows.float()}


Built = tuple[nn.Module, dict[str, nn.Module], Any]
"""The authors' model, its stages by name, and a context to run it in."""


def atlas(checkout: Path, config: Config, tensors: Vector) -> Built:
    """YalaLab's Atlas; `position` changes only which coarse window a fine one reads."""
    sys.path.insert(0, str(checkout))
    package("sandstone", checkout / "sandstone")
    package("sandstone.models", checkout / "sandstone" / "models")
    module = importlib.import_module("sandstone.models.atlas")
    side = config["resolution"] // 16
    stages = []
    for i, depth in enumerate(config["depths"]):
        tokens = max(1, side // config["stride"] ** i)
        patch = 16 if i == 0 else 1
        stages.append(
            {
                "img_size": [tokens * patch, tokens * patch, 1],
                "patch_size": patch,
                "local2global": config["stride"],
                "merge_ratio": config["window"],
                "in_dim": 64,
                "dim": config["dim"],
                "num_features": config["stem_dim"],
                "num_classes": config["num_classes"],
                "drop_path_rate": 0.0,
                "depths": depth,
                "num_heads": config["heads"],
                "mlp_ratio": 4,
                "embed_op": "convstem"
                if i == 0 or any(f"atlas_models.{i}.patch_embed" in t for t in tensors)
                else "none",
                "layer_args": {"input_resolution": config["resolution"]},
            }
        )
    model = module.Atlas(None, stages, embed_dim=config["dim"], num_classes=config["num_classes"])
    named = {f"stages.{i}": stage.levels[0] for i, stage in enumerate(model.atlas_models)}
    by_position = config.get("window_order") == "position"
    around = paired_by_position(config["batch"]) if by_position else nullcontext()
    return model, {"stem": model.atlas_models[0].patch_embed, **named}, around


@contextmanager
def paired_by_position(batch: int) -> Iterator[None]:
    """Let `repeat_interleave` of coarse windows follow position: the authors call it for nothing else."""
    original = torch.Tensor.repeat_interleave

    def by_position(windows: Tensor, repeats: int, dim: int = 0) -> Tensor:
        coarse, over = isqrt(windows.shape[0] // batch), isqrt(repeats)
        cells = windows.view(batch, coarse, 1, coarse, 1, *windows.shape[1:])
        return cells.expand(-1, -1, over, -1, over, *windows.shape[1:]).flatten(0, 4)

    torch.Tensor.repeat_interleave = by_position  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.Tensor.repeat_interleave = original  # type: ignore[method-assign]


def longvit(checkout: Path, config: Config, _: Vector) -> Built:
    """torchscale's LongViT with flash attention stood in for."""
    stub("fairscale")
    stub("fairscale.nn", checkpoint_wrapper=None, wrap=None)
    stub("utils")
    sys.path[:0] = [str(checkout), str(checkout / "examples" / "longvit")]
    attention = importlib.import_module("torchscale.component.multihead_attention")
    attention.flash_attn_func = exact_attention  # type: ignore[attr-defined]
    module = importlib.import_module("modeling_finetune")
    model = module.LongViTForTCGAClassification(
        SimpleNamespace(
            img_size=config["resolution"],
            patch_size=config["patch_size"],
            encoder_embed_dim=config["dim"],
            encoder_layers=config["depth"],
            encoder_attention_heads=config["num_heads"],
            drop_path_rate=0.0,
            checkpoint_activations=False,
        ),
        config["num_classes"],
    )
    layers = model.model.encoder.layers
    if "segment_length" in config:  # else those that their code picks for the size
        for layer in layers:
            layer.self_attn.args.segment_length = config["segment_length"]
            layer.self_attn.args.dilated_ratio = config["dilated_ratio"]
    return model, {f"layers.{i}": layer for i, layer in enumerate(layers)}, nullcontext()


def exact_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """(batch, tokens, heads, channels) -> the output in that layout, and lse (batch, heads, tokens)."""
    results = [_exact_attention(*each) for each in zip(q, k, v, strict=True)]  # one by one, for memory
    out, lse = (torch.stack(each).to(q.dtype) for each in zip(*results, strict=True))
    return out, lse


def _exact_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    query, key, value = (t.double().transpose(0, 1) for t in (q, k, v))
    logits = query @ key.mT * query.shape[-1] ** -0.5
    return (torch.softmax(logits, dim=-1) @ value).transpose(0, 1), torch.logsumexp(logits, dim=-1)


def mambavision(checkout: Path, config: Config, _: Vector) -> Built:
    """NVIDIA's MambaVision with the scan stood in for."""
    stub("mamba_ssm")
    stub("mamba_ssm.ops")
    stub("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=exact_scan)
    sys.path.insert(0, str(checkout))
    package("mambavision", checkout / "mambavision")
    package("mambavision.models", checkout / "mambavision" / "models")
    module = importlib.import_module("mambavision.models.mamba_vision")
    entry = getattr(module, config.get("entry", "MambaVision"))
    names = ("dim", "in_dim", "depths", "window_size", "mlp_ratio", "num_heads", "num_classes", "layer_scale")
    model = entry(**{name: config[name] for name in names if name in config}, drop_path_rate=0.0)
    levels = {f"levels.{i}": level for i, level in enumerate(model.levels)}
    return model, {"stem": model.patch_embed, **levels, "norm": model.norm}, nullcontext()


def fastervit(checkout: Path, config: Config, _: Vector) -> Built:
    """NVIDIA's FasterViT in its any-resolution form, without the tensors that it stores twice or derives."""
    sys.path.insert(0, str(checkout))
    package("fastervit", checkout / "fastervit")
    package("fastervit.models", checkout / "fastervit" / "models")
    module = importlib.import_module("fastervit.models.faster_vit_any_res")
    entry = getattr(module, config.get("entry", "FasterViT"))
    names = [*SMALL_FASTERVIT, "num_classes"]
    given = {name: config[name] for name in names if name in config}
    model = entry(**given, resolution=[config["resolution"]] * 2, drop_path_rate=0.0)
    for part in model.modules():
        part._non_persistent_buffers_set.update(
            {name for name in part._buffers if name.startswith("relative_")}
        )
        if "to_global_feature" in part._modules:  # holds pos_embed again
            part.__dict__["to_global_feature"] = part._modules.pop("to_global_feature")
    levels = {f"levels.{i}": level for i, level in enumerate(model.levels)}
    return model, {"patch_embed": model.patch_embed, **levels, "norm": model.norm}, nullcontext()


def exact_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    delta_bias: Tensor,
    **_: Any,
) -> Tensor:
    """mamba-ssm's interface over our reference, in float64."""
    from longvis_bench.ops.selective_scan.operator import reference

    return reference(*(t.double() for t in (x, delta, A, B, C, D, delta_bias))).to(x.dtype)


def stub(name: str, **attributes: object) -> None:
    """Put an empty module with these attributes where `import name` finds it."""
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


def package(name: str, folder: Path) -> None:
    """Make a folder importable as a package without running its `__init__`."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


FAMILIES: dict[str, Callable[[Path, Config, Vector], Built]] = {
    "atlas": atlas,
    "longvit": longvit,
    "mambavision": mambavision,
    "fastervit": fastervit,
}

if __name__ == "__main__":
    main()
