"""The default image: Python with numpy, sympy and pytest, made with a registry or without one, named by its content.

With a registry it is built from ``Dockerfile``. Without one the same things are put together from the
distribution's packages (apt) and the package index's wheels, on any Debian or Ubuntu, without being root and without
unpacking anything here: archives go through memory into one tar file that the engine imports.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from toolgym.sandboxes.base import SandboxLost, SandboxUnavailable
from toolgym.sandboxes.engine import Engine, docker_engine

DEFAULT = "python"
WHEELS = ("numpy==2.3.5", "sympy==1.14.0", "pytest==8.4.2")
DEBS = (
    "base-files", "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "gzip", "libstdc++6", "procps",
    "python3", "sed", "tar", "usr-is-merged",
)  # fmt: skip
_RECIPE = 1  # to be raised whenever the code below puts something else into the image
LABEL_IMAGE = "toolgym.image"
_DOCKERFILE = Path(__file__).parent / "Dockerfile"
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # folders that are links into /usr
_USELESS = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/", "var/")
_COMPILE = ["python3", "-m", "compileall", "-qq", "-j", "0", "/usr/lib", "/usr/local/lib"]
Report = Callable[[str], None]


def recipe_hash() -> str:
    """12 hex digits of the SHA-256 of everything that decides what the image holds."""
    parts = [str(_RECIPE), _DOCKERFILE.read_text(), *WHEELS, *DEBS, *_COMPILE, platform.machine()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def image_tag() -> str:
    """The tag of the default image. Example: ``"toolgym/python:1c9a6b0f3d2e"``."""
    return f"toolgym/{DEFAULT}:{recipe_hash()}"


def image_reference(engine: Engine, image: str) -> str:
    """What to start for ``SandboxSpec.image``.

    Raises SandboxUnavailable where the engine has no such image; pulls nothing.
    """
    tag = image_tag() if image == DEFAULT else image
    try:
        engine.request("inspect_image", tag)
    except SandboxLost as error:
        if error.status != 404:
            raise
        advice = "run `toolgym sandbox build` (about a minute)" if image == DEFAULT else f"run `docker pull {tag}`"
        raise SandboxUnavailable(f"the engine has no image {tag}: {advice}") from None
    return tag


def ensure_image(engine: Engine | None = None, *, report: Report = lambda line: None, rebuild: bool = False) -> str:
    """The default image's tag; it is built where the engine lacks it. Blocks (half a minute to a few).

    Args:
        engine: where; the default one where None.
        report: gets a line about each thing that is done: what is downloaded and from where.
        rebuild: build it even where it is there.

    Raises:
        SandboxUnavailable: no engine; or neither a registry answers nor apt is here.
    """
    engine = engine or docker_engine()
    engine.info()
    if not rebuild and _exists(engine):
        return image_tag()
    with _only_one():  # several runs may find it missing at the same time
        if rebuild or not _exists(engine):
            _build(engine, report)
    return image_tag()


def _exists(engine: Engine) -> bool:
    try:
        image_reference(engine, DEFAULT)
    except SandboxUnavailable:
        return False
    return True


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Hold the machine's lock on building, freed by the kernel where its holder dies."""
    path = Path(tempfile.gettempdir()) / f"toolgym-image-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(engine: Engine, report: Report) -> None:
    base = _DOCKERFILE.read_text().split()[1]
    if _registry_answers(engine, base):
        report(f"building {image_tag()} from {base} of the registry")
        _build_from_registry(engine, report)
    elif shutil.which("apt-get") and shutil.which("dpkg-deb"):
        report(f"no registry answers: building {image_tag()} from Debian packages and wheels (once, about 15 s)")
        _build_from_packages(engine, report)
    else:
        raise SandboxUnavailable(
            f"cannot build the default image: no registry answers for {base}, and there is no apt-get here; "
            "name an image with python3 in it (SandboxSpec.image)"
        )


def _registry_answers(engine: Engine, base: str) -> bool:
    """Whether the base image is here or its registry has it."""
    try:
        engine.request("inspect_image", base)
        return True
    except SandboxLost:
        pass
    try:
        engine.request("inspect_distribution", base)
        return True
    except SandboxUnavailable:
        raise
    except SandboxLost:
        return False


def _build_from_registry(engine: Engine, report: Report) -> None:
    arguments = {"WHEELS": " ".join(WHEELS)}
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        tar.add(_DOCKERFILE, "Dockerfile")
    context.seek(0)
    lines = engine.request(
        "build", fileobj=context, custom_context=True, tag=image_tag(), buildargs=arguments, decode=True, rm=True,
        labels={LABEL_IMAGE: DEFAULT}, timeout=600,
    )  # fmt: skip
    for line in lines:
        if "error" in line:
            raise SandboxLost(f"building {image_tag()}: {line['error']}")
        if line.get("stream", "").strip():
            report(line["stream"].strip())


def _build_from_packages(engine: Engine, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="toolgym-image-") as scratch:
        folder = Path(scratch)
        debs = _download_debs(folder, report)
        version = next(d.name.split("_")[0].removesuffix("-minimal") for d in debs if _is_python(d))
        wheels = _download_wheels(folder, version.removeprefix("python"), report)
        report(f"putting together {len(debs)} packages and {len(wheels)} wheels")
        image = folder / "image.tar"
        with image.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            _add_packages(tar, debs)
            _add_wheels(tar, wheels, f"usr/local/lib/{version}/dist-packages")
        report(f"importing {image.stat().st_size >> 20} MB into the engine")
        name, _, tag = image_tag().partition(":")
        with image.open("rb") as data:
            made = engine.request("import_image_from_data", data, repository=name, tag=f"{tag}-raw")
        if '"error"' in made:
            raise SandboxLost(f"importing the image: {made}")
        _compile(engine, f"{image_tag()}-raw", report)


def _is_python(deb: Path) -> bool:
    return deb.name.startswith("python3.") and "-minimal_" in deb.name


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise SandboxUnavailable(f"{what} failed: {(done.stderr or done.stdout).strip()[-600:]}")


def _download_debs(folder: Path, report: Report) -> list[Path]:
    """The packages and all that they depend on, as for an empty system; apt verifies them."""
    report("downloading Debian packages with apt-get")
    archives = folder / "debs"
    (archives / "partial").mkdir(parents=True)
    (folder / "status").touch()
    options = [f"Dir::State::status={folder}/status", f"Dir::Cache::archives={archives}", "Debug::NoLocking=1"]
    flags = [word for option in options for word in ("-o", option)]
    _run(
        ["apt-get", "install", "-y", "-q", "--no-install-recommends", "--download-only", *flags, *DEBS],
        "apt-get install --download-only (has `apt-get update` been run?)",
    )
    return sorted(archives.glob("*.deb"))


def _download_wheels(folder: Path, version: str, report: Report) -> list[Path]:
    report(f"downloading wheels for Python {version} with pip: {', '.join(WHEELS)}")
    target = folder / "wheels"
    machine = platform.machine()
    platforms = [f"--platform={name}_{machine}" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    _run(
        [
            sys.executable, "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check", "-d",
            str(target), "--python-version", version, "--implementation", "cp", "--only-binary=:all:", *platforms,
            *WHEELS,
        ],
        "pip download",
    )  # fmt: skip
    return sorted(target.glob("*.whl"))


def _merged(name: str) -> str:
    """A package's path as a path without leading dot, below /usr where the distribution has merged the two."""
    name = name.removeprefix("./").strip("/")
    return f"usr/{name}" if name.split("/")[0] in _MERGED else name


def _entry(name: str, *, mode: int, kind: bytes = tarfile.DIRTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname = mode, kind, target
    return info


def _add_packages(tar: tarfile.TarFile, debs: Iterable[Path]) -> None:
    added: set[str] = set()
    for name in _MERGED:
        tar.addfile(_entry(name, mode=0o777, kind=tarfile.SYMTYPE, target=f"usr/{name}"))
        added |= {name, f"usr/{name}"}
        tar.addfile(_entry(f"usr/{name}", mode=0o755))
    for deb in debs:
        with _deb_contents(deb) as stream, tarfile.open(fileobj=stream, mode="r|") as contents:
            for member in contents:
                name = _merged(member.name)
                if name in added or not name or name.startswith(_USELESS) or member.ischr() or member.isblk():
                    continue
                added.add(name)
                member.name = name
                if member.islnk():
                    member.linkname = _merged(member.linkname)
                member.mode &= 0o1777  # nothing in here is setuid
                tar.addfile(member, contents.extractfile(member) if member.isreg() else None)
    for folder, mode in (("tmp", 0o1777), ("home/user", 0o755), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755)):
        if folder not in added:
            tar.addfile(_entry(folder, mode=mode))
    passwd = b"root:x:0:0:root:/root:/bin/false\nuser:x:1000:1000:user:/home/user:/bin/bash\n"
    for name, data in (("etc/passwd", passwd), ("etc/group", b"root:x:0:\nuser:x:1000:\n")):
        _add_file(tar, name, data)


def _add_file(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = _entry(name, mode=mode, kind=tarfile.REGTYPE)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@contextlib.contextmanager
def _deb_contents(deb: Path) -> Iterator[IO[bytes]]:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
        while process.stdout.read(1 << 20):
            pass
    if process.returncode != 0:
        raise SandboxUnavailable(f"dpkg-deb could not read {deb.name}")


def _add_wheels(tar: tarfile.TarFile, wheels: Iterable[Path], folder: str) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not name.endswith("/") and "/tests/" not in name:
                    _add_file(tar, f"{folder}/{name}", archive.read(name))


def _compile(engine: Engine, raw: str, report: Report) -> None:
    """Byte-compile all modules in a container of the raw image, and keep that as the image: imports are then quick."""
    report("byte-compiling")
    host = engine.request("create_host_config", network_mode="none")
    container = engine.request("create_container", raw, _COMPILE, host_config=host)["Id"]
    try:
        engine.request("start", container)
        engine.request("wait", container, timeout=300)
        name, _, tag = image_tag().partition(":")
        engine.request("commit", container, repository=name, tag=tag, changes=f"LABEL {LABEL_IMAGE}={DEFAULT}")
    finally:
        engine.remove(container)
    with contextlib.suppress(SandboxLost):
        engine.request("remove_image", raw)
