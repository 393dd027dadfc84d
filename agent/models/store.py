"""The models of one data directory by name: ``<data dir>/models``.

::

    refs/<name>.json      a StoredModel: which files, and where they came from
    trees/<digest>/       the files of a model that has several, as hard links to their blobs

The files themselves are in ``agent.models.blobs``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent.errors import DiskFull, InvalidRequest, ModelNotFound, ModelRejected, StorageError
from agent.models.artifact import StoredFile, StoredModel
from agent.models.blobs import BlobStore, Check, is_link_or_copy, link_or_copy, sync_folder, write_durably
from agent.models.catalogue import entry_outside, requirements, state_outside, stored_model
from agent.models.entry import ModelEntry, ModelState
from agent.models.file_check import check_file
from agent.models.holding import changing, held
from agent.models.manifest import Manifest, ModelSpec, PackageSource, load_manifest, unknown_model
from agent.models.packaged import how_to_install, joined, packaged_files
from agent.models.quality import MeasuredSpeed, Quality
from agent.models.serving import measured, served
from agent.telemetry import LOG
from agent.types import ModelFile, ModelFormat

LOCK_NAME = "store.lock"  # shared by who takes files in, held alone by who removes them
REFS, TREES = "refs", "trees"
_CLEARING_S = 60.0  # longest that removing files is waited for
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

# What a runtime makes of the models of a format.
_SERVED_TASKS = {
    ModelFormat.GGUF: frozenset({"chat", "complete"}),
    ModelFormat.ONNX_GENERATION: frozenset({"chat", "complete"}),
    ModelFormat.ONNX_ENCODER: frozenset({"embed", "classify", "rerank", "tag"}),
}


class ModelStore:
    """The store of one data directory. Blocking; several threads or processes may use it at once."""

    def __init__(self, root: Path, manifest: Manifest, *, disk_budget: int = 0) -> None:
        """``disk_budget`` is the ceiling of the whole data directory, bytes; 0: none. Others keep to it."""
        self.data_path = root.parent
        self.disk_budget = disk_budget
        self._root = root
        self._manifest = manifest
        self.blobs = BlobStore(root)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def resolve(self, name: str, *, below_floor: bool = False) -> ModelFile:
        """Return a verified model, taking one that ships in a package into the store at first use.

        One that was measured below the floor is rejected, unless it is asked for ``below_floor`` too.

        Hashes the files when they are new or altered: seconds for large ones, so call it in a thread.
        Raises ModelNotFound for an unknown name or one that has to be pulled first,
        ModelRejected when a file does not hold, StorageError when it cannot be stored.
        """
        with self._files_of(name):
            model = self._current(name) or self._first_use(name)
            try:
                self._hold(model)
            except ModelRejected as error:
                spec = self._manifest.find(name)
                if spec is None or not isinstance(spec.source, PackageSource):
                    raise
                LOG.warning("%s; taking it anew from its package", error)
                model = self.take_packaged(spec)
            return served(model, str(self._path(model)), exempt=below_floor or self._demo(name))

    def add(self, model: StoredModel, files: Mapping[str, Path], *, move: bool = False) -> StoredModel:
        """Take a model in under its name, replacing what the name meant; all of it or nothing.

        ``files`` maps the names of ``model.files`` to where they are now; ``move`` renames them
        (they then are ours, on the same file system). Raises ModelRejected when one is not what
        ``model`` says, DiskFull, StorageError.
        """
        with self._files_of(model.name), self.taking_in():
            for file in model.files:
                if not self.blobs.unchanged(file.sha256):
                    self.blobs.put(files[file.name], file, _check_of(model, file.name), model=model.name, move=move)
            self._hold(model)
            with changing(self._root / REFS):
                known = self.get(model.name)
                if known and known.digest == model.digest and model.quality is None:
                    model = msgspec.structs.replace(
                        model, quality=known.quality, speeds=known.speeds, allowed=known.allowed
                    )
                record = msgspec.json.encode(model)
                if fault := _fault(record):
                    raise InvalidRequest(f"model {model.name!r} cannot be kept: {fault}", param="name")
                write_durably(self._ref(model.name), _sealed(record))
        return model

    def note(self, name: str, **changes: Quality | tuple[MeasuredSpeed, ...] | bool | str) -> StoredModel:
        """Keep ``quality``, ``speeds``, ``checked_on`` or ``allowed`` with a model. Raises ModelNotFound when it is not in the store."""
        self._stored(name)
        with self._files_of(name), self.taking_in(), changing(self._root / REFS):
            model = msgspec.structs.replace(self._stored(name), **changes)
            write_durably(self._ref(name), _sealed(msgspec.json.encode(model)))
        return model

    def get(self, name: str) -> StoredModel | None:
        """Return what the store has under a name, or None. Raises StorageError for a broken record."""
        path = self._ref(name)
        try:
            return msgspec.json.decode(_unsealed(path.read_bytes()), type=StoredModel)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                return None
            spec = self._manifest.find(name)
            if spec and isinstance(spec.source, PackageSource):
                LOG.warning("%s cannot be read (%s): the model is taken anew from its package", path, error)
                return None
            raise StorageError(f"{path} is damaged: {error}; remove it and pull the model again") from error

    def names(self) -> list[str]:
        """Return every name that is known here: of the store, then of the manifest."""
        return list(dict.fromkeys([*self.stored_names(), *(spec.name for spec in self._manifest.models)]))

    def stored_names(self) -> list[str]:
        """Return every name in the store, those with damaged records too."""
        return sorted(path.stem for path in (self._root / REFS).glob("*.json"))

    def list(self) -> tuple[ModelEntry, ...]:
        """Return every model of the manifest and of the store, but for damaged records; reads no weights."""
        catalogue = [spec.name for spec in self._manifest.models]
        entries = []
        for name in dict.fromkeys([*catalogue, *self.names()]):
            try:
                entries.append(self.show(name))
            except (ModelNotFound, StorageError) as error:  # one bad record hides no other model
                LOG.warning("%s", error)
        return tuple(entries)

    def served(self) -> tuple[ModelEntry, ...]:
        """Return those that a runtime can read and that need no pull first."""
        return tuple(entry for entry in self.list() if _is_served(entry))

    def served_one(self, name: str) -> ModelEntry | None:
        """Return one of those, or None: at the price of one, and every request asks."""
        try:
            entry = self.show(name)
        except (ModelNotFound, StorageError):
            return None
        return entry if _is_served(entry) else None

    def show(self, name: str) -> ModelEntry:
        """Return one model. Raises ModelNotFound."""
        if model := self.get(name):
            return self._stored_entry(model)
        if spec := self._manifest.find(name):
            return entry_outside(spec, self._quarantine_reason(spec.name))
        raise unknown_model(name, self.names())

    def verify(self, name: str) -> ModelEntry:
        """Hash a stored model and check its files again, whatever is recorded.

        Raises ModelNotFound when it is not in the store, ModelRejected when it does not hold:
        the bad file is then in quarantine.
        """
        model = self._stored(name)
        with self._files_of(name):
            for file in model.files:
                self._verify(model, file)
        return self._stored_entry(model)

    def forget(self, name: str) -> StoredModel:
        """Take a name away and return what it stood for; the files stay. Raises ModelNotFound."""
        model = self.get(name)
        if model is None:
            self.show(name)
            raise ModelNotFound(f"model {name} is not in the store; there is nothing to remove", param="model")
        with self._files_of(name):
            self._ref(name).unlink(missing_ok=True)
            sync_folder(self._root / REFS)
        return model

    @contextmanager
    def taking_in(self) -> Iterator[None]:
        """Keep ``agent.models.collecting`` away while files are without their names. May be nested. Raises OSError."""
        self.blobs.prepare()
        busy = f"the store {self._root} is being cleared by another call; try again"
        with held(self._root / LOCK_NAME, busy, shared=True, patience_s=_CLEARING_S):
            yield

    def _stored(self, name: str) -> StoredModel:
        model = self.get(name)
        if model is None:
            self.show(name)
            raise ModelNotFound(f"model {name} is not in the store yet; its first use takes it in", param="model")
        return model

    def _demo(self, name: str) -> bool:
        spec = self._manifest.find(name)
        return spec is not None and spec.demo

    def _current(self, name: str) -> StoredModel | None:
        """Return what is stored, unless the manifest now means other bytes by that name."""
        model, spec = self.get(name), self._manifest.find(name)
        if model and spec and spec.pinned and {f.sha256 for f in model.files} != {f.sha256 for f in spec.files}:
            return None
        return model

    def _hold(self, model: StoredModel) -> None:
        """Make sure that every file is there and verified. Raises ModelRejected."""
        for file in model.files:
            if not self.blobs.unchanged(file.sha256):
                self._verify(model, file)
        if self._path(model) == self._tree(model) and not self._is_linked(model):
            with self.taking_in():
                self._link_tree(model)
            for file in model.files:  # a new link changes the times of its file by our own hand: read once more
                self._verify(model, file)

    def _verify(self, model: StoredModel, file: StoredFile) -> None:
        try:
            with self.taking_in():  # what it notes must not be cleared away while it is written
                self.blobs.verify(file, _check_of(model, file.name), model=model.name)
        except FileNotFoundError:
            raise ModelRejected(f"{file.name} of model {model.name} is gone from the store; pull it again") from None

    def _is_linked(self, model: StoredModel) -> bool:
        """Whether the folder of a model has its files: these very ones, or copies where there are no links."""
        return all(is_link_or_copy(self.blobs.path(file.sha256), self._tree(model) / file.name) for file in model.files)

    def _link_tree(self, model: StoredModel) -> None:
        """Make the folder of a model anew; another process may be as far."""
        trees = self._root / TREES
        trees.mkdir(mode=0o700, exist_ok=True)
        if self._tree(model).is_dir():  # a file in it was replaced, or a damaged one was
            gone = Path(tempfile.mkdtemp(prefix=".", dir=trees))
            with contextlib.suppress(FileNotFoundError):
                self._tree(model).rename(gone / "tree")
            shutil.rmtree(gone)
        making = Path(tempfile.mkdtemp(prefix=".", dir=trees))
        try:
            for file in model.files:
                link_or_copy(self.blobs.path(file.sha256), making / file.name)
            making.rename(self._tree(model))
        except OSError:
            shutil.rmtree(making, ignore_errors=True)
            if not self._is_linked(model):  # another process may have been first
                raise
        sync_folder(trees)

    def _tree(self, model: StoredModel) -> Path:
        return self._root / TREES / model.digest

    def _path(self, model: StoredModel) -> Path:
        return self.blobs.path(model.files[0].sha256) if model.format is ModelFormat.GGUF else self._tree(model)

    def _ref(self, name: str) -> Path:
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise unknown_model(name, [spec.name for spec in self._manifest.models])
        return self._root / REFS / f"{name}.json"

    @contextmanager
    def _files_of(self, name: str) -> Iterator[None]:
        """Turn what the file system refuses into the errors that users meet."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise DiskFull(f"no space for model {name} in {self._root}; free some") from error
            place = error.filename or self._root
            raise StorageError(f"model {name}, {place}: {error.strerror}; check its permissions") from error

    def _stored_entry(self, model: StoredModel) -> ModelEntry:
        whole = all(self.blobs.unchanged(file.sha256) for file in model.files)
        there = all(self.blobs.has(file.sha256) for file in model.files)
        state = ModelState.INSTALLED if whole else ModelState.CHANGED
        if not there:
            spec = self._manifest.find(model.name)
            state = state_outside(spec) if spec else ModelState.MISSING
        return ModelEntry(
            name=model.name,
            title=model.title,
            format=model.format,
            licence=model.licence,
            state=state,
            bytes=model.bytes,
            sha256=model.digest,
            context_tokens=model.context_tokens,
            parameters=model.parameters,
            tasks=model.tasks,
            source=model.source,
            path=str(self._path(model)) if there else None,
            quarantined=self._quarantine_reason(model.name),
            remark=model.remark,
            demo=self._demo(model.name),
            quality=measured(model),
            allowed=model.allowed,
        )

    def _first_use(self, name: str) -> StoredModel:
        """Take a model in out of its installed packages, if nobody has to be asked before."""
        spec = self._manifest.find(name)
        if spec is None:
            raise unknown_model(name, self.names())
        if spec.accept or not isinstance(spec.source, PackageSource):
            raise ModelNotFound(
                f"model {name} is not on this device yet; get it with: outrider pull {name}", param="model"
            )
        return self.take_packaged(spec)

    def take_packaged(self, spec: ModelSpec) -> StoredModel:
        """Take a model in out of its installed packages; its licence is accepted where that is asked for.

        Raises ModelNotFound when a package is missing, ModelRejected, DiskFull, StorageError.
        """
        parts = packaged_files(spec)
        if parts is None:
            raise ModelNotFound(
                f"model {spec.name} is not installed: its package is missing; {how_to_install(spec)}",
                param="model",
            )
        with self._files_of(spec.name), self.taking_in():
            needed = [file.name for file in spec.promised if not self.blobs.unchanged(file.sha256)]
            try:
                with joined(parts, needed, self._root / "incoming") as copies:
                    return self.add(stored_model(spec, spec.promised), copies, move=True)
            except ModelRejected as error:
                raise ModelRejected(f"{error}; reinstall {requirements(spec)}") from error

    def _quarantine_reason(self, name: str) -> str | None:
        return next((one.reason for one in self.blobs.quarantined() if one.model == name), None)


def _is_served(entry: ModelEntry) -> bool:
    tasks = _SERVED_TASKS.get(entry.format, frozenset())
    return bool(tasks & {*entry.tasks}) and entry.state is not ModelState.MISSING


def _sealed(record: bytes) -> bytes:
    """Return a record with its SHA-256 in a second line: a template in it could be altered without any other sign."""
    return record + b"\n" + hashlib.sha256(record).hexdigest().encode() + b"\n"


def _unsealed(data: bytes) -> bytes:
    """Return the record. Raises ValueError where its digest does not fit; earlier releases wrote none."""
    record, _, seal = data.partition(b"\n")
    if seal and _sealed(record) != data:
        raise ValueError("its SHA-256 does not fit")
    return record


def _fault(record: bytes) -> str | None:
    """Return why a record could not be read again, or None."""
    try:
        msgspec.json.decode(record, type=StoredModel)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _check_of(model: StoredModel, name: str) -> Check:
    """Return the look into one file of a model that its format asks for."""
    return lambda path: check_file(model, name, path)


def open_store(data_dir: Path, *, disk_budget: int = 0) -> ModelStore:
    """Return the store of a data directory, with the manifest that ships with this program.

    Creates nothing. Raises ConfigError when the manifest cannot be read.
    """
    return ModelStore(data_dir / "models", load_manifest(), disk_budget=disk_budget)
