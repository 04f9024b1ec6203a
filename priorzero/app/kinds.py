"""Values on the command line are of the kind that the files of ``configs/`` have there: a number for a number.

Else "env.max_steps=ten" would be found wherever it is first counted with, in words that say nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from priorzero.app.refusals import ConfigError
from priorzero.utils.launch import search_path


def command_line() -> tuple[DictConfig, list[str]]:
    """The running command's configuration as its files alone have it, and the settings that the command line gives.

    Which files these are is said on the command line, too: ``env=zork1`` is a file, ``env.max_steps=100`` a setting.
    """
    run = HydraConfig.get()
    names = {words: words.lstrip("+~").partition("=")[0] for words in run.overrides.task}
    files = [words for words, name in names.items() if name in run.runtime.choices]
    settings = [name for name in names.values() if name not in run.runtime.choices]
    return compose(run.job.config_name, [*search_path(run), *files]), settings


def check_kinds(given: DictConfig, files: DictConfig, names: Sequence[str]) -> None:
    """Refuse values of another kind than in the files.

    A text may become anything, and so may what is null or new; and anything may become null, or refer to what is not
    there: who reads it refuses that.

    Args:
        given: the configuration.
        files: what it is without these settings.
        names: of settings, or of several below that name.

    Raises:
        ConfigError: names the first that does not fit, its value, and what it must be.
    """
    for name, before in (leaf for some in names for leaf in _leaves(_select(files, some), some)):
        now, must = _select(given, name), _kind(before)
        if must and now is not None and _kind(now) != must:
            raise ConfigError(f"{name}={_written(now)}: it must be {must}; without this it is {_written(before)}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a list, in [brackets]" if isinstance(value, list) else ""


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, value


def _select(config: DictConfig, name: str) -> Any:
    """In plain containers; None where there is none, or where it refers to what is not there."""
    try:
        value = OmegaConf.select(config, name)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return None


def _written(value: Any) -> str:
    """As on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
