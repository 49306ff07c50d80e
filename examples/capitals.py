"""A whole environment: tasks, a tool and a reward. Try it with ``python examples/capitals.py``."""

import gymnasium

from toolgym.envs import ToolEnv, register, tool
from toolgym.rewards import ExactMatch

CAPITALS = {"France": "Paris", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo", "Cuba": "Havana", "Fiji": "Suva"}
SPLITS = {"train": ("France", "Peru", "Kenya", "Japan"), "validation": ("Cuba",), "test": ("Fiji",)}


@register("example/capitals-v0")
class Capitals(ToolEnv):
    """Questions about capitals, answered by looking them up."""

    reward = ExactMatch()

    def tasks(self, split):
        countries = SPLITS[self.check_split(split)]
        questions = {c: f"What is the capital of {c}?" for c in countries}
        return [self.make_task(split, i, question=questions[c], answer=CAPITALS[c]) for i, c in enumerate(countries)]

    @tool
    async def capital(self, country: str) -> str:
        """Look up the capital of a country.

        Args:
            country: its English name
        """
        return CAPITALS.get(country, "unknown country")


if __name__ == "__main__":
    env = gymnasium.make("example/capitals-v0")
    print(env.reset(seed=0)[0])
    print(env.step('<tool_call>\n{"name": "capital", "arguments": {"country": "Peru"}}\n</tool_call>')[0])
    print("score:", env.step("Lima")[1])
    env.close()
