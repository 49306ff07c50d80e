"""One torch thread, and a folder with a tiny random model."""

import pytest
import torch

from tests.engines.models import make_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "qwen2"
    make_model().save_pretrained(folder)
    return folder
