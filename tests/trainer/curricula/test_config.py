"""A recipe's curriculum builds, plays and refuses what it cannot use."""

import pytest
from pydantic import TypeAdapter, ValidationError

from toolgym.errors import ConfigError
from toolgym.trainer.curricula.config import CurriculumConfig, LadderConfig, SourcesConfig

from .simulated import Learner, tasks

ADAPTER = TypeAdapter(CurriculumConfig)


@pytest.mark.parametrize(
    "name", ["shuffled", "dynamic_sampling", "pcl", "dump", "retry", "no_positive_resampling", "ladder"]
)
def test_curriculum_config_builds_a_curriculum_that_plays(name):
    found = tasks([0.0, 1.0], problem="p", rung=0)
    curriculum = ADAPTER.validate_python({"type": name}).build(found, seed=1)
    batch = Learner().step(curriculum, 8)
    assert len(batch) == 8
    assert {t.id for t in batch} <= {t.id for t in found}
    curriculum.load_state_dict(curriculum.state_dict())


def test_curriculum_config_ladder_orders_forms_by_their_rung():
    forms = [tasks([0.0], per_level=1, problem="p", rung=rung)[0] for rung in (2, 0, 1)]
    assert LadderConfig().build(forms, seed=0).next_tasks(1) == [forms[1]]


def test_curriculum_config_says_what_a_task_lacks():
    with pytest.raises(ConfigError, match="no 'topic' in its data; it has level, question"):
        SourcesConfig(key="topic").build(tasks([0.0]), seed=0)
    with pytest.raises(ConfigError, match="no 'problem'"):
        LadderConfig().build(tasks([0.0]), seed=0)
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"type": "pcl", "tau": 2.0})
