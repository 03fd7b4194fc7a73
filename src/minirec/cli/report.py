"""report: write one HTML page about the experiment on a data set."""

from __future__ import annotations

import sys
from pathlib import Path

from minirec.errors import InputError
from minirec.experiment.config import DEFAULTS, load, remembered
from minirec.storage.files import atomic_write


def run(*, folder: Path, configfile: list[Path] | None, out: Path | None = None) -> None:
    """Write report.html into the results of a data set; raises InputError if its experiment is not done."""
    from minirec.report.page import html  # takes seconds to import

    config = load(DEFAULTS, *remembered(folder, configfile))
    if folder.name not in config.datasets or folder.parent != Path(config.results):
        raise InputError(f"{folder} is not {config.results}/DATASET with DATASET among {', '.join(config.datasets)}")
    page, path = html(config, folder), out or folder / "report.html"
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")
    sys.stdout.write(f"{path}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser\n")
