"""The conformance suite for rewards: what every reward must do, tried on a task of its own."""

from collections.abc import Sequence

from toolgym.errors import RewardError
from toolgym.rewards.base import Reward, evaluate
from toolgym.types import Message, Scored, Task

# What policies write: nothing, too much, other numbers, half markup, text that breaks careless parsing.
HOSTILE_ANSWERS: Sequence[str] = (
    "",
    " \n\t ",
    "nan",
    "inf",
    "-0",
    "1/0",
    "1e999999999",
    "9" * 5000,
    "((((" * 500,
    "\\frac{1}{0}",
    "\x00\x1b[31m",
    "\u202e\ufeff\u0301",
    "𝟙²٣",
    "<tool_call>",
    "a" * 100_000,
    "None",
    '{"answer": ',
)


async def check_reward(
    reward: Reward, task: Task, *, right: str, wrong: str = "surely wrong", timeout_s: float = 5.0
) -> None:
    """Check that a reward scores, separates right from wrong, repeats itself and stands whatever a policy writes.

    Args:
        reward: to check.
        task: one that it can score.
        right: an answer that should score higher than ``wrong`` and than every hostile one.
        wrong: one that should not.
        timeout_s: seconds for each score.

    Raises:
        RewardError: it does not; the message says on which answer.
    """
    best = await _score(reward, task, right, timeout_s)
    for answer in (wrong, *HOSTILE_ANSWERS):
        scored = await _score(reward, task, answer, timeout_s)
        if scored.value >= best.value:
            raise RewardError(
                f"the answer {answer!r:.60} scores {scored.value:g}, no less than {right!r}: {best.value:g}"
            )
    again = await _score(reward, task, right, timeout_s)
    if again != best:
        raise RewardError(f"the answer {right!r} scored {best} and then {again}: a reward must repeat itself")


async def _score(reward: Reward, task: Task, answer: str, timeout_s: float) -> Scored:
    final = Message(role="assistant", content=answer)
    messages = (Message(role="user", content=str(task.data.get("question", ""))), final)
    try:
        return await evaluate(reward, task, messages, answer, timeout_s=timeout_s)
    except RewardError as error:
        raise RewardError(f"on the answer {answer!r:.60}: {error}") from error
