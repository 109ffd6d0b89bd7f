"""Make the expected logits of the golden vectors again, with the authors' own code.

    python tests/golden/make.py --atlas CHECKOUT --torchscale CHECKOUT --mambavision CHECKOUT --out DIRECTORY

Each CHECKOUT is the root of a clone of YalaLab/atlas, microsoft/torchscale or NVlabs/MambaVision; families
without one are left out.  Weights and configuration come from the vectors that are here; the authors' model
is built, given those weights strictly and run on the input that README.md defines.  Prints the largest
absolute difference from the logits that are here, and writes complete files to DIRECTORY.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from math import isqrt, pi
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for family in FAMILIES:
        parser.add_argument(f"--{family.replace('longvit', 'torchscale')}", type=Path, dest=family)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for path in sorted(HERE.glob("*.safetensors")):
        config, tensors = read(path)
        checkout = getattr(arguments, config["family"])
        if checkout is None:
            continue
        stored = tensors.pop("expected.logits")
        with redirect_stdout(io.StringIO()):
            logits = FAMILIES[config["family"]](checkout, config, tensors)
        print(f"{path.stem}: {(logits - stored).abs().max().item():.1e}")
        tensors["expected.logits"] = logits
        save_file(tensors, arguments.out / path.name, {"config": json.dumps(config)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def image(batch: int, resolution: int) -> Tensor:
    """The input of every vector, by formula in float64."""
    places = [torch.arange(n, dtype=torch.float64) for n in (batch, 3, resolution, resolution)]
    b, c, y, x = torch.meshgrid(*places, indexing="ij")
    first = torch.sin(2 * pi * ((c + 1) * 3 * x + (b + 1) * 5 * y) / resolution + 0.7 * c)
    second = torch.cos(2 * pi * ((b + 2) * 11 * x - (c + 1) * 7 * y) / resolution)
    return (first + 0.5 * second).float()


def run(model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """Load strictly and run in eval mode."""
    model.load_state_dict(tensors, strict=True)
    with torch.inference_mode():
        out = model.eval()(image(config["batch"], config["resolution"]))
    logits = out["logit"] if isinstance(out, dict) else out
    assert isinstance(logits, Tensor)
    return logits.float().clone()


def atlas(checkout: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
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
                if any(f"atlas_models.{i}.patch_embed" in t for t in tensors)
                else "none",
                "layer_args": {"input_resolution": config["resolution"]},
            }
        )
    model = module.Atlas(None, stages, embed_dim=config["dim"], num_classes=config["num_classes"])
    if config.get("window_order") == "position":
        with paired_by_position(config["batch"]):
            return run(model, config, tensors)
    return run(model, config, tensors)


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


def longvit(checkout: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
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
    for layer in model.model.encoder.layers:
        layer.self_attn.args.segment_length = config["segment_length"]
        layer.self_attn.args.dilated_ratio = config["dilated_ratio"]
    return run(model, config, tensors)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """(batch, tokens, heads, channels) -> the output in that layout, and lse (batch, heads, tokens)."""
    query, key, value = (t.double().transpose(1, 2) for t in (q, k, v))
    logits = query @ key.mT * query.shape[-1] ** -0.5
    out = torch.softmax(logits, dim=-1) @ value
    return out.transpose(1, 2).to(q.dtype), torch.logsumexp(logits, dim=-1).to(q.dtype)


def mambavision(checkout: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """NVIDIA's MambaVision with the scan stood in for."""
    stub("mamba_ssm")
    stub("mamba_ssm.ops")
    stub("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=exact_scan)
    sys.path.insert(0, str(checkout))
    package("mambavision", checkout / "mambavision")
    package("mambavision.models", checkout / "mambavision" / "models")
    module = importlib.import_module("mambavision.models.mamba_vision")
    names = ("dim", "in_dim", "depths", "window_size", "mlp_ratio", "num_heads", "num_classes", "layer_scale")
    model = module.MambaVision(**{name: config[name] for name in names}, drop_path_rate=0.0)
    return run(model, config, tensors)


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
    from longvis_bench.ops.selective_scan import reference

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


FAMILIES: dict[str, Callable[[Path, dict[str, Any], dict[str, Tensor]], Tensor]] = {
    "atlas": atlas,
    "longvit": longvit,
    "mambavision": mambavision,
}

if __name__ == "__main__":
    main()
