"""Writes rows.jsonl, the invented run that the tests of tables and plots read: python make_rows.py.

Seven families at 256, 512 and 1024 px, with what a real run has: oom, timeout, a skipped and an invalid cell,
accuracy at one size only, few samples, noise, padding, an unknown operator.
"""

import random
from pathlib import Path
from typing import Any

from longvis_bench import records as r
from longvis_bench.row_warnings import of

# family, implementation, params, MACs and seconds at 256 px, exponents of MACs, seconds, memory; right of 128
FAMILIES = [
    ("atlas", "native", 412_330, 0.9e8, 0.0081, 2.05, 2.1, 1.9, 101),
    ("convnext", "timm", 305_442, 1.4e8, 0.0064, 2.0, 2.0, 1.8, 120),
    ("fastervit", "upstream", 498_122, 1.1e8, 0.0102, 2.1, 2.2, 1.9, 116),
    ("longvit", "native", 377_610, 0.7e8, 0.0053, 2.2, 2.3, 2.0, 64),
    ("mambavision", "native", 455_034, 1.3e8, 0.0143, 2.0, 2.1, 1.9, 119),
    ("swin", "timm", 289_770, 1.2e8, 0.0095, 2.05, 2.1, 1.85, 111),
    ("vit", "timm", 351_626, 1.0e8, 0.0072, 3.4, 3.6, 3.1, 108),
]
LOST = {
    ("vit", 1024): (
        "oom",
        "the device ran out of memory: tried to allocate 16.0 GiB; try a smaller batch or bf16.",
    ),
    ("longvit", 1024): ("timeout", "ended after 60 s (--timeout); give it more time or a smaller size."),
    ("fastervit", 512): (
        "invalid",
        "the logits differ by 3.1e-01 of their size from float64, unfused attention.",
    ),
    ("swin", 1024): ("skipped", "a smaller size of this model ran out of memory"),
}
NO_WEIGHTS = (
    "no weights ship for {m} on digits at {s} px; "
    "make them with `longvis train --models {m} --data digits --res {s}`"
)


def make(
    family: tuple[str, str, int, float, float, float, float, float, int], size: int, rng: random.Random
) -> r.Row:
    name, implementation, params, macs, latency, grow_macs, grow_time, grow_memory, right = family
    model, times = f"{name}-n", size / 256
    status, reason = LOST.get((name, size), ("ok", None))
    cell = r.Cell.model_validate(
        {
            "model": model,
            "family": name,
            "variant": model,
            "implementation": implementation,
            "resolution": size,
            "threads": 2,
            "weights": f"{model}.safetensors" if size == 256 else None,
            "weights_sha256": "ab" * 32 if size == 256 else None,
        }
    )
    count = int(macs * times**grow_macs)
    unknown = {"mylib::roll": 4096} if name == "swin" else {}
    values: dict[str, Any] = {
        "key": f"{name}-{size}",
        "cell": cell,
        "status": status,
        "reason": reason,
        "started": "2026-11-21T09:00:00+00:00",
        "settings": {"budget_s": 5, "timeout_s": 60},
        "size": r.SizeRecord(reach="built for the size", padding_ratio=0.62 if name == "fastervit" else None),
        "count": r.CountRecord(
            params=params,
            macs=count,
            flops=2 * count,
            scan_flops=count // 90 if name == "mambavision" else 0,
            coverage=0.97 if unknown else 1.0,
            unknown=unknown,
        ),
        "overhead_s": {"build": 0.1, "time": 5.0},
    }
    if status == "skipped":
        return r.Row.model_validate({**values, "count": None, "size": None})
    noise = 0.06 if (name, size) == ("atlas", 512) else 0.008
    taken = {1024: 18, 512: 27}.get(size, 41)
    if (name, size) == ("fastervit", 1024):
        taken = 4
    centre = latency * times**grow_time
    samples = tuple(centre * rng.lognormvariate(0, noise) for _ in range(taken))
    correct = right if size == 256 else None
    if status not in ("oom", "timeout"):
        values |= {
            "timing": r.TimingRecord(
                samples_s=samples,
                warmup_s=(2.5 * centre,),
                noise=r.NoiseRecord(load_cores=0.4 if (name, size) == ("atlas", 512) else None),
                verdict="budget" if taken < 6 else "noisy" if noise > 0.05 else "stable",
            ),
            "memory": r.MemoryRecord(
                peak_bytes=int(21e6 * times**grow_memory) + 4 * params,
                baseline_bytes=310 << 20,
                source="VmHWM - RssFile",
                parts_bytes={"weights": 4 * params, "buffers": 0, "rest": 1 << 20},
            ),
            "null_reasons": {} if correct else {"accuracy": NO_WEIGHTS.format(m=model, s=size)},
        }
    if status == "ok":
        values["validity"] = r.ValidityRecord(
            verdict="ok",
            reference="float64, unfused attention",
            reference_error=2e-7,
            batch_error=0.0,
            tolerance=1e-3,
        )
        if correct:
            values["accuracy"] = r.AccuracyRecord(
                correct_top1=correct,
                correct_top5=min(128, correct + 20),
                images=128,
                dataset="digits",
                weights=f"{model}.safetensors",
                trained_resolution=256,
            )
        values["notes"] = of(r.Row.model_validate(values))
    return r.Row.model_validate(values)


if __name__ == "__main__":
    rng = random.Random(5)
    rows = [make(family, size, rng) for size in (256, 512, 1024) for family in FAMILIES]
    text = "".join(row.to_json() + "\n" for row in rows)
    (Path(__file__).parent / "rows.jsonl").write_text(text, encoding="utf-8")
