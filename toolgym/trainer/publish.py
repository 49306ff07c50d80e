"""The publisher: the learner's weights become the engine's, and it is proven each time."""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread
import torch

from toolgym.engines.base import Engine
from toolgym.engines.weights import WeightsWriter
from toolgym.trainer.faults import crash_point
from toolgym.types import PolicyVersion


class Publisher:
    """Publishes a model to one engine; ``verified`` counts the publications that the engine proved."""

    def __init__(self, engine: Engine, writer: WeightsWriter, model: torch.nn.Module, *, lineage: int, n: int) -> None:
        self.engine = engine
        self.writer = writer
        self.model = model
        self.version = PolicyVersion(lineage=lineage, n=n)
        precision = str(engine.info().details.get("dtype", "float32"))
        own = next(model.parameters()).dtype
        self.dtype = None if getattr(torch, precision) is own else getattr(torch, precision)
        self.verified = 0

    async def publish(self) -> PolicyVersion:
        """Serve the model as it is now, as the next version.

        Raises: EngineError: the engine does not serve these weights (checksum, canary, deadline).
        """
        version = PolicyVersion(policy=self.version.policy, lineage=self.version.lineage, n=self.version.n + 1)
        handle = await anyio.to_thread.run_sync(lambda: self.writer.write(self.model, dtype=self.dtype))
        crash_point("publish")
        await self.engine.publish(version, handle)
        self.version = version
        self.verified += 1
        return version


def canary(tokens: Sequence[int], *, longest: int = 64) -> tuple[int, ...]:
    """The start of a real prompt: what the engine is asked for all day."""
    return tuple(tokens[:longest])
