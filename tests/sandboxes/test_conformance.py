"""The conformance suite: every provider of ours passes it, and a broken one does not."""

import anyio
import pytest

from toolgym.errors import ConfigError
from toolgym.sandboxes import (
    Execution,
    FakeProvider,
    Sandbox,
    SandboxSpec,
    SandboxUnavailable,
    open_sandbox,
)
from toolgym.sandboxes.checks import CHECKS, ISOLATION, Failed
from toolgym.sandboxes.conformance import KNOWN_FAILURES, SPEC, Finding, check_sandbox
from toolgym.sandboxes.provider import RESTRICTIONS, get_provider


def silent(text: str) -> Execution:
    """The answer of a fake sandbox to everything."""
    return Execution()


def failures(findings: list[Finding]) -> list[str]:
    """What does not conform."""
    return [f"{finding.name}: {finding.detail}" for finding in findings if not finding.ok]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["local", "bubblewrap", pytest.param("docker", marks=pytest.mark.docker)])
async def test_providers_conform(name: str):
    try:
        await get_provider(name).check(SPEC)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    findings = await check_sandbox(name)
    assert failures(findings) == []
    assert {finding.name for finding in findings} >= {*CHECKS, *(f"isolation: {item}" for item in ISOLATION)}


async def test_fake_provider_conforms_but_for_what_is_known():
    findings = await check_sandbox(FakeProvider(silent))
    assert failures(findings) == []
    known = {finding.name for finding in findings if finding.detail.startswith("known failure: ")}
    assert known == {*KNOWN_FAILURES["fake"]}


async def test_failures_that_are_not_known_are_reported():
    findings = await check_sandbox(FakeProvider(silent), known_failures={})
    assert len(failures(findings)) == len(KNOWN_FAILURES["fake"])
    (output,) = [finding for finding in findings if finding.name == "code: output"]
    assert not output.ok
    assert "got ('', '', 0" in output.detail


async def test_known_failure_that_passes_is_reported():
    known = {**KNOWN_FAILURES["fake"], "files: round trip": "no reason"}
    findings = await check_sandbox(FakeProvider(silent), known_failures=known)
    assert failures(findings) == [
        "files: round trip: passes, but is listed as a known failure: no reason",
    ]


async def test_whatever_a_provider_raises_is_a_finding():
    findings = await check_sandbox(FakeProvider({"x = 6\nx * 7": ZeroDivisionError("oops")}), known_failures={})
    (finding,) = [finding for finding in findings if finding.name == "code: last expression"]
    assert (finding.ok, finding.detail) == (False, "ZeroDivisionError: oops")


async def test_check_that_hangs_is_a_finding_and_the_next_has_a_fresh_sandbox(monkeypatch: pytest.MonkeyPatch):
    async def hang(sandbox: Sandbox) -> None:
        await anyio.sleep_forever()

    monkeypatch.setitem(CHECKS, "code: output", hang)
    provider = FakeProvider(silent)
    findings = await check_sandbox(provider, timeout_s=0.01)
    assert (findings[0].name, findings[0].detail) == (
        "code: output",
        "known failure: " + KNOWN_FAILURES["fake"]["code: output"],
    )
    strict = await check_sandbox(provider, timeout_s=0.01, known_failures={})
    assert strict[0].detail == "no answer within 0.01 s"
    assert strict[8].ok == (strict[8].name not in KNOWN_FAILURES["fake"])
    assert all(sandbox.killed for sandbox in provider.opened)
    assert len(provider.opened) >= 4


async def test_unknown_and_unavailable_providers_are_errors():
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        await check_sandbox("locall")
    with pytest.raises(SandboxUnavailable):
        await check_sandbox("local", SandboxSpec(allow_hosts=("a:1",)))


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["files", "processes", "disk", "privileges", "system calls"])
async def test_false_claims_of_isolation_are_found(claim: str):
    async with open_sandbox("local", SPEC) as sandbox:
        with pytest.raises(Failed):
            await ISOLATION[claim](sandbox)


def test_every_claim_but_memory_and_processor_time_is_tried():
    assert {*RESTRICTIONS} - {*ISOLATION} == {"memory", "cpu"}
    assert "limits: memory" in CHECKS


def test_known_failures_are_of_checks_that_exist():
    names = {*CHECKS, *(f"isolation: {name}" for name in ISOLATION)}
    for known in KNOWN_FAILURES.values():
        assert {*known} <= names
