"""Weight files and checksums: what must agree, and that nothing is guessed."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.engines.models import make_model
from toolgym.engines.weights import WeightsWriter, checksum, logprobs_of, named_weights, read_weights, write_weights
from toolgym.errors import EngineError


def test_checksum_sees_one_flipped_bit_names_shapes_and_dtypes():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    reference = checksum(tensors)
    flipped = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    flipped["b"].view(torch.int32)[2] ^= 1
    assert checksum(flipped) != reference
    assert checksum({"a": torch.zeros(3, 2), "b": torch.ones(4)}) != reference
    assert checksum({"a": torch.zeros(2, 3), "c": torch.ones(4)}) != reference
    assert checksum({"a": torch.zeros(2, 3), "b": torch.ones(4).view(torch.int32)}) != reference
    assert checksum({"b": torch.ones(4), "a": torch.zeros(2, 3)}) == reference


def test_checksum_counts_tied_weights_once():
    model = make_model()
    assert "lm_head.weight" in model.state_dict()
    assert "lm_head.weight" not in named_weights(model)
    assert checksum(model.state_dict()) == checksum(named_weights(model))


def test_checksum_of_half_precision_and_of_views():
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert checksum({"a": tensor.T}) == checksum({"a": tensor.T.contiguous()})


def test_write_and_read_round_trip(tmp_path):
    source, target = make_model(seed=1), make_model(seed=2)
    path = tmp_path / "w.safetensors"
    written = write_weights(named_weights(source), path)
    read_weights(str(path), named_weights(target))
    assert checksum(named_weights(target)) == written == checksum(named_weights(source))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_write_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights({"a": torch.zeros(2)}, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"cannot write weights|No such file"):
        write_weights({"a": torch.ones(2)}, tmp_path / "missing" / "w.safetensors")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("b"), r"lacks 1 of 2 tensors: b"),
        (lambda t: t.update(c=torch.zeros(1)), r"does not know,? 1 of 2 tensors: c"),
        (lambda t: t.update(b=torch.zeros(5)), r"'b' .* \(5,\), the engine has .* \(4,\)"),
        (lambda t: t.update(b=torch.zeros(4, dtype=torch.bfloat16)), r"'b' .* torch.bfloat16"),
    ],
)
def test_read_refuses_other_tensors(tmp_path, change, message):
    tensors = {"a": torch.zeros(2), "b": torch.ones(4)}
    into = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(EngineError, match=message):
        read_weights(str(tmp_path / "w.safetensors"), into)


@pytest.mark.parametrize("content", [None, b"", b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!"])
def test_read_refuses_broken_files(tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match="cannot read the weights"):
        read_weights(str(path), {"a": torch.zeros(2)})


def test_writer_alternates_two_files_and_removes_them(tmp_path):
    model = make_model()
    with WeightsWriter(tmp_path) as writer:
        handles = [writer.write(model) for _ in range(3)]
        assert handles[0].path == handles[2].path != handles[1].path
        assert len(handles[0].canary_tokens) == len(handles[0].canary_logprobs) == 16
        assert handles[0].checksum == checksum(named_weights(model))
        assert handles[0].canary_logprobs == logprobs_of(model, handles[0].canary_tokens)
    assert not list(tmp_path.iterdir())


def test_writer_sweeps_what_killed_writers_left(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = tmp_path / f"toolgym-weights-{ended.pid}-abc"
    alive = tmp_path / f"toolgym-weights-{os.getpid()}-abc"
    for folder in (left, alive):
        folder.mkdir()
        (folder / "weights-0.safetensors").touch()
    with WeightsWriter(tmp_path):
        assert not left.exists()
        assert alive.exists()


def test_logprobs_of_leaves_the_mode_alone():
    model = make_model().train()
    values = logprobs_of(model, [1, 2, 3])
    assert model.training
    assert values[0] == 0.0
    with torch.no_grad():
        table = torch.log_softmax(model.eval()(torch.tensor([[1, 2, 3]])).logits[0].float(), -1)
    assert values[1:] == pytest.approx([float(table[0, 2]), float(table[1, 3])], abs=1e-6)
