"""Checkpoints: all or nothing, and one clear error when one is damaged."""

from pathlib import Path

import pytest
import torch

from tests.trainer.builders import group, tiny_model
from toolgym.errors import TrainingError
from toolgym.trainer import checkpoint
from toolgym.trainer.algorithm import AlgorithmConfig
from toolgym.trainer.batch import collate
from toolgym.trainer.learner import Learner, OptimizerConfig


def learner(seed: int = 0) -> Learner:
    return Learner(tiny_model(seed), AlgorithmConfig.model_validate("grpo"), OptimizerConfig(), steps=5)


def trained() -> Learner:
    made = learner()
    made.step(collate([group([1.0, 0.0], seed=1)], pad=0), version=0)
    return made


def test_checkpoint_round_trip_restores_parameters_optimizer_and_step(tmp_path: Path) -> None:
    first, second = trained(), learner(seed=5)
    checkpoint.write(tmp_path / "step-1", first)
    checkpoint.read(tmp_path / "step-1", second)
    assert second.step_count == 1
    batch = collate([group([1.0, 0.0], seed=2)], pad=0)
    first.step(batch, version=0)
    second.step(batch, version=0)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_checkpoint_write_replaces_the_leftovers_of_a_kill(tmp_path: Path) -> None:
    for leftover in (tmp_path / "step-1", tmp_path / "step-1.partial"):
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"half")
    checkpoint.write(tmp_path / "step-1", trained())
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    checkpoint.read(tmp_path / "step-1", learner())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_checkpoint_read_names_a_damaged_checkpoint(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "step-1"
    checkpoint.write(folder, trained())
    file = folder / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage == "cut" else b"\x00garbage" * 20)
    with pytest.raises(TrainingError, match="step-1"):
        checkpoint.read(folder, learner())


def test_load_model_names_the_missing_tensor_and_the_wrong_shape(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "a", trained())
    file = tmp_path / "a" / "model.safetensors"
    other = tiny_model(layers=3)
    with pytest.raises(TrainingError, match=r"lacks .* tensors.*model\.layers\.2"):
        checkpoint.load_model(other, file)
    with pytest.raises(TrainingError, match=r"has shape \[24, 16\], the model's is \[32, 16\]"):
        checkpoint.load_model(tiny_model(intermediate_size=32), file)


def test_prune_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    for name in ("step-0", "step-1", "step-2", "step-3.partial"):
        (tmp_path / name).mkdir()
    checkpoint.prune(tmp_path, keep={tmp_path / "step-0", tmp_path / "step-2"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0", "step-2"]
