"""Copy the scripts of the offline page from an npm folder, with their licences, versions and hashes.

    npm install --prefix FOLDER --ignore-scripts vega vega-lite vega-interpreter
    python scripts/vendor_scripts.py FOLDER

The licences are those of the packages and of everything they depend on, because their builds contain it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from longvis_bench.hashing import sha256_file
from longvis_bench.report.html.page import ASSETS, VENDORED

TEXTS, MANIFEST = "LICENCES.txt", "vendored.json"
NOT_BUILT = {
    *("commander", "iconv-lite", "node-fetch", "rw", "yargs"),
    *("@types/estree", "@types/geojson", "vega-typings"),
}
"""Command-line tools and types, which builds for browsers leave out."""
_NAMES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "license")


def vendor(npm: Path) -> None:
    """Write the scripts, their licences and the list of their versions."""
    modules = npm / "node_modules"
    listed, packages = {}, set[str]()
    for file in VENDORED:
        name = file.removesuffix(".js").removesuffix(".min")
        shutil.copyfile(modules / name / "build" / file, ASSETS / file)
        facts = _facts(modules / name)
        listed[file] = {
            "package": name,
            "version": facts["version"],
            "licence": facts["license"],
            "sha256": sha256_file(ASSETS / file),
        }
        packages |= _with_dependencies(name, modules)
    (ASSETS / MANIFEST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    texts = [_licence(modules / name) for name in sorted(packages)]
    (ASSETS / TEXTS).write_text("\n\n".join(texts), encoding="utf-8")


def _facts(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((package / "package.json").read_text(encoding="utf-8"))
    return found


def _with_dependencies(name: str, modules: Path) -> set[str]:
    """The package and everything that its build contains, further down too."""
    found, waiting = set[str](), [name]
    while waiting:
        package = waiting.pop()
        if package not in found | NOT_BUILT:
            found.add(package)
            waiting += _facts(modules / package).get("dependencies", {})
    return found


def _licence(package: Path) -> str:
    facts = _facts(package)
    text = next((package / name for name in _NAMES if (package / name).is_file()), None)
    heading = f"{facts['name']} {facts['version']} ({facts['license']})"
    rule = "-" * len(heading)
    said = text.read_text(encoding="utf-8").strip() if text else "The package has no licence file."
    return f"{heading}\n{rule}\n\n{said}\n"


if __name__ == "__main__":
    vendor(Path(sys.argv[1]))
