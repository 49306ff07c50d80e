"""Finding the folder of a run."""

from __future__ import annotations

from pathlib import Path

from toolgym.errors import ConfigError, nearest

RUNS_DIR = Path("runs")
DATABASE = "run.db"


def list_runs(runs_dir: Path) -> list[Path]:
    """The folders with a run database, oldest first; links such as ``latest`` are left out."""
    if not runs_dir.is_dir():
        return []
    found = [p for p in runs_dir.iterdir() if not p.is_symlink() and (p / DATABASE).is_file()]
    return sorted(found, key=lambda p: ((p / DATABASE).stat().st_ctime, p.name))


def find_run(name: str, runs_dir: Path = RUNS_DIR) -> Path:
    """The folder of a run, given its name in ``runs_dir`` (``latest`` among them) or its path.

    Raises:
        ConfigError: there is none; with the nearest name.
    """
    for folder in (runs_dir / name, Path(name)):
        if (folder / DATABASE).is_file():
            return folder.resolve()
    known = [p.name for p in list_runs(runs_dir)]
    if known and (runs_dir / "latest").exists():
        known.append("latest")
    raise ConfigError(nearest(name, known, what="run") + f" (in {runs_dir}/)")
