"""Which device is used, and why not another one. The graphs really run; what a driver says is made up."""

import numpy as np
import pytest
from fakes import plain_encoders as plain

from agent.compute import DeviceKind, DeviceVerdict, DeviceWish
from agent.engine import device_proof, execution_providers
from agent.engine.device_proof import placed
from agent.engine.device_verdicts import FILE_NAME, MOST_KEPT, DeviceVerdicts
from agent.engine.execution_providers import Candidate, Offer
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.engine.onnx_session import CPU
from agent.engine.refusals import ModelUnloadable

PROCESSOR = Candidate(DeviceKind.CPU, CPU, "1", "", "AMD CPU", (), {})


class Silent(Candidate):
    """What onnxruntime does where a device is not there: the session is made, and runs on the processor."""

    def configure(self, settings):
        settings.add_provider(CPU, {})


def device(kind=DeviceKind.NPU, provider="SomeNpu", version="1"):
    return Silent(kind, provider, version, "driver=7", "Some NPU", (), {})


@pytest.fixture
def model(tmp_path):
    return plain.model_file(plain.embedder(tmp_path))


@pytest.fixture
def runs_there(monkeypatch):
    """Have the graph run where it is asked to, as fast as it is told."""

    def node_share(self, provider):
        self.is_there = True
        return 1.0

    monkeypatch.setattr(OnnxEncoderRuntime, "node_share", node_share)
    times = iter([2.0, 1.0] * 9)
    monkeypatch.setattr(device_proof, "_seconds", lambda runtime, batch: next(times))


def choose(model, *candidates, wish=DeviceWish.AUTO, known=(), problems=()):
    tried = []
    offered = Offer((*candidates, PROCESSOR), problems)
    _, use = placed(
        model,
        threads=1,
        wish=wish,
        known=known,
        announce=lambda one: tried.append(one.provider),
        devices=lambda: offered,
    )
    return use, tried


def test_the_processor_is_used_where_there_is_nothing_else(model):
    use, tried = choose(model, problems=("SomeNpu is installed and cannot be registered",))
    assert (use.used.kind, use.used.provider, use.used.holds) == (DeviceKind.CPU, CPU, True)
    assert use.refused == ()
    assert use.problems == ("SomeNpu is installed and cannot be registered",)
    assert tried == []


def test_a_silent_fall_back_to_the_processor_is_seen(model):
    use, tried = choose(model, device())
    assert tried == ["SomeNpu"]
    assert use.used.provider == CPU
    (refused,) = use.refused
    assert refused.reason == "0% of the graph runs there, the rest on the processor; 80% are wanted"
    assert refused.node_share == 0


def test_a_provider_of_the_processor_is_no_npu_whatever_its_name(model):
    use, tried = choose(model, device(DeviceKind.CPU, "QNNExecutionProvider"))
    assert tried == []
    assert "its device is the processor" in use.refused[0].reason


def test_a_device_that_proves_itself_is_used(model, runs_there):
    use, _ = choose(model, device(), device(DeviceKind.GPU, "SomeGpu"))
    assert use.used.provider == "SomeNpu"
    assert (use.used.node_share, use.used.agreement, use.used.speed) == (1.0, pytest.approx(1.0), 2.0)
    assert use.used.reason == "100% of the graph, agreement 1.000, 2.0 times the speed of the processor"


def test_other_outputs_than_the_processors_are_refused(model, runs_there, monkeypatch):
    rows = OnnxEncoderRuntime.rows
    monkeypatch.setattr(device_proof, "_texts", lambda runtime: [runtime.tokens.read("good bad")])

    def wrong(self, batch):
        return rows(self, batch) + (0.5 if hasattr(self, "is_there") else 0) * np.arange(4, dtype=np.float32)

    monkeypatch.setattr(OnnxEncoderRuntime, "rows", wrong)
    use, _ = choose(model, device())
    assert use.used.provider == CPU
    assert "its outputs agree with the processor's to 0." in use.refused[0].reason


def test_a_device_slower_than_the_processor_is_refused(model, runs_there, monkeypatch):
    times = iter([1.0, 2.0])
    monkeypatch.setattr(device_proof, "_seconds", lambda runtime, batch: next(times))
    use, _ = choose(model, device())
    assert use.refused[0].reason == "it has 0.50 times the speed of the processor"


def test_what_a_driver_raises_is_a_reason(model):
    class Broken(Silent):
        def configure(self, settings):
            raise RuntimeError("no such\ndevice")

    use, _ = choose(model, Broken(*device()))
    assert use.refused[0].reason == "the model does not run there: onnxruntime refuses model.onnx: no such device"


def test_the_next_device_is_used_where_one_fails(model, runs_there, monkeypatch):
    monkeypatch.setattr(OnnxEncoderRuntime, "node_share", lambda self, provider: float(provider == "SomeGpu"))
    use, tried = choose(model, device(), device(DeviceKind.GPU, "SomeGpu"))
    assert tried == ["SomeNpu", "SomeGpu"]
    assert use.used.provider == "SomeGpu"
    assert [one.provider for one in use.refused] == ["SomeNpu"]


def test_what_was_proved_is_not_proved_again(model, runs_there, monkeypatch):
    first, _ = choose(model, device())
    monkeypatch.setattr(device_proof, "_seconds", lambda runtime, batch: pytest.fail("measured again"))
    use, tried = choose(model, device(), known=[first.used])
    assert tried == []
    assert use.used == first.used
    monkeypatch.setattr(OnnxEncoderRuntime, "node_share", lambda self, provider: 0.1)
    use, _ = choose(model, device(), known=[first.used])
    assert use.used.provider == CPU, "where it runs is looked at every time"


def test_what_was_refused_is_tried_again_when_its_version_changes(model):
    refused = choose(model, device())[0].refused
    assert choose(model, device(), known=refused)[1] == []
    assert choose(model, device(version="2"), known=refused)[1] == ["SomeNpu"]


def test_a_wish_is_kept_or_the_model_is_not_loaded(model, runs_there, monkeypatch):
    use, _ = choose(model, device(), device(DeviceKind.GPU, "SomeGpu"), wish=DeviceWish.GPU)
    assert use.used.provider == "SomeGpu"
    use, tried = choose(model, device(), wish=DeviceWish.CPU)
    assert (use.used.provider, tried) == (CPU, [])
    with pytest.raises(ModelUnloadable, match=r'engine\.devices is "npu", and no npu proves itself: there is none'):
        choose(model, wish=DeviceWish.NPU)
    monkeypatch.setattr(OnnxEncoderRuntime, "node_share", lambda self, provider: 0.5)
    with pytest.raises(ModelUnloadable, match="SomeNpu: 50% of the graph runs there"):
        choose(model, device(), wish=DeviceWish.NPU)


def test_every_task_is_compared(tmp_path, runs_there):
    for make in (plain.embedder, plain.classifier, plain.reranker, plain.tagger):
        model = plain.model_file(make(tmp_path / make.__name__))
        use, _ = choose(model, device())
        assert use.used.provider == "SomeNpu", use
        assert use.used.agreement == pytest.approx(1)


def test_the_offer_of_this_machine_has_the_processor_and_is_in_order():
    found = execution_providers.offer()
    assert CPU in {one.provider for one in found.candidates}
    order = [list(DeviceKind).index(one.kind) for one in found.candidates]
    assert order == sorted(order)
    assert execution_providers.processor()


def test_a_plugin_that_cannot_be_registered_is_a_problem_and_no_end(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("def get_library_path():\n    return '/nowhere/lib.so'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(execution_providers.PLUGINS, "broken_plugin", "BrokenProvider")
    found = execution_providers.offer()
    (problem,) = found.problems
    assert problem.startswith("BrokenProvider is installed and cannot be registered: ")
    assert execution_providers.offer().problems == found.problems


def verdict(number=0, **changes):
    given = {"model_digest": "d", "kind": DeviceKind.NPU, "provider": "SomeNpu", "version": str(number), "driver": ""}
    proof = {"processor": "p", "device": "Some NPU", "holds": True, "reason": "it does"}
    return DeviceVerdict(**(given | proof | changes))


def test_verdicts_are_kept_by_their_key(tmp_path):
    kept = DeviceVerdicts(tmp_path)
    kept.keep([verdict(1), verdict(2), verdict(1, model_digest="other")])
    kept.keep([verdict(1, holds=False, reason="no more")])
    assert {(one.version, one.holds) for one in DeviceVerdicts(tmp_path).known("d")} == {("1", False), ("2", True)}
    assert len(kept.all()) == 3
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"


def test_the_oldest_verdicts_go_first(tmp_path):
    kept = DeviceVerdicts(tmp_path)
    kept.keep([verdict(number) for number in range(MOST_KEPT + 5)])
    assert [one.version for one in kept.all()][:2] == ["5", "6"]
    assert len(kept.all()) == MOST_KEPT


def test_verdicts_that_cannot_be_read_are_as_none(tmp_path):
    (tmp_path / FILE_NAME).write_text("[{")
    assert DeviceVerdicts(tmp_path).all() == ()
    DeviceVerdicts(tmp_path).keep([verdict()])
    assert DeviceVerdicts(tmp_path).all() == (verdict(),)


def test_a_worker_lost_on_a_device_condemns_it_and_never_the_processor():
    kept = DeviceVerdicts(None)
    kept.lost(verdict(), "died of signal 11 (SIGSEGV)")
    kept.lost(verdict(2, kind=DeviceKind.CPU), "died")
    kept.lost(None, "died")
    (one,) = kept.all()
    assert (one.holds, one.reason) == (False, "the worker died of signal 11 (SIGSEGV)")
