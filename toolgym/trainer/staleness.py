"""The one staleness rule: who may start, what the next batch must hold, and what is too old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Staleness:
    """Admits rollouts and bounds the buffer so that no sample is older than ``limit`` versions when it is trained on.

    Staleness of a group is the learner's version at the update minus the lowest version among its trained tokens, which
    is at least the version at which it was admitted. With P groups per step:

    * group ``number`` (0, 1, ...) may start when ``number - discarded < (version - first + limit + 1) P``;
    * a group admitted at version a must be in the batch at a + limit or before. So for every later version u, the
      groups that the batch leaves and that are due by u must fit into the u - version batches until then.

    Taking the oldest finished groups is best for all u at once; where even that leaves too many, the learner waits for
    stragglers (they are paced, not discarded). The wait ends: with everything finished the oldest P always do. With
    limit 0 a batch is exactly the groups rolled out at its version. A discarded group makes room for one more, which
    starts later and so is never due before it. Example: ``Staleness(limit=1, per_step=16)`` lets the sampler run one
    version ahead.
    """

    limit: int
    per_step: int
    version: int = 0
    first: int = 0  # the version at which group 0 was admitted
    discarded: int = 0  # groups that were admitted and will be in no batch
    admitted_at: dict[int, int] = field(default_factory=dict[int, int])  # group number -> version, until consumed

    def may_admit(self, number: int) -> bool:
        """Whether the group of that number may start at the current version."""
        return number - self.discarded < (self.version - self.first + self.limit + 1) * self.per_step

    def admit(self, number: int) -> None:
        """Note that the group starts now."""
        assert self.may_admit(number), f"group {number} may not start at version {self.version}"
        self.admitted_at[number] = self.version

    def batch(self, finished: Sequence[int]) -> list[int] | None:
        """Choose P of the finished group numbers (given in order of finishing), or None while the learner must wait.

        Returns: the numbers, ascending; they stay admitted until `consume`.
        """
        if len(finished) < self.per_step:
            return None
        oldest = sorted(finished, key=self.admitted_at.__getitem__)[: self.per_step]
        left = sorted(self.admitted_at[n] for n in self.admitted_at.keys() - set(oldest))
        for place, admitted in enumerate(left):  # of those left, place + 1 are due by admitted + limit
            if place + 1 > (admitted + self.limit - self.version) * self.per_step:
                return None
        return sorted(oldest)

    def consume(self, numbers: Sequence[int]) -> None:
        """The groups have been trained on: they are admitted no longer."""
        for number in numbers:
            del self.admitted_at[number]

    def discard(self, number: int) -> None:
        """The group will be in no batch: another may start in its place."""
        self.consume([number])
        self.discarded += 1

    def of(self, min_version: int) -> int:
        """Staleness at an update made now of a group with that lowest version."""
        return max(0, self.version - min_version)
