"""BibTeX entries of the built-in families, as arXiv and the authors' repositories give their papers."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.cli.models import bibtex
from longvis_bench.registry.discovery import built_in_cards

PAPERS = {
    # family: arXiv number, title, authors; seen in the repository or paper that the comment names
    "atlas": (  # YalaLab/atlas, README; first page of the paper
        "2503.12355",
        "Atlas: Multi-Scale Attention Improves Long Context Image Modeling",
        "Kumar Krishna Agrawal and Long Lian and Longchao Liu and Natalia Harguindeguy and Boyi Li and "
        "Alexander Bick and Maggie Chung and Trevor Darrell and Adam Yala",
    ),
    "convnext": (  # BibTeX of arXiv, as quoted in public repositories
        "2201.03545",
        "A ConvNet for the 2020s",
        "Zhuang Liu and Hanzi Mao and Chao-Yuan Wu and Christoph Feichtenhofer and Trevor Darrell and "
        "Saining Xie",
    ),
    "fastervit": (  # NVlabs/FasterViT, README
        "2306.06189",
        "FasterViT: Fast Vision Transformers with Hierarchical Attention",
        "Ali Hatamizadeh and Greg Heinrich and Hongxu Yin and Andrew Tao and Jose M. Alvarez and "
        "Jan Kautz and Pavlo Molchanov",
    ),
    "longvit": (  # microsoft/torchscale, README
        "2312.03558",
        "When an Image is Worth 1,024 x 1,024 Words: A Case Study in Computational Pathology",
        "Wenhui Wang and Shuming Ma and Hanwen Xu and Naoto Usuyama and Jiayu Ding and Hoifung Poon and "
        "Furu Wei",
    ),
    "mambavision": (  # NVlabs/MambaVision, as quoted in public repositories
        "2407.08083",
        "MambaVision: A Hybrid Mamba-Transformer Vision Backbone",
        "Ali Hatamizadeh and Jan Kautz",
    ),
    "swin": (  # microsoft/Swin-Transformer, as quoted by open-mmlab/mmsegmentation
        "2103.14030",
        "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        "Ze Liu and Yutong Lin and Yue Cao and Han Hu and Yixuan Wei and Zheng Zhang and Stephen Lin and "
        "Baining Guo",
    ),
    "vit": (  # BibTeX of arXiv, as quoted by lucidrains/vit-pytorch and timm
        "2010.11929",
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        "Alexey Dosovitskiy and Lucas Beyer and Alexander Kolesnikov and Dirk Weissenborn and "
        "Xiaohua Zhai and Thomas Unterthiner and Mostafa Dehghani and Matthias Minderer and "
        "Georg Heigold and Sylvain Gelly and Jakob Uszkoreit and Neil Houlsby",
    ),
}
CARDS = {found.card.family: found.card for found in built_in_cards()}


def test_every_family_of_the_tour_has_a_paper_here() -> None:
    assert set(PAPERS) == {family for family, card in CARDS.items() if card.tour}


@pytest.mark.parametrize("family", sorted(set(CARDS) - set(PAPERS)))
def test_every_other_family_has_an_entry(family: str) -> None:
    """Its card names a paper, a title and authors, in BibTeX's form."""
    lines = (bibtex(CARDS[family]) or "").splitlines()
    assert lines
    assert any((CARDS[family].paper_title or "no title") in line for line in lines)
    assert len(CARDS[family].authors) >= 1


@pytest.mark.parametrize("family", PAPERS)
def test_the_entry_is_the_papers(family: str) -> None:
    number, title, authors = PAPERS[family]
    lines = (bibtex(CARDS[family]) or "").splitlines()
    assert lines[1:-1] == [
        f"  title = {{{{{title}}}}},",
        f"  author = {{{authors}}},",
        f"  year = {{20{number[:2]}}},",
        f"  eprint = {{{number}}},",
        "  archivePrefix = {arXiv}",
    ]


@pytest.mark.parametrize("name", ["swin", "swin-b"])
def test_the_command_prints_the_entry_alone(name: str) -> None:
    done = CliRunner().invoke(app, ["models", name, "--bibtex"])
    assert done.exit_code == 0
    assert done.stdout == f"{bibtex(CARDS['swin'])}\n"


@pytest.mark.parametrize("arguments", [[], ["swin", "--json"]])
def test_the_entry_needs_one_family_and_no_other_form(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["models", *arguments, "--bibtex"])
    assert done.exit_code == 2
    assert "longvis models swin --bibtex" in done.stderr
