"""The conformance suite for sandbox providers: what environments and graders rely on, tried on a real sandbox.

Every provider is asked the same. What one cannot do stands in `KNOWN_FAILURES` with its reason, or is left out of
its `Provider.isolation`; a known failure that no longer fails is reported, so that the lists stay true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from toolgym.sandboxes.base import Sandbox, SandboxSpec
from toolgym.sandboxes.checks import CHECKS, ISOLATION, Check, Failed
from toolgym.sandboxes.provider import RESTRICTIONS, Provider, choose_provider

SPEC = SandboxSpec(
    memory_mb=192, pids=32, tmp_mb=24, files=512, file_mb=4, output_kb=32, timeout_s=20, lifetime_s=600
)  # fmt: skip

_SCRIPTED = "it runs nothing: answers come from its script"
KNOWN_FAILURES: Mapping[str, Mapping[str, str]] = {
    "local": {},
    "bubblewrap": {},
    "docker": {},
    "fake": {
        **dict.fromkeys(
            (
                "code: output", "code: last expression", "code: error apart from stderr", "code: exit code",
                "code: nothing shared", "code: variables", "code: unknown language", "code: contexts",
                "command: input, folder, variables", "command: not found", "command: another user",
                "command: streaming", "limits: deadline", "limits: output", "limits: memory", "limits: file size",
                "limits: signal told apart", "leftovers: held output", "background: talk and kill",
                "turns: many at once", "isolation: network", "isolation: files",
            ),
            _SCRIPTED,
        ),
        "files: many, rename, folders": "it keeps no empty folders",
        "files: size limit": "it keeps files of any size",
        "files: links and devices": _SCRIPTED,
        "sandbox: lifetime": "it has no clock",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of one check.

    ``Finding(name="limits: memory", ok=False, detail="end: got 'exited', expected 'out_of_memory'")``. ``ok`` with a
    detail is a failure that is known, and the detail says why.
    """

    name: str
    ok: bool
    detail: str = ""


async def check_sandbox(
    provider: str | Provider = "auto",
    spec: SandboxSpec | None = None,
    *,
    known_failures: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> list[Finding]:
    """Run a provider through all of `CHECKS` and its own claims of isolation, one sandbox after another.

    Args:
        provider: a name, or a provider of your own.
        spec: what sandboxes to open; small limits where None, which make it quick.
        known_failures: check and reason; the provider's of `KNOWN_FAILURES` where None.
        timeout_s: seconds for each check.

    Returns:
        A finding for each check; all are ``ok`` where the provider does what it should and no more than is known fails.

    Raises:
        ConfigError: no such provider.
        SandboxUnavailable: it cannot open sandboxes here.
    """
    spec = spec or SPEC
    chosen = await choose_provider(provider, spec) if isinstance(provider, str) else provider
    await chosen.check(spec)
    known = KNOWN_FAILURES.get(chosen.name, {}) if known_failures is None else known_failures
    findings: list[Finding] = []
    sandbox = await chosen.open(spec, run_id="check")
    try:
        for name, check in {**CHECKS, **_isolation_checks(chosen, spec)}.items():
            if sandbox.ended:  # some checks end it
                await sandbox.kill()
                sandbox = await chosen.open(spec, run_id="check")
            findings.append(_judge(name, await _try(check, sandbox, timeout_s), known.get(name)))
    finally:
        await sandbox.kill()
    declared = chosen.isolation(spec)
    findings += [
        Finding(name=f"isolation: {name}", ok=True, detail="not isolated, and it says so")
        for name in RESTRICTIONS
        if not declared.get(name)
    ]
    return findings


async def _try(check: Check, sandbox: Sandbox, timeout_s: float) -> str:
    """What is wrong, or nothing."""
    try:
        with anyio.fail_after(timeout_s):
            await check(sandbox)
    except TimeoutError:
        await sandbox.kill()  # what still hangs in it would disturb the next check
        return f"no answer within {timeout_s:g} s"
    except Exception as error:  # whatever a foreign provider raises is a finding
        return f"{error}" if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    return ""


def _judge(name: str, wrong: str, known: str | None) -> Finding:
    if known is None:
        return Finding(name=name, ok=not wrong, detail=wrong)
    if wrong:
        return Finding(name=name, ok=True, detail=f"known failure: {known}")
    return Finding(name=name, ok=False, detail=f"passes, but is listed as a known failure: {known}")


def _isolation_checks(provider: Provider, spec: SandboxSpec) -> dict[str, Check]:
    claimed = provider.isolation(spec)
    return {f"isolation: {name}": check for name, check in ISOLATION.items() if claimed.get(name)}
