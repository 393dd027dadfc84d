"""What fits a device, in which order, and why."""

import hashlib

import msgspec
import pytest
from fakes import tiny_gguf

from agent import device
from agent.models.artifact import StoredFile, StoredModel
from agent.models.fitting import MIB, PROGRAM_BYTES, Room, catalogue_need, room_of, stored_need, weight_type
from agent.models.manifest import HubSource, Manifest, ManifestFile, ModelSpec, load_manifest
from agent.models.profiles import PROFILES
from agent.models.quality import MeasuredSpeed, Speed
from agent.models.quantizing import DEFAULT_RECIPES
from agent.models.recipes import RECIPES
from agent.models.recommending import recommend
from agent.models.store import ModelStore
from agent.types import ModelFormat

CPU, PHONE = PROFILES["cpu"], PROFILES["phone"]
ROOM = Room(bytes=2000 * MIB, why="what --memory allows")
MACHINE = device.profile()


def spec(name, billions=1.0, file="m-Q4_K_M.gguf", **more):
    given = {
        "name": name,
        "title": name,
        "licence": "MIT",
        "context_tokens": 8192,
        "format": ModelFormat.GGUF,
        "family": "llama",
        "files": (ManifestFile(name=file),),
        "parameters": int(billions * 1e9),
        "source": HubSource(repository=f"owner/{name}", pin="first-pull"),
    }
    return ModelSpec(**(given | more))


def judged(tmp_path, *specs, profile=CPU, room=ROOM, **more):
    found = recommend(ModelStore(tmp_path / "models", Manifest(specs)), profile, room, MACHINE, **more)
    return {one.name: one for one in found}


def put(store, path, name="made-here", **more):
    data = path.read_bytes()
    file = StoredFile(name="m.gguf", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    given = {
        "name": name,
        "title": name,
        "format": ModelFormat.GGUF,
        "files": (file,),
        "licence": "MIT",
        "source": "file",
        "context_tokens": 4096,
        "parameters": 1000,
    }
    return store.add(StoredModel(**(given | more)), {"m.gguf": path})


def test_the_largest_that_fits_comes_first_and_each_has_its_reason(tmp_path):
    found = judged(
        tmp_path,
        spec("small", 0.5),
        spec("large", 3),
        spec("middle", 1.5),
        spec("demo", 0.1, demo=True),
        spec("sorter", tasks=("rerank",)),
        spec("riddle", parameters=None),
        spec("told", 1.4, memory_mib={"cpu": 1500}),
    )
    assert list(found) == ["middle", "told", "small", "demo", "large", "riddle", "sorter"]
    assert [one.name for one in found.values() if one.recommended] == ["middle"]
    assert found["told"].need.exact
    assert found["told"].need.total == 1500 * MIB + PROGRAM_BYTES
    assert "2000 MiB are what --memory allows" in found["large"].why
    assert "outrider get middle" in found["middle"].why
    assert "demo model" in found["demo"].why
    assert "rerank" in found["sorter"].why
    assert "not known before the first pull" in found["riddle"].why


def test_nothing_is_recommended_where_nothing_fits(tmp_path):
    found = judged(tmp_path, spec("large", 3), room=Room(bytes=100 * MIB, why="the ceiling"))
    assert not any(one.recommended or one.fits for one in found.values())


def test_a_recipe_makes_a_model_fit(tmp_path):
    big = spec("big", 1.7, "m-Q8_0.gguf", memory_mib={"phone": 1974})
    assert not judged(tmp_path, big, profile=PHONE)["big"].fits
    small = judged(tmp_path, msgspec.structs.replace(big, recipes={"phone": "gguf-q4_0"}), profile=PHONE)["big"]
    assert small.fits
    assert small.recipe == "gguf-q4_0"
    assert "made smaller (gguf-q4_0)" in small.why


def test_an_npu_gets_encoders_and_a_computer_models_that_answer(tmp_path):
    specs = (spec("writer", 0.1), spec("encoder", 0.1, tasks=("embed",), format=ModelFormat.ONNX_ENCODER))
    sized = (
        msgspec.structs.replace(one, memory_mib={"npu": 90, "cpu": 90}, format=ModelFormat.ONNX_ENCODER)
        for one in specs
    )
    found = judged(tmp_path, *sized, profile=PROFILES["npu"])
    assert [name for name, one in found.items() if one.fits] == ["encoder"]
    assert "wants classify or embed or rerank" in found["writer"].why
    assert "onnx_encoder does not run" in judged(tmp_path, spec("odd", format=ModelFormat.ONNX_ENCODER))["odd"].why


def test_offline_only_what_is_here_counts(tmp_path):
    assert not judged(tmp_path, spec("far"), here_only=True)


def test_speed_is_reckoned_from_what_was_measured_here(tmp_path):
    manifest = Manifest((spec("slow", 1.5), spec("quick", 0.5)))
    store = ModelStore(tmp_path / "models", manifest)
    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    model = put(store, path)
    seen = Speed(tokens_per_second=4e9 / model.bytes, first_token_ms=1, prompt_tokens=1, memory_bytes=1)
    note = MeasuredSpeed(
        digest=model.digest,
        device=MACHINE.kind,
        version="1",
        context_tokens=4096,
        threads=0,
        measured_at_ms=1,
        speed=seen,
    )
    store.note("made-here", speeds=(note,))
    found = {one.name: one for one in recommend(store, CPU, ROOM, MACHINE)}
    assert next(iter(found)) == "quick"
    assert "too slow" in found["slow"].why
    assert found["slow"].tokens_per_second == pytest.approx(4e9 / found["slow"].need.weights)
    store.note("made-here", speeds=(msgspec.structs.replace(note, device="another"),))
    assert next(one for one in recommend(store, CPU, ROOM, MACHINE)).name == "slow"


def test_what_a_stored_model_needs_is_read_from_its_file(tmp_path):
    store = ModelStore(tmp_path / "models", Manifest(()))
    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    put(store, path)
    need, kind = stored_need(store.show("made-here"), PHONE)
    values = tiny_gguf.LAYERS * tiny_gguf.KV_HEADS * (tiny_gguf.WIDTH // tiny_gguf.HEADS)
    assert need.cache == PHONE.context_tokens * values * 2 * 2
    assert (need.weights, kind) == (path.stat().st_size, "F16")
    store.blobs.path(store.get("made-here").digest).unlink()
    assert not recommend(store, CPU, ROOM, MACHINE)[0].fits


def test_of_one_model_what_suits_the_hardware_comes_first(tmp_path):
    files = {"q8": "m-q8_0.gguf", "k": "m-Q4_K_M.gguf", "q4": "m-q4_0.gguf"}
    specs = [spec(name, file=file, memory_mib={"cpu": 9, "phone": 9}) for name, file in files.items()]
    assert list(judged(tmp_path, *specs)) == ["k", "q4", "q8"]
    assert next(iter(judged(tmp_path, *specs, profile=PHONE))) == "q4"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a-Q4_K_M.gguf", "Q4_K"), ("a.q8_0.gguf", "Q8_0"), ("A-IQ4_XS.gguf", "IQ4_XS"), ("a-f16.gguf", "F16"), ("a", "")],
)
def test_types_by_the_names_of_files(name, kind):
    assert weight_type(name) == kind


def test_the_room_is_the_least_of_all_limits():
    seen = msgspec.structs.replace(MACHINE, memory_available=10_000 * MIB, memory_left=None)
    assert room_of(CPU, None, seen).bytes == 8000 * MIB
    assert "phone" in room_of(PHONE, 4000, seen).why
    assert room_of(PHONE, 1000, seen).bytes == 1000 * MIB
    tight = msgspec.structs.replace(seen, memory_left=1000 * MIB)
    assert "free" in room_of(PHONE, None, tight).why


def test_the_shipped_manifest_names_recipes_that_exist_and_make_sense():
    for one in load_manifest().models:
        for target, recipe in one.recipes.items():
            assert recipe in RECIPES
            assert target in PROFILES
        if "chat" in one.tasks and one.format is ModelFormat.GGUF:
            assert catalogue_need(one, CPU)
    assert DEFAULT_RECIPES == {"cpu": "gguf-q4_k_m", "phone": "gguf-q4_0"}
