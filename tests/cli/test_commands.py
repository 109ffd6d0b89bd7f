"""The command line: bad input is one sentence with the documented exit code; help texts are golden."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from longvis_bench.cli.app import COMMANDS, app
from longvis_bench.cli.models import legal_sizes
from longvis_bench.errors import IllegalSize
from longvis_bench.records import MemoryRecord, Row
from longvis_bench.registry.registry import Registry
from longvis_bench.runs.directory import RunDirectory

Longvis = Callable[..., "subprocess.CompletedProcess[str]"]

HERE = Path(__file__).parents[1]
FAMILIES = HERE / "families"
FINE = ("--models", "moody-fine", "--models-dir", FAMILIES, "--device", "cpu", "--budget", "0.2")


def invoke(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: (exit code, standard output, standard error)."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def help_of(command: str, columns: int) -> str:
    """The help of a command, or of the program, in a terminal of so many columns."""
    look = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*filter(None, [command]), "--help"], env=look)
    assert result.exit_code == 0, result.output
    return result.stdout


BAD = [
    (("bench", "--models", "atlas-xs"), 2, "did you mean"),
    (("bench", "--models", "vit-n", "--res", "250"), 2, "240, 256"),
    (("bench", "--models", "atlas-s", "--res", "1536"), 2, "1024, 2048"),
    (("bench", "--res", "big"), 2, "whole numbers from 1 up"),
    (("bench", "--batch", "0"), 2, "not '0'"),
    (("bench", "--batch", "-4"), 2, "not '-4'"),
    (("bench", "--dtype", "fp8"), 2, "--dtype takes fp32, tf32, bf16, fp16, not 'fp8'"),
    (("bench", "--mode", "sleep"), 2, "--mode takes infer, train"),
    (("bench", "--output", "maps"), 2, "--output takes logits, features, not 'maps'"),
    (("bench", "--device", "tpu"), 2, "unknown device 'tpu'"),
    (("bench", "--device", "cuda"), 2, "has no cuda device"),
    (("bench", "--metrics", "speed"), 2, "--metrics takes count"),
    (("bench", "--budget", "-1"), 2, "--budget takes a time like 90s, 2m or 1h, not '-1'"),
    (("bench", "--models", "vit-n", "--budget", "0"), 2, "budget_s (--budget)"),
    (("bench", "--config", "gone.toml"), 2, "cannot read --config"),
    (("bench", "--models", "vit-n", "--res", "64", "--weights", "gone"), 2, "does not exist"),
    (("bench", "--models", "mambavision-s@upstream", "--res", "256"), 3, "python -m pip install"),
    (("bench", "--models", "vit-n", "--retry", "sad"), 2, "unknown status"),
    (("bench", "--models", "vit-n[depht=3]", "--res", "64"), 2, "did you mean depth"),
    (("bench", "--models", "mambavision-s[window_size=8]", "--res", "64"), 2, "window_size must be a list"),
    (("bench", "--models", "timm:resnet5O", "--res", "64"), 2, "did you mean resnet"),
    (("bench", "--models", "nowhere.py:build", "--res", "64"), 2, "does not exist"),
    (("bench", "--models", "vit-n", "--res", "64", "--timeout", "inf"), 2, "--timeout takes a time"),
    (("bench", "--models", "vit-n", "--res", str(2**70)), 2, "--res takes whole numbers"),
    (("bench", "--models", "vit-n", "--repeats", str(10**9)), 2, "repeats"),
    (("bench", "--models", "vit-n", "--quick", "--repeats", 3), 2, "leave one of them out"),
    (("bench", "--models", "vit-n", "--seed", "-1"), 2, "seed"),
    (("bench", "--mode", ""), 2, "--mode has an empty value"),
    (("bench", "--mode=", "--res", "64"), 2, "--mode has an empty value"),
    (("bench", "--models", ""), 2, "--models has an empty value"),
    (("bench", "--models", ","), 2, "--models names no model"),
    (("bench", "--out", ""), 2, "--out has an empty value"),
    (("bench", "--models", "vit-n swin-n", "--res", "64"), 2, "separate names by commas, like vit-n,swin-n"),
    (("bench", "-m", "vit-n", "swin-n", "--res", "64"), 2, "separate several values by commas"),
    (("bench", "-m", "vit-n", "--res", "64", "128"), 2, "separate several values by commas"),
    (("bench", "-m", "vit-n", "--res", "64 128"), 2, "like 1024,2048"),
    (("bench", "-m", "vit-n", "-r", "64", "--memory-limit", "24"), 2, "24 what? 24GiB"),
    (("bench", "-m", "vit-n", "-r", "64", "--memory-limit", "24B"), 2, "memory_limit_bytes (--memory-limit)"),
    (("bench", "-m", "vit-n", "-r", "64", "--precision", "2"), 2, "precision (--precision) cannot be '2.0'"),
    (("bench", "-m", "vit-n", "-r", "64", "--fuse", "--mode", "train"), 2, "--fuse folds batch norms"),
    (("bench", "-m", "resnet50", "-r", "64"), 2, "did you mean timm:resnet50?"),
    (("bench", "-m", "timm/resnet50", "-r", "64"), 2, "did you mean timm:resnet50?"),
    (("bench", "-m", "*-q", "-r", "64"), 2, "the pattern matches no name"),
    (("train", "-m", "*-q", "-r", "64"), 2, "the pattern matches no name"),
    (("bench", "--moddels", "vit-n"), 2, "there is no option --moddels: did you mean --mode, --models"),
    (("bench", "--nothing-like-it"), 2, "there is no option --nothing-like-it: see `longvis bench --help`"),
    (("bench", "--seed", "x"), 2, "--seed"),
    (("flops", "vit-n", "-r", "64", "--res", "128"), 2, "--res takes one value but is given 2 times"),
    (("train", "-m", "vit-n", "--res", "64,128"), 2, "--res takes whole numbers"),
    (("bench", "--device", "cpu", "--device=cuda"), 2, "--device takes one value but is given 2 times"),
    (("bench", "--out"), 2, "requires an argument"),
    (("flops", "vit-n"), 2, "missing option '--res'"),
    (("flops",), 2, "missing argument"),
    (("bnech",), 2, "there is no command 'bnech': did you mean bench"),
    (("bench", "--memory-format", "channels_last,contiguous"), 2, "takes channels_last, contiguous, not"),
    (("models", "atlsa"), 2, "did you mean atlas"),
    (("flops", "vit-n", "--res", "250"), 2, "240, 256"),
    (("report", "x" * 300), 2, "cannot be a path: File name too long"),
    (("report", "nowhere"), 2, "give the directory of a longvis run"),
    (("merge", ".", "--out", "x"), 2, "holds no run.json"),
    (("check", "vit-x"), 2, "did you mean"),
    (("new", "Bad Name"), 2, "lower-case letters"),
    (("new", "atlas"), 2, "taken"),
    (("train", "--models", "vit-q", "--data", "digits", "--res", "64"), 2, "did you mean"),
    (("flops", "vit*", "--res", "64"), 2, "only `longvis bench`, `eval` and `train` take patterns"),
    (("check", "vit*"), 2, "only `longvis bench`, `eval` and `train` take patterns"),
    (("eval", "-m", "vit-n", "-r", "64", "--weights", "no*.pth"), 2, "no weight file matches no*.pth"),
    (("train", "-m", "vit-n", "-r", "64", "--from", "no*.pth"), 2, "no weight file matches no*.pth"),
    (("eval", "-m", "*-q", "-r", "64"), 2, "the pattern matches no name"),
    (("report", "runs/no*"), 2, "no run directory matches runs/no*: give the directory"),
    (("report", "runs/gone"), 2, "the run directory runs/gone does not exist: give the directory"),
    (("merge", "runs/no*", "--out", "x"), 2, "no run directory matches runs/no*"),
    (("eval", "--models", "vit-n", "--weights", "gone", "--data", "digits", "--res", "64"), 2, "gone"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    got, _, stderr = invoke(*arguments)
    assert got == code, stderr
    assert words in stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    assert not Path("results").exists()


def test_an_unwritable_results_directory() -> None:
    Path("file").write_text("")
    code, _, stderr = invoke("bench", *FINE, "--res", "64", "--out", "file/run")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "cannot write to" in stderr


def test_a_run_of_another_schema() -> None:
    Path("run").mkdir()
    Path("run/run.json").write_text('{"schema": 99}')
    code, _, stderr = invoke("bench", *FINE, "--res", "64", "--out", "run")
    assert code == 2
    assert "schema 99" in stderr


def test_a_card_with_an_unknown_field() -> None:
    folder = Path("models/own")
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text('shade = "red"\n' + (FAMILIES / "moody" / "card.toml").read_text())
    code, _, stderr = invoke("models")
    assert code == 2
    assert "unknown field" in stderr


def test_a_fault_of_ours_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import longvis_bench.sweep.session as session

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("our own fault")

    monkeypatch.setattr(session, "start", broken)
    code, _, stderr = invoke("bench")
    assert code == 70
    assert stderr.startswith("error: internal error")
    assert "Traceback" not in stderr
    named = stderr.rsplit(" ", 1)[-1].strip().rstrip(".")
    assert "our own fault" in Path(named + ("" if named.endswith(".txt") else ".txt")).read_text()


def test_dry_run_lists_the_cells_and_writes_nothing() -> None:
    code, out, _ = invoke("bench", "--dry-run", "--device", "cpu")
    assert code == 0
    assert "21 cells" in out
    for family in ("atlas-n", "convnext-n", "fastervit-n", "longvit-n", "mambavision-n", "vit-n", "swin-n"):
        assert sum(line.startswith(family + "  ") for line in out.splitlines()) == 3
    assert not Path("results").exists()


def test_dry_run_names_illegal_sizes() -> None:
    _, out, _ = invoke("bench", "--dry-run", *FINE, "--res", "64,72")
    assert "illegal_size: 72 px is not a legal size" in out


def test_a_sweep_end_to_end(longvis: Longvis) -> None:
    """Table on the terminal, files in the run directory, resume, JSON."""
    command = (
        "bench",
        *FINE,
        "--models",
        "moody-fine,moody-raises",
        "--res",
        "64,72",
        "--quick",
        "--out",
        "run",
    )
    done = longvis(*command)
    assert done.returncode == 1, done.stderr
    for words in ("moody-fine", "moody-raises", "illegal_size", "error", "a sentence of the model's own"):
        assert words in done.stdout
    names = {path.name for path in Path("run").iterdir()}
    assert {"run.json", "cells.jsonl", "summary.csv", "summary.md", "plots"} <= names
    assert {path.suffix for path in Path("run/plots").iterdir()} == {".png", ".svg", ".pdf"}
    assert "[1/4]" in done.stdout
    _, again, stderr = invoke(*command, "--json")
    rows = [Row.model_validate_json(line) for line in again.splitlines()]
    assert [row.status for row in rows] == ["ok", "error", "illegal_size", "illegal_size"]
    assert "add --fresh" in stderr


def test_report_makes_the_files_again(row: Row) -> None:
    with RunDirectory(Path("run")) as directory:
        directory.append(row)
    code, out, _ = invoke("report", "run")
    assert code == 0
    assert "moody-fine" in out
    assert Path("run/summary.csv").is_file()


def test_report_shows_where_the_time_went(row: Row) -> None:
    seconds = {"start": 0.04, "import": 0.1, "build": 1.0, "time": 5.0, "other": 0.05, "teardown": 0.01}
    with RunDirectory(Path("run")) as directory:
        directory.append(row.model_copy(update={"overhead_s": seconds}))
    code, out, _ = invoke("report", "run", "--overhead")
    assert code == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    wanted = ["0.0400", "0.100", "0.0500", "0.0100", "0.200", "1.00", "5.00"]
    assert lines["moody-fine"][2:] == lines["median"][1:] == wanted
    assert "3.2 % of the time" in out
    assert not Path("run/summary.csv").exists()


def test_time_that_was_not_booked_is_not_known(row: Row) -> None:
    with RunDirectory(Path("run")) as directory:
        directory.append(row.model_copy(update={"overhead_s": {"build": 1.0}}))
    _, out, _ = invoke("report", "run", "--overhead")
    (line,) = (line for line in out.splitlines() if line.startswith("moody-fine"))
    assert line.split()[2:] == ["-", "-", "-", "-", "-", "1.00", "-"]


def test_report_shows_what_the_peaks_are_made_of(row: Row) -> None:
    parts = {"weights": 4 << 20, "activations": 10 << 20, "optimizer": 0, "rest": 1 << 19}
    memory = MemoryRecord(peak_bytes=sum(parts.values()), baseline_bytes=0, source="test", parts_bytes=parts)
    unknown = row.model_copy(update={"key": "unknown", "memory": None})
    trained = row.cell.model_copy(update={"mode": "train"})
    with RunDirectory(Path("run")) as directory:
        directory.append(unknown)
        directory.append(row.model_copy(update={"memory": memory}))
        directory.append(row.model_copy(update={"key": "t", "cell": trained, "memory": memory}))
    code, out, _ = invoke("report", "run", "--memory")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.startswith("moody-fine")]
    assert lines == [["moody-fine", "64", mode, "14.5", "4.0", "10.0", "0.5"] for mode in ("infer", "train")]
    assert "Zero in every cell: buffers, gradients, optimizer, input, workspace, library." in out
    assert "rest: what remains" in out
    assert not Path("run/summary.csv").exists()


def test_config_file_and_flags_over_it() -> None:
    Path("sweep.toml").write_text('models = ["vit-n"]\nresolutions = [64, 128]\ndevice = "cpu"\n')
    code, out, _ = invoke("bench", "--config", "sweep.toml", "--res", "32", "--dry-run", "--json")
    assert code == 0
    assert [json.loads(line)["resolution"] for line in out.splitlines()] == [32]


def test_repeated_and_comma_separated_options_are_alike() -> None:
    planned = [
        invoke("bench", "--dry-run", "--json", "--device", "cpu", *words)[1]
        for words in (
            ("-m", "vit-n,swin-n", "-r", "64,128", "--mode", "infer,train", "--batch", "1,2"),
            ("-m", "vit-n", "-m", "swin-n", "-r", "64", "-r", "128", "--mode", "both", "--batch", "1",
             "--batch", "2"),
            ("-m", "Vit_N,swin-n", "-r", "64,64", "-r", "128", "--mode", "infer", "--mode", "train",
             "--batch", "1,2"),
        )
    ]  # fmt: skip
    assert len(planned[0].splitlines()) == 16
    assert planned[0] == planned[1] == planned[2]


def test_patterns_and_all_name_variants() -> None:
    out = invoke("bench", "--dry-run", "--json", "--device", "cpu", "-m", "*-n", "-r", "1k")[1]
    cells = [json.loads(line) for line in out.splitlines()]
    assert {"atlas-n", "vit-n", "swin-n"} <= {cell["model"] for cell in cells}
    assert {cell["resolution"] for cell in cells} == {1024}
    everything = invoke("bench", "--dry-run", "--json", "--device", "cpu", "-m", "all", "-r", "1k")[1]
    assert len(everything.splitlines()) > 3 * len(cells)


def test_units_are_read() -> None:
    words = ("--budget", "2m", "--precision", "1%", "--timeout", "1h", "--memory-limit", "8G")
    assert invoke("bench", "-m", "vit-n", "-r", "2k", *words, "--save-config", "sweep.toml")[0] == 0
    saved = tomllib.loads(Path("sweep.toml").read_text())
    assert saved == {
        "models": ["vit-n"],
        "resolutions": [2048],
        "budget_s": 120.0,
        "precision": 0.01,
        "timeout_s": 3600.0,
        "memory_limit_bytes": 8_000_000_000,
    }


def test_longvis_alone_shows_its_help() -> None:
    code, out, stderr = invoke()
    assert (code, stderr) == (0, "")
    assert out == invoke("--help")[1]
    assert "Measure models at resolutions" in out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_narrow_terminal(command: str) -> None:
    """At 80 columns, flags carry no type and the texts have more room than 28 characters."""
    shown = help_of(command, columns=80)
    lines = shown.splitlines()
    assert "<bool>" not in shown
    assert max(map(len, lines)) <= 80
    if command == "bench":
        for panel in ("What to measure", "How to measure", "Data and weights", "Run", "Output"):
            assert f"─ {panel} ─" in shown
    for line in lines:
        described = re.match(r"│ \*?  ?--\S+ .*?  +(?=[A-Z0-9a-z]\S* \S+ \S+)", line)
        assert described is None or 78 - described.end() > 28, line


def test_the_list_of_commands_has_the_first_sentence_of_each_and_imports_none() -> None:
    program = get_command(app)
    for name, line in COMMANDS.items():
        help_text = program.commands[name].help  # type: ignore[attr-defined]
        assert line == help_text.split("\n\n")[0].replace("\n", " ")
    code = (
        "import sys\nfrom longvis_bench.cli.app import main\nsys.argv = ['longvis', {word!r}]\n"
        "try: main()\nfinally: print([name for name in sys.modules if name.startswith('longvis_bench.cli.')])"
    )
    for word, wanted in (
        ("--help", set()),
        ("models", {"longvis_bench.cli.models", "longvis_bench.cli.options"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(word=word)], capture_output=True, text=True, check=True
        )
        common = {f"longvis_bench.cli.{name}" for name in ("app", "group", "guard")}
        assert set(ast.literal_eval(done.stdout.splitlines()[-1])) == common | wanted


COMPLETE = {"_LONGVIS_COMPLETE": "complete_bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("longvis bench --models atlas-", ["atlas-b", "atlas-n", "atlas-s"]),
        ("longvis bench -m vit-n,atlas-", ["vit-n,atlas-b", "vit-n,atlas-n", "vit-n,atlas-s"]),
        ("longvis models longv", ["longvit", "longvit-b", "longvit-n", "longvit-s"]),
        ("longvis flops swin-", ["swin-b", "swin-l", "swin-n", "swin-s", "swin-t"]),
    ],
)
def test_the_shell_completes_model_names(words: str, wanted: list[str]) -> None:
    program = (
        "import sys\nfrom longvis_bench.cli.app import main\ntry: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, **COMPLETE, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert "AssertionError" not in done.stderr
    assert sorted(done.stdout.split()) == wanted


@pytest.mark.parametrize("text", ['{"config": 3}', "[]", "{"])
def test_a_config_file_that_is_none(text: str) -> None:
    Path("run.json").write_text(text)
    code, _, stderr = invoke("bench", "--config", "run.json")
    assert (code, stderr.count("\n")) == (2, 1)


def test_a_callable_that_is_not_in_the_file() -> None:
    Path("net.py").write_text("raise SystemExit('planning runs no code')\ndef other(): pass\n")
    code, _, stderr = invoke("bench", "--models", "net.py:build", "--res", "64", "--dry-run")
    assert code == 2
    assert "net.py has no callable named 'build'" in stderr


def test_report_into_a_file_is_refused(row: Row) -> None:
    with RunDirectory(Path("run")) as directory:
        directory.append(row)
    Path("file").write_text("")
    code, _, stderr = invoke("report", "run", "--out", "file")
    assert (code, stderr.count("\n")) == (2, 1)


def test_a_config_file_with_an_unknown_option() -> None:
    Path("sweep.toml").write_text('model = ["vit-n"]\n')
    code, _, stderr = invoke("bench", "--config", "sweep.toml")
    assert code == 2
    assert (
        "unknown field 'model' of a configuration: did you mean models? The fields are preset, models, res"
        in stderr
    )


def test_new_then_check() -> None:
    code, out, _ = invoke("new", "mynet")
    assert code == 0
    assert "longvis check mynet" in out
    code, out, _ = invoke("check", "mynet")
    assert code == 0, out
    assert "14 of 14 checks passed" in out
    code, out, _ = invoke("check", "mynet", "--meta")
    assert code == 0, out
    assert "9 of 14 checks passed, 5 not run" in out


def test_check_fails_with_exit_code_1() -> None:
    code, out, _ = invoke("check", "moody-nan", "--models-dir", FAMILIES, "--json")
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [result["name"] for result in results if result["passed"] is False] == ["gives finite logits"]
    assert {result["detail"] for result in results if result["passed"] is None} == {
        "not run: it needs a model that gives finite logits",
        "not run: it needs a model that is deterministic in eval",
    }


@pytest.mark.parametrize(
    "forward",
    [
        "return self.head(x if x.sum().item() > 0 else -x)",
        "return self.head(torch.sparse.mm(torch.eye(3, device='cpu').to_sparse(), x.T).T)",
        "return self.head(torch.from_numpy(x.numpy()))",
    ],
)
def test_flops_of_a_model_that_needs_data_says_why(
    model_file: Callable[..., Path], forward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model_file("needy", "x = x.mean(dim=(2, 3))", forward)
    monkeypatch.chdir(file.parent)
    code, _, error = invoke("flops", "needy.py:build", "--res", "64", "--classes", "10")
    assert code == 1
    assert "it has 40 parameters, but its operations cannot be counted without data: " in error
    assert "Traceback" not in error


def test_flops_shows_modules_operators_and_the_ledger() -> None:
    code, out, _ = invoke("flops", "vit-n", "--res", "256", "--no-fvcore")
    assert code == 0
    for words in ("By module", "blocks.0", "By operator", "aten::bmm", "Ledger", "coverage 100.0 %"):
        assert words in out


def test_flops_of_features_leave_the_head_out_and_list_the_maps() -> None:
    code, out, _ = invoke("flops", "swin-n", "--res", "256", "--output", "features")
    assert code == 0
    assert "swin-n at 256 px, features, one image, eval: " in out
    strides = re.findall(r"stride (\d+) with \d+ channels", " ".join(out.split()))
    assert strides == ["4", "8", "16", "32"]
    assert "head" not in out
    assert "fvcore check at 256 px" in out
    code, _, error = invoke("flops", "fastervit-n@upstream", "--res", "256", "--output", "features")
    assert code in (1, 3)
    assert "Traceback" not in error


def test_models_lists_every_variant_by_size() -> None:
    code, out, _ = invoke("models")
    assert code == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["swin-s"] == ["swin-s", "49.6", "M", "184", "G", "linear", "multiples", "of", "32"]
    assert lines["atlas-s"][-1] == "256,512,768,1k,2k,3k,4k"
    assert lines["mambavision-l2"][1] == "*"
    marked = [found for found in Registry().cards if found.card.licences.non_commercial]
    assert out.count("non-commercial in part") == len(marked) == 4
    names = [name for name in lines if name in Registry().variants()]
    assert set(names) == set(Registry().variants())
    assert [name for name in names if name.startswith("vit-")] == [
        "vit-n",
        "vit-t",
        "vit-s",
        "vit-b",
        "vit-l",
    ]
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_models_as_json() -> None:
    _, out, _ = invoke("models", "--json")
    entries = {entry["model"]: entry for entry in map(json.loads, out.splitlines())}
    assert set(entries) == set(Registry().variants())
    assert entries["vit-s"]["params"] == 23_548_264
    assert entries["vit-s"]["non_commercial"] is False
    _, out, _ = invoke("models", "Vit_S", "--json")
    card = json.loads(out)
    assert (card["family"], card["variants"]["vit-s"]["sizes"]) == ("vit", "multiples of 16")
    assert card["bibtex"].startswith("@misc{dosovitskiy2020vit,")


def test_a_legal_size_in_a_few_words_is_legal() -> None:
    for name in Registry().variants():
        variant = Registry().find(name)
        words = legal_sizes(variant)
        step = int(words.rpartition(" ")[2]) if words.startswith("multiples") else 1
        sizes = (
            [int(s.replace("k", "")) * (1024 if "k" in s else 1) for s in words.split(",")]
            if step == 1 and (words != "any")
            else [step * -(-size // step) for size in (256, 500, 1000, 2048)]
        )
        for size in sizes:
            variant.plan(size)
        if step > 1:
            with pytest.raises(IllegalSize):
                [variant.plan(size) for size in range(512 - step, 512 + step) if size % step]


def test_a_card_without_authors_has_no_bibtex() -> None:
    assert invoke("new", "mynet")[0] == 0
    _, out, _ = invoke("models", "mynet", "--json")
    assert json.loads(out)["bibtex"] is None
    code, out, _ = invoke("models", "mynet")
    assert (code, "@misc" in out) == (0, False)


def test_models_shows_one_in_full() -> None:
    code, out, _ = invoke("models", "mambavision-s")
    assert code == 0
    for words in (
        "2407.08083",
        "NVlabs/MambaVision",
        "non-commercial",
        "mambavision-l2",
        "pyramid (--output features)",
        "Table",
        "@misc{hatamizadeh2024mambavision,",
    ):
        assert words in out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_what_it_was(command: str) -> None:
    """A change of an option shows in the diff of tests/golden_help/; LONGVIS_GOLDEN=write makes it anew."""
    golden = HERE / "golden_help" / f"{command or 'longvis'}.txt"
    shown = help_of(command, columns=120).replace("Usage: root", "Usage: longvis")
    text = "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"
    if os.environ.get("LONGVIS_GOLDEN") == "write":
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
