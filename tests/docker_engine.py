"""Whether a Docker engine answers; ``python -m tests.docker_engine`` says so by its exit code."""

import sys
from functools import cache

import docker
from docker.errors import DockerException


@cache
def docker_answers() -> bool:
    """Ask the engine that the environment names (``DOCKER_HOST``, else the usual socket)."""
    try:
        client = docker.from_env(timeout=10)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(not docker_answers())
