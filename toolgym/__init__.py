"""toolgym: an agentic RL gym. Tool environments in sandboxes, verifiable rewards, asynchronous training.

Importing it registers the environments with Gymnasium: ``gymnasium.make("toolgym/python-v0")``.
"""

from toolgym.envs.registry import register_all

__version__ = "0.1.0"

register_all()
