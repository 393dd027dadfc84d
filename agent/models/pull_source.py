"""What ``outrider pull`` was given: a name, a repository, a URL, or a path."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agent.errors import InvalidRequest, ModelNotFound, ModelRejected
from agent.models import encoder_folder, onnx_folder
from agent.models.manifest import HubSource, Manifest, ModelSpec, UrlSource, unknown_model
from agent.models.pull_job import RemoteFile, require_tls
from agent.types import ModelFormat

_REPOSITORY = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,100}))?(?::(?P<file>[\w./-]{1,200}))?"
)
_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5")
_CHECKPOINT = re.compile(
    r"(?:[\w.-]+\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json|tokenizer[\w.]*\.json"
    r"|tokenizer\.model|vocab\.json|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja)"
)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model shall come from. One of ``repository``, ``url``, ``path`` is set, or ``spec`` names a package."""

    name: str
    spec: ModelSpec | None = None
    repository: str = ""
    revision: str = ""
    file: str = ""
    url: str = ""
    path: Path | None = None

    @property
    def source(self) -> str:
        """As the store and the lock file say it."""
        if self.repository:
            return f"hub {self.repository}"
        return self.url or f"file {self.path}"

    @property
    def remote(self) -> bool:
        return bool(self.repository or self.url)


def wanted(given: str, name: str | None, manifest: Manifest, known: list[str]) -> Wanted:
    """Read what was given. Raises ModelNotFound with the nearest names, InvalidRequest."""
    if spec := manifest.find(given):
        if name and name != given:
            raise InvalidRequest(f"{given} is a name of the manifest already; leave --name out", param="name")
        source = spec.source
        if isinstance(source, HubSource):
            return Wanted(name=given, spec=spec, repository=source.repository, revision=source.revision or "")
        return Wanted(name=given, spec=spec, url=source.url if isinstance(source, UrlSource) else "")
    if "://" in given:
        require_tls(given)
        return Wanted(name=name or slug(given.partition("?")[0].rpartition("/")[2]), url=given)
    path = Path(given).expanduser()
    if path.is_absolute() or given.startswith(".") or path.exists():
        if not path.exists():
            raise ModelNotFound(f"there is no file or folder {path}", param="model")
        return Wanted(name=name or slug(path.name), path=path.resolve())
    if found := _REPOSITORY.fullmatch(given):
        file = found["file"] or ""
        return Wanted(
            name=name or slug(file.rpartition("/")[2] or found["repository"].partition("/")[2]),
            repository=found["repository"],
            revision=found["revision"] or "",
            file=file,
        )
    raise unknown_model(given, known)


def slug(text: str) -> str:
    """Return a name for the store. Raises InvalidRequest when none can be made of the text."""
    made = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).removesuffix(".gguf").strip("-._")[:64]
    if not made:
        raise InvalidRequest(f"no name can be made of {text[:80]!r}; give one with --name", param="name")
    return made


def chosen(want: Wanted, offered: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
    """Return the files that make the model up. Raises ModelNotFound, ModelRejected, InvalidRequest."""
    by_path = {file.path: file for file in offered}
    names = [file.name for file in want.spec.files] if want.spec else [want.file] if want.file else []
    if names:
        if gone := [name for name in names if name not in by_path]:
            near = ", ".join(sorted(path for path in by_path if path.endswith(".gguf"))[:8])
            raise ModelNotFound(
                f"{want.source} has no file {gone[0]}" + (f"; it has {near}" if near else ""), param="model"
            )
        picked = [by_path[name] for name in names]
    elif ggufs := [file for file in offered if file.path.lower().endswith(".gguf")]:
        if len(ggufs) > 1:
            some = ", ".join(sorted(file.path for file in ggufs)[:12])
            raise InvalidRequest(f"{want.source} has several models; name one, as in owner/name:FILE. It has {some}")
        picked = ggufs
    else:
        onnx = onnx_folder.is_complete(by_path)
        picked = [file for file in offered if _of_a_folder(file.path, onnx=onnx)]
        if not (onnx or any(file.path.endswith(".safetensors") for file in picked)):
            pickled = any(file.path.endswith(_PICKLES) for file in offered)
            why = "only pickles, which run code when they are read" if pickled else "no GGUF and no safetensors files"
            raise ModelRejected(f"{want.source} has {why}; nothing was downloaded")
    for file in picked:
        _require_safe(file.path)
    return tuple(picked)


def _require_safe(path: str) -> None:
    if not all(_PATH_PART.fullmatch(part) for part in path.split("/")):
        raise ModelRejected(f"the file name {path[:80]!r} is refused: letters, digits, dot, dash and underscore only")
    name = path.rpartition("/")[2]
    if not (name.endswith(".gguf") or onnx_folder.NAMES.fullmatch(name) or _CHECKPOINT.fullmatch(name)):
        raise ModelRejected(f"{name} is refused: not GGUF, safetensors, ONNX or one of their descriptions")


def format_of(files: tuple[str, ...]) -> ModelFormat:
    """Return what files of these names are together. Raises ModelRejected."""
    if len(files) == 1 and files[0].endswith(".gguf"):
        return ModelFormat.GGUF
    if onnx_folder.is_complete(files):
        return ModelFormat.ONNX_GENERATION
    if encoder_folder.is_complete(files):
        return ModelFormat.ONNX_ENCODER
    if any(name.endswith(".safetensors") for name in files) and "config.json" in files:
        return ModelFormat.CHECKPOINT
    raise ModelRejected(
        "these files are no model: one GGUF file, safetensors beside their config.json, or an ONNX graph with "
        "tokenizer.json and genai_config.json (one that writes) or config.json (an encoder) are"
    )


def _of_a_folder(name: str, *, onnx: bool) -> bool:
    """Whether a file belongs to the model in a folder that has many: an ONNX model's, or a checkpoint's."""
    if onnx:
        description = _CHECKPOINT.fullmatch(name) and not name.endswith(".safetensors")
        return bool(onnx_folder.NAMES.fullmatch(name) or description)
    return _CHECKPOINT.fullmatch(name) is not None


def local_files(path: Path) -> dict[str, Path]:
    """Return the files of a model outside of the store by name. Raises ModelRejected."""
    if path.is_dir():
        names = [file.name for file in path.iterdir()]
        onnx = onnx_folder.is_complete(names)
        found = {file.name: file for file in sorted(path.iterdir()) if _of_a_folder(file.name, onnx=onnx)}
        encoder = encoder_folder.is_complete(names) and not any(name.endswith(".safetensors") for name in names)
        if encoder:
            found = encoder_folder.files_in(path)
        if any(file.is_symlink() or not file.is_file() for file in found.values()):
            raise ModelRejected(f"{path} holds links or folders where files are expected")
        if not (onnx or encoder or any(name.endswith(".safetensors") for name in found)):
            raise ModelRejected(
                f"{path} has no safetensors files, and no ONNX graph with tokenizer.json and genai_config.json or config.json; "
                "for one GGUF file give its own path"
            )
        return found
    if path.suffix.lower() != ".gguf" or not path.is_file():
        raise ModelRejected(
            f"{path.name} is refused: a GGUF file, or a folder with a safetensors checkpoint or an ONNX model, is taken"
        )
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-")[:120] or "model"
    return {f"{name}.gguf": path}
