"""Print docs/LICENCES.md: every package of requirements.lock and the licence that its own metadata states.

python docs/licences.py > docs/LICENCES.md
"""

import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
HEAD = """# Licences of the dependencies

What each package of `requirements.lock` says about itself in its metadata; made by `python docs/licences.py`. Nothing
of them is copied into this repository. Data sets and models have terms of their own: see their sources. The numbers in
[tests/selection/published](../tests/selection/published/README.md) are from the paper's public repository (MIT).

| package | version | licence |
|---|---|---|
"""


def licence(name: str) -> str:
    """The licence expression; else the classifiers, else the first line of the licence field."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    classified = [c.rsplit(" :: ", 1)[1] for c in found.get_all("Classifier") or [] if c.startswith("License :: ")]
    stated = [line for line in (found.get("License") or "").splitlines() if line.strip()]
    short = stated[0].strip() if stated and len(stated[0]) < 80 else ""
    return found.get("License-Expression") or ", ".join(classified) or short or "not stated in the metadata"


def main() -> None:
    """Write the table to stdout."""
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    rows = [(name, version, licence(name)) for name, version in (line.split("==") for line in lines)]
    sys.stdout.write(HEAD + "".join(f"| {name} | {version} | {text} |\n" for name, version, text in rows))


if __name__ == "__main__":
    main()
