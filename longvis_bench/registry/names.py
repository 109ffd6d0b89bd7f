"""Model names as users write them: lists, patterns, alternative spellings, and near misses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from longvis_bench.errors import LongvisError, UnknownName

ALL = "all"
TIMM = "timm:"
_TIMM_STYLE = re.compile(r"(?:timm[/.:]|hf-hub:timm/)?(?P<name>[a-z0-9_-]+(?:\.\w+)?)", re.ASCII)
OURS = 0.85
"""Likeness to a card's name from which on a name with hyphens, as cards have them, is not sought in timm."""
_HUB_STYLE = re.compile(r"(?:hf-hub:)?(?P<name>[\w.-]+/[\w.-]+)", re.ASCII)


def split_names(text: str) -> list[str]:
    """Split at commas outside brackets: `a[x=1,y=2],b` -> `["a[x=1,y=2]", "b"]`."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def expand(names: Iterable[str], variants: Sequence[str]) -> list[str]:
    """Replace patterns (`all`, `*-s`, `timm:resnet1*`) by the names they match; each name occurs once.

    Arguments:
        names: as the user wrote them, with arguments in brackets.
        variants: names of the cards' variants, which `all` expands to.

    Raises:
        UnknownName: a pattern matches no name.
    """
    return list(dict.fromkeys(found for name in names for found in _expand(name, variants)))


def _expand(name: str, variants: Sequence[str]) -> list[str]:
    base, bracket, arguments = name.strip().partition("[")
    if base in variants:
        return [name]
    if base.lower() == ALL:
        return [f"{variant}{bracket}{arguments}" for variant in variants]
    if ".py:" in base or (base.startswith(TIMM) and not _is_pattern(base)):
        return [name]
    if not _is_pattern(base):
        variant, at, implementation = base.partition("@")
        return [f"{respelled(variant, variants) or variant}{at}{implementation}{bracket}{arguments}"]
    if base.startswith(TIMM):
        from longvis_bench.backbones.timm import known_names

        found = [TIMM + known for known in known_names() if fnmatchcase(known, base.removeprefix(TIMM))]
    else:
        pattern = normal(base.partition("@")[0])
        found = [
            variant + base[len(pattern) :] for variant in variants if fnmatchcase(normal(variant), pattern)
        ]
    if not found:
        raise UnknownName(
            "model", base, [], "the pattern matches no name; run `longvis models` to see them all."
        )
    return [f"{match}{bracket}{arguments}" for match in found]


def _is_pattern(base: str) -> bool:
    return any(sign in base for sign in "*?")


def normal(name: str) -> str:
    """The canonical spelling that names are compared by: `Atlas_S` -> `atlas-s`."""
    return name.lower().replace("_", "-")


def respelled(name: str, variants: Iterable[str]) -> str | None:
    """The variant that differs from `name` in case, hyphens or underscores only; None unless it is unique."""
    found = [variant for variant in variants if normal(variant) == normal(name)]
    return found[0] if len(found) == 1 else None


def unknown_model(name: str, known: Sequence[str]) -> LongvisError:
    """The error for an unknown name, with near misses among the cards' and timm's models."""
    if _is_pattern(name):
        return UnknownName("model", name, [], "only `longvis bench`, `eval` and `train` take patterns.")
    if " " in name and (one := respelled(name.replace(" ", "-"), known)):
        return UnknownName("model", name, [one])
    if " " in name:
        parts = ",".join(name.split())
        return LongvisError(f"unknown model {name!r}: separate names by commas, like {parts}.")
    near = [] if _is_like_ours(name, known) else _near_in_timm(name)
    if near:
        return UnknownName("model", name, near, f"did you mean {near[0]}?")
    hub = _HUB_STYLE.fullmatch(name)
    hint = "run `longvis models` to see them all, or write timm:NAME or path/to/file.py:callable."
    if hub is not None and not difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5):
        hint = f"for a timm model on the Hugging Face hub, write timm:hf-hub:{hub['name']}."
    return UnknownName("model", name, known, hint)


def _is_like_ours(name: str, known: Sequence[str]) -> bool:
    return "-" in name and bool(difflib.get_close_matches(name.lower(), known, n=1, cutoff=OURS))


def _near_in_timm(name: str) -> list[str]:
    """Similar names of timm models; timm is imported only if the name has the form of a timm name."""
    match = _TIMM_STYLE.fullmatch(name.lower())
    if match is None:
        return []
    from longvis_bench.backbones.timm import known_names

    architecture, dot, tag = match["name"].partition(".")
    names = known_names()
    alike = [known for known in names if _squeezed(known) == _squeezed(architecture)]
    if alike:
        return [f"{TIMM}{near}{dot}{tag}" for near in sorted(alike, key=lambda near: near != architecture)]
    return [f"{TIMM}{near}" for near in difflib.get_close_matches(architecture, names, n=2, cutoff=0.85)]


def _squeezed(name: str) -> str:
    return re.sub(r"[-_]", "", name)
