"""The run database (SQLite, write-ahead log): metrics, episodes with their tokens, checkpoints, events."""

from toolgym.store.database import StoreError
from toolgym.store.run_store import Checkpoint, Episode, Event, GroupState, Metric, RunStore

__all__ = ["Checkpoint", "Episode", "Event", "GroupState", "Metric", "RunStore", "StoreError"]
