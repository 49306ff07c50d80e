"""The folder of a run: ``runs/<time>-<recipe>-s<seed>/``, with ``runs/latest`` pointing at the newest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

from toolgym.config import to_toml
from toolgym.trainer.config import RunConfig

PACKAGES = ("toolgym", "torch", "transformers", "tokenizers", "gymnasium", "numpy", "docker", "vllm", "ray", "peft")


def new_folder(config: RunConfig, runs_dir: Path) -> Path:
    """Make the folder, write ``recipe.toml`` (every key, from which the run can be made again), move ``latest``.

    Raises:  OSError: the folder cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = f"{stamp}-{config.name}-s{config.seed}"
    for attempt in range(1000):
        folder = runs_dir / (base if attempt == 0 else f"{base}-{attempt}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    else:
        raise OSError(f"{runs_dir} has a thousand runs called {base}")
    (folder / "recipe.toml").write_text(to_toml(config), encoding="utf-8")
    beside = runs_dir / f".latest-{os.getpid()}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(folder.name)
    os.replace(beside, runs_dir / "latest")
    return folder.resolve()


def versions() -> dict[str, str]:
    """What the run ran with: Python, machine, and the versions of the packages that matter."""
    found = {"python": sys.version.split()[0], "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
