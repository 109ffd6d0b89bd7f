"""Time and memory of the native backbones against the authors' code, at equal output.

    python scripts/golden/ratios.py --atlas CHECKOUT --torchscale CHECKOUT --mambavision CHECKOUT \\
        --out results/reference/MACHINE/ratios

Each CHECKOUT is the root of a clone of YalaLab/atlas, microsoft/torchscale or NVlabs/MambaVision; cases whose
checkout is not given are left out.  `--only TEXT` runs the cases whose name holds that text; `--list` names
them.  A case that DIRECTORY already holds is not run again, so an interrupted run goes on where it was.

How it is measured.  A case runs in a process of its own, where all contenders are built with the same
weights, their outputs are compared, and then they take turns: a round is one turn each, the order reversed
every second round.  A turn repeats short calls until it lasts about a quarter of a second.  A round gives one
ratio a contender, time of the first / time of the contender; reported are the median over rounds and its 95 %
interval by order statistics (`longvis_bench.stats.median_interval`), so 6 rounds at least are needed for one.

Transient memory is the peak above weights and input: resident bytes without file-backed pages at the highest
point of the second call minus those before the first, in a fresh process with one contender, where freed
memory is given back at once (`measure/memory.py`).

Nothing here is part of the product.
"""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

TURN_S = 0.25
CHECKOUTS = {"atlas": "--atlas", "longvit": "--torchscale", "mambavision": "--mambavision"}
"""Options by family."""


def main() -> None:
    arguments = _parse()
    from contenders import CASES

    checkouts = {family: path for family in CHECKOUTS if (path := getattr(arguments, family)) is not None}
    chosen = {
        name: case
        for name, case in CASES.items()
        if arguments.only in name and (case.family is None or case.family in checkouts)
    }
    if arguments.list:
        print(*chosen, sep="\n")
    elif arguments.case:
        torch_threads(arguments.threads)
        case = CASES[arguments.case]
        found = (
            transient(case, arguments.contender, checkouts)
            if arguments.contender
            else compare(case, checkouts, arguments.rounds)
        )
        print(json.dumps(found))
    else:
        failed = [name for name, case in chosen.items() if not _ends_well(name, case, arguments)]
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for family, option in CHECKOUTS.items():
        parser.add_argument(option, type=Path, dest=family)
    parser.add_argument("--out", type=Path, default=Path("ratios"))
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


def _ends_well(name: str, case: Any, arguments: argparse.Namespace) -> bool:
    try:
        run_case(name, case, arguments)
    except subprocess.CalledProcessError:
        return False  # its own process said why
    return True


def run_case(name: str, case: Any, arguments: argparse.Namespace) -> None:
    """Measure one case in processes of its own, and write everything so far."""
    path = arguments.out / "ratios.json"
    results = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    known = results["cases"].get(name)
    if known is not None and known["rounds"] >= arguments.rounds:
        print(f"{name}: already there", flush=True)
        return
    started = perf_counter()
    found = _child(name, arguments)
    for contender in case.memory:
        found["contenders"][contender]["transient_bytes"] = _child(name, arguments, contender)
    found |= {"title": case.title, "rounds": arguments.rounds, "took_s": round(perf_counter() - started, 1)}
    results["cases"][name] = found
    results |= _about(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "ratios.md").write_text(markdown(results))
    lines = markdown({**results, "cases": {name: found}}).splitlines()
    print(*[line for line in lines if line.startswith(f"| {case.title}")], sep="\n", flush=True)


def _child(name: str, arguments: argparse.Namespace, contender: str | None = None) -> Any:
    options = [f"--threads={arguments.threads}", f"--rounds={arguments.rounds}", f"--case={name}"]
    for family, option in CHECKOUTS.items():
        if getattr(arguments, family) is not None:
            options.append(f"{option}={getattr(arguments, family)}")
    if contender is not None:
        options.append(f"--contender={contender}")
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat it."""
    from longvis_bench.environment import read_environment

    options = [f"{CHECKOUTS[family]} CHECKOUT" for family in CHECKOUTS if getattr(arguments, family)]
    command = ["python scripts/golden/ratios.py", *options, f"--rounds {arguments.rounds}"]
    return {
        "command": " ".join([*command, f"--threads {arguments.threads}", "--out DIRECTORY"]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": arguments.threads,
        "environment": read_environment().model_dump(mode="json"),
    }


def torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def compare(case: Any, checkouts: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Outputs, then turns; in this process."""
    from longvis_bench.stats import median, median_interval

    calls = {name: case.build(name, checkouts) for name in case.contenders}
    exact = (
        [t.detach() for t in case.build("float64", checkouts)()]
        if case.title.startswith("selective")
        else None
    )
    outputs, first_s = {}, {}
    for name, call in calls.items():
        start = perf_counter()
        outputs[name] = [t.detach().clone() for t in call()]
        first_s[name] = perf_counter() - start
    first = exact or outputs[case.contenders[0]]
    found: dict[str, Any] = {name: {"difference": _apart(out, first)} for name, out in outputs.items()}
    for name, entry in found.items():
        if not entry["difference"] <= case.tolerance:
            raise SystemExit(f"{case.title}: {name} differs by {entry['difference']:.1e}")
    del outputs, first, exact
    repeats = {name: _repeats(call, first_s[name]) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        order = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for name in order:
            times[name].append(_seconds(calls[name], repeats[name]))
    for name, entry in found.items():
        ratios = [a / b for a, b in zip(times[case.contenders[0]], times[name], strict=True)]
        entry |= {"first_call_s": first_s[name], "times_s": times[name]}
        entry |= {"ratio": median(ratios), "interval": median_interval(ratios)}
    return {"contenders": found}


def _apart(outputs: list[Any], expected: list[Any]) -> float:
    """Largest difference, relative to the largest value of the tensor where that is above 1."""
    pairs = zip(outputs, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in pairs)


def _repeats(call: Any, first_s: float) -> int:
    """Calls of a turn; where the first, which compiles, was slow, another tells how long a call takes."""
    return 1 if first_s > 8 * TURN_S else max(1, round(TURN_S / _seconds(call, 1)))


def _seconds(call: Any, repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats


def transient(case: Any, contender: str, checkouts: dict[str, Path]) -> int:
    """Bytes of the second call above weights and input; in this process, which has run nothing else."""
    import torch

    from longvis_bench.measure.memory.allocator import tight_allocator
    from longvis_bench.measure.memory.peak import PeakMemory

    call = case.build(contender, checkouts)
    torch.nn.functional.conv2d(torch.ones(1, 3, 32, 32), torch.ones(8, 3, 3, 3))  # starts threads and oneDNN
    memory = PeakMemory(torch.empty(0))
    with tight_allocator():  # or the heap keeps what the first call freed, a different share in each process
        call()
    return memory.read(call).peak_bytes


def markdown(results: dict[str, Any]) -> str:
    """The table of everything measured so far."""
    from longvis_bench import units

    environment = results["environment"]
    lines = [
        "# Native backbones against the authors' code",
        "",
        f"`{results['command']}`",
        "",
        f"{environment.get('processor')}, {results['threads']} threads, float32, torch"
        f" {environment.get('versions', {}).get('torch')}.",
        "Ratio: time of the first contender / time of this one, median over rounds with its 95 % interval by"
        " order statistics.",
        "Transient: peak above weights and input in a fresh process. Error: of outputs,"
        " largest, relative where values exceed 1.",
        "",
        "| what | contender | first call | time | ratio | 95 % interval | transient | of first | error |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in results["cases"].values():
        base = next(iter(case["contenders"].values()))
        for name, entry in case["contenders"].items():
            low, high = entry["interval"] or (None, None)
            memory, first = entry.get("transient_bytes"), base.get("transient_bytes")
            cells = [
                case["title"],
                name,
                units.seconds(entry.get("first_call_s")),
                units.seconds(sorted(entry["times_s"])[len(entry["times_s"]) // 2]),
                f"{entry['ratio']:.2f}",
                f"{low:.2f}-{high:.2f}" if low is not None else "",
                units.size(memory) if memory is not None else "",
                f"{memory / first:.2f}" if memory is not None and first else "",
                f"{entry['difference']:.0e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
