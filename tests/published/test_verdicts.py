"""Verdicts on counts, with the conventions under which a count gives the published number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import longvis_bench as lv
from longvis_bench.cli.app import app
from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.published.verdicts import Checked, check, sentence, tally
from longvis_bench.registry.registry import Registry

Cards = Callable[..., Path]


def checked(folder: Path) -> list[Checked]:
    return check(Registry([folder]), ["tiny-*"])


def longvis(*arguments: object, columns: int = 120) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["claims", *map(str, arguments)], env={"COLUMNS": str(columns)})
    return result.exit_code, result.output


def test_the_model_is_counted_by_hand() -> None:
    """The products of attention are those of 2 blocks, 17 tokens and a width of 32, twice."""
    variant = Registry().find("vit-n[dim=32,depth=2,num_heads=2]")
    count = count_variant(variant, 64, 1000).operators()
    assert (count.params, count.macs, count.products) == (83_656, 880_000, 2 * 2 * 17 * 17 * 32)
    assert count.complete


@pytest.mark.parametrize(
    ("numbers", "verdict", "why"),
    [
        ("params_m = 0.084", "reproduced", ""),
        ("params_m = 0.0837", "reproduced", ""),
        ("params_m = 0.083", "contradicted", "cut off instead of rounded"),
        ("params_m = 0.0838", "contradicted", "not known"),
        ("params_m = 0.0836", "contradicted", "cut off instead of rounded"),
        ("macs_g = 0.00088", "reproduced", ""),
        ("macs_g = 0.000880", "reproduced", ""),
        ("macs_g = 0.000843", "contradicted", "counted without the products of attention"),
        (
            "macs_g = 0.000849",
            "contradicted",
            "about what is counted without the products of attention (0.0008430 G)",
        ),
        ("macs_g = 0.000860", "contradicted", "not known"),
        ("macs_g = 0.00176", "contradicted", "counted as FLOPs, 2 per MAC"),
        ("macs_g = 0.0011", "contradicted", "not known"),
        ("top1_percent = 70.1", "not comparable", "the authors' weights and imagenet-1k"),
        (
            'throughput_img_s = 100\nhardware = "A100, batch 128"',
            "not comparable",
            "A100, batch 128",
        ),
        (
            'runtime_h = 2.5\nhardware = "8x NVIDIA H100"',
            "not comparable",
            "a whole training run on 8x NVIDIA H100",
        ),
    ],
)
def test_verdict_and_reason(cards: Cards, numbers: str, verdict: str, why: str) -> None:
    (found,) = checked(cards(numbers))
    assert (found.verdict, found.why) == (verdict, why)


def test_a_number_is_judged_by_its_printed_digits(cards: Cards) -> None:
    """0.1 is 0.0837 rounded; 0.10 is not."""
    found = checked(cards("params_m = 0.1", "params_m = 0.10"))
    assert [one.verdict for one in found] == ["reproduced", "contradicted"]


def test_a_contradiction_names_the_source_that_agrees_with_the_count(cards: Cards) -> None:
    cards("macs_g = 0.00088", source="arXiv:2601.00002")
    found = checked(cards("macs_g = 0.00099"))
    assert [one.verdict for one in found] == ["reproduced", "contradicted"]
    assert found[1].why == "arXiv:2601.00002, Table 1 prints 0.00088, as counted"


@pytest.mark.parametrize("model", ["mambavision-l2", "fastervit-4"])
def test_published_models_of_other_windows_are_counted_with_theirs(model: str) -> None:
    """The parameters agree; of the MACs the sources leave attention out."""
    found = [one for one in check(Registry(), [model]) if one.claim.entry.arguments and one.ratio]
    why = {(one.claim.model, one.claim.quantity, one.ratio): one.why for one in found}
    assert len(why) >= 2
    for (name, quantity, ratio), said in why.items():
        close = ratio == pytest.approx(1, abs=5e-4)
        assert close if quantity == "params" else "without the products of attention" in said, (name, why)


def test_a_source_of_another_size_agrees_with_nothing(cards: Cards) -> None:
    cards("macs_g = 0.00088", source="arXiv:2601.00002")
    found = checked(cards("macs_g = 0.00088", resolution=128))
    assert [one.why for one in found] == ["", "not known"]


def test_a_size_that_is_not_legal_and_unknown_classes_are_not_comparable(cards: Cards) -> None:
    cards("params_m = 0.084", resolution=70)
    found = checked(cards("params_m = 0.084", dataset=""))
    assert [one.verdict for one in found] == ["not comparable", "not comparable"]
    assert found[0].why.startswith("70 px is not a legal size")
    assert found[1].why == "the number of classes of its dataset is not stated"


def test_weights_without_a_source_are_said_to_be_missing(cards: Cards) -> None:
    (found,) = checked(cards("top1_percent = 70.1", variant="tiny-b"))
    assert found.why == "weights, which the card has no source of, and imagenet-1k"


def test_counts_come_from_the_cache_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = count_variant

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("longvis_bench.published.counts.count_variant", counted)
    first = check(Registry(), ["vit-s"])
    made = len(calls)
    assert made == 2  # 224 and 384 px, whatever the number of entries
    assert [one.record for one in check(Registry(), ["vit-s"])] == [one.record for one in first]
    assert len(calls) == made
    check(Registry(), ["vit-s"], cache=False)
    assert len(calls) == 2 * made


def test_the_tally_has_every_number(cards: Cards) -> None:
    found = checked(cards("params_m = 0.084\nmacs_g = 0.00176\ntop1_percent = 70.1"))
    assert tally(found) == {
        "params": {"reproduced": 1, "contradicted": 0, "not comparable": 0},
        "MACs": {"reproduced": 0, "contradicted": 1, "not comparable": 0},
        "top-1": {"reproduced": 0, "contradicted": 0, "not comparable": 1},
    }
    assert sentence(found) == (
        "3 published numbers of 1 family: 1 reproduced, 1 contradicted, 1 not comparable."
    )


def test_json_has_an_object_per_number(cards: Cards) -> None:
    folder = cards("params_m = 0.083\nmacs_g = 0.00088")
    code, output = longvis("--models", "tiny-a", "--models-dir", folder, "--json")
    assert code == 0
    params, macs = map(json.loads, output.splitlines())
    assert params["ours"] == pytest.approx(0.083656)
    assert params["ratio"] == pytest.approx(0.083656 / 0.083)
    assert (params["printed"], params["unit"], params["quantity"]) == ("0.083", "M", "params")
    assert (macs["verdict"], macs["why"]) == ("reproduced", None)
    frame = lv.claims(["tiny-a"], models_dirs=[folder])
    assert list(frame["verdict"]) == ["contradicted", "reproduced"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_command_shows_contradictions_and_what_is_missing(cards: Cards, columns: int) -> None:
    folder = cards("params_m = 0.083\ntop1_percent = 70.1")
    code, output = longvis("--models", "tiny-a", "--models-dir", folder, columns=columns)
    assert code == 0
    assert "1 reproduced" not in output
    words = " ".join(output.split())
    assert "2 published numbers of 1 family: 0 reproduced, 1 contradicted, 1 not comparable." in words
    assert "0.0837" in words
    assert "1 the authors' weights and imagenet-1k" in words
    assert max(map(len, output.splitlines())) <= columns


def test_a_hostile_card_cannot_drive_the_terminal(cards: Cards) -> None:
    folder = cards("params_m = 0.083", source="[red]arXiv[/red]")
    code, output = longvis("--models", "tiny-a", "--models-dir", folder)
    assert code == 0
    assert "[red]arXiv[/red]" in "".join(output.split())


def test_bad_names_are_one_sentence_with_near_misses() -> None:
    code, output = longvis("--models", "swin-q")
    assert code == 2
    assert "unknown model 'swin-q': did you mean" in " ".join(output.split())
    code, output = longvis("--models", "vit-n")
    assert code == 2
    assert "no card has a published number of vit-n" in " ".join(output.split())
