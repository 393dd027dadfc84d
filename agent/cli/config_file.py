"""Changing ``outrider.toml`` without losing what a person wrote into it."""

from __future__ import annotations

import os
from pathlib import Path

from agent.errors import ConfigError


def replace_config(path: Path, text: str) -> None:
    """Put ``text`` in the file's place, if it loads; else the file stays and ConfigError is raised."""
    from agent.configuration import load

    path = path.resolve()  # a link to the file stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        load(temporary, environ={"HOME": str(Path.home())})
        temporary.replace(path)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; check its folder's permissions") from error
    finally:
        temporary.unlink(missing_ok=True)


def set_config_value(path: Path, section: str, key: str, value: int | str) -> None:
    """Set one value in the file, which is made if there is none. Raises ConfigError."""
    import tomlkit

    text = path.read_text(encoding="utf-8") if path.exists() else ""
    document = tomlkit.parse(text)
    if section not in document:
        document.append(section, tomlkit.table())
    document[section][key] = value
    replace_config(path, tomlkit.dumps(document))
