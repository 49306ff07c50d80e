"""File calls on what a program has prepared: links, ``..``, pipes, bombs; and other episodes' files."""

import os
import socket
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from toolgym.sandboxes import Sandbox, SandboxFileError, SandboxSpec, open_sandbox
from toolgym.sandboxes.grading import take_files

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SPEC = SandboxSpec(memory_mb=128, pids=32, tmp_mb=24, files=512, file_mb=4, output_kb=32, timeout_s=20)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cell() -> AsyncIterator[Sandbox]:
    """A hardened container, the same for all tests."""
    async with open_sandbox("docker", SPEC, run_id="redteam") as opened:
        yield opened


async def test_links_and_dots_never_lead_to_the_host(cell: Sandbox, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    await cell.run(["ln", "-sfn", str(secret), "link"])
    await cell.run(["ln", "-sfn", "/proc/1/root", "root"])
    for path in (str(secret), "link", f"../../../../../..{secret}", f"root{secret}", f"/proc/self/root{secret}"):
        with pytest.raises(SandboxFileError):
            await cell.read_bytes(path)
        assert await take_files(cell, [path]) == {}
    assert secret.read_text() == "of the host"


async def test_writing_through_links_changes_nothing(cell: Sandbox, tmp_path: Path):
    await cell.run("ln -sfn /etc etc; ln -sfn /etc/passwd passwd; ln -sfn / slash")
    before = await cell.read_bytes("/etc/passwd")
    for path in (
        "etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "slash/etc/passwd",
        "/proc/1/mem",
        "/usr/bin/python3",
    ):
        with pytest.raises(SandboxFileError):
            await cell.write(path, "forged")
    await cell.write(f"slash{tmp_path}/x", "mine")  # in a folder of the container that has the same name
    await cell.write("passwd", "mine")  # the link itself is replaced
    assert await cell.read_bytes("/etc/passwd") == before
    assert (await cell.file_info("passwd")).kind == "file"
    assert os.listdir(tmp_path) == []
    for call in (cell.remove("etc/passwd"), cell.rename("passwd", "/etc/passwd"), cell.remove("/")):
        with pytest.raises(SandboxFileError):
            await call


async def test_removing_a_link_leaves_what_it_leads_to(cell: Sandbox):
    await cell.run("mkdir -p kept; echo x > kept/file; ln -sfn kept away")
    await cell.remove("away")
    assert await cell.exists("kept/file")


async def test_what_is_no_file_is_not_read(cell: Sandbox):
    await cell.run("mkfifo pipe; ln -sfn loop loop; ln -sfn /dev/zero zero; ln -sfn /dev/stdin in")
    for path in ("pipe", "loop", "zero", "in", "/dev/zero", "/dev/random", "/proc/kmsg", "/proc/1/fd/0", "a\0b"):
        with pytest.raises(SandboxFileError):
            await cell.read_bytes(path)
    with pytest.raises(SandboxFileError):
        await cell.list_dir("loop")


async def test_trees_are_listed_within_bounds(cell: Sandbox):
    await cell.run("mkdir -p tree/deep; ln -sfn .. tree/up; ln -sfn / tree/all")
    assert sorted(info.name for info in await cell.list_dir("tree", depth=50)) == ["all", "deep", "up"]
    assert len(await cell.list_dir("/usr", depth=50)) <= 10_000


async def test_bombs_stay_packed_and_small(cell: Sandbox, tmp_path: Path):
    bomb = (
        "import tarfile, zipfile\n"
        "with zipfile.ZipFile('bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z:\n"
        "    with z.open('zeros', 'w') as f:\n        for _ in range(300): f.write(bytes(2**20))\n"
        "    z.writestr('../../../../escaped', 'x')\n"
        "with tarfile.open('bomb.tar.gz', 'w:gz') as t:\n"
        "    link = tarfile.TarInfo('out'); link.type = tarfile.SYMTYPE; link.linkname = '/'; t.addfile(link)\n"
        "    big = tarfile.TarInfo('out/etc/x'); big.size = 100 << 20\n"
        "    t.addfile(big, open('/dev/zero', 'rb'))\n"
    )
    made = await cell.run_code(bomb)
    assert made.error is None, made
    taken = await take_files(cell, ["bomb.zip", "bomb.tar.gz"])
    assert len(taken) == 2  # as they are: nothing unpacks them
    assert all(len(data) < SPEC.file_mb << 20 for data in taken.values())
    packed = tmp_path / "bomb.zip"
    packed.write_bytes(taken["bomb.zip"])
    assert max(info.file_size for info in zipfile.ZipFile(packed).infolist()) == 300 << 20
    unpacked = await cell.run_code("import zipfile\nzipfile.ZipFile('bomb.zip').extract('zeros', '/tmp/out')")
    assert unpacked.error is not None or unpacked.oom  # in the sandbox they meet its limits
    await cell.run("rm -rf /tmp/out bomb*")
    assert (await cell.run_code("1 + 1")).result == "2"


async def test_files_past_the_limit_are_not_taken(cell: Sandbox):
    grown = await cell.run_code("import os\nos.truncate(os.open('grown', os.O_CREAT | os.O_RDWR), 64 << 20)")
    assert grown.error is not None
    with pytest.raises(SandboxFileError, match="file_mb"):
        await cell.write("grown", b"x" * ((SPEC.file_mb << 20) + 1))


async def test_other_episodes_are_out_of_sight(cell: Sandbox):
    async with open_sandbox("docker", SPEC, run_id="redteam") as other:
        await other.write("answer.txt", "secret-of-the-other-episode")
        await other.run("cp answer.txt /tmp/; cp answer.txt /dev/shm/")
        await other.start("exec -a secret-of-the-other-episode sleep 600 || sleep 600")
        look = (
            "import os\nfound = []\nword = b'secret-of-the-' + b'other-episode'\n"
            "for root in ('/home', '/tmp', '/dev', '/run', '/var', '/mnt'):\n"
            "    for folder, _, names in os.walk(root):\n"
            "        for name in names:\n            path = os.path.join(folder, name)\n"
            "            if name == 'answer.txt': found.append(path)\n"
            "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "    for name in ('cmdline', 'environ'):\n"
            "        try: found += [pid] if word in open(f'/proc/{pid}/{name}', 'rb').read() else []\n"
            "        except OSError: pass\n"
            "print(found)"
        )
        assert (await cell.run_code(look)).stdout == "[]\n"
        assert await other.exists("/tmp/answer.txt")


async def test_hosts_loopback_is_out_of_reach(cell: Sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as hidden:
        hidden.bind("\0toolgym-redteam")
        hidden.listen()
        port = server.getsockname()[1]
        code = (
            "import socket\nreached = []\n"
            f"for kind, address in ((socket.AF_INET, ('127.0.0.1', {port})), (socket.AF_UNIX, '\\0toolgym-redteam')):\n"
            "    try:\n        with socket.socket(kind) as s: s.connect(address)\n        reached.append(address)\n"
            "    except OSError: pass\nprint(reached)"
        )
        assert (await cell.run_code(code)).stdout == "[]\n"
        async with open_sandbox("local") as open_one:  # which is not isolated: the same code does reach them
            assert str(port) in (await open_one.run_code(code)).stdout
