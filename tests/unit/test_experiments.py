"""Arms: sticky, independent, in their shares, and never looser than what was decided."""

import pytest
from fakes.storage_values import request

from agent import configuration
from agent.errors import ConfigError
from agent.experiments import arm_of, assigned
from agent.settings import ArmSettings, ExperimentSettings
from agent.types import EgressPolicy, Message, RouteMode

LOCAL = ArmSettings(name="local", route_mode=RouteMode.LOCAL_ONLY)
HYBRID = ArmSettings(name="hybrid", route_mode=RouteMode.LOCAL_FIRST, share=3)
ROUTES = ExperimentSettings(name="routes", task="mail", arms=(LOCAL, HYBRID))
MODELS = ExperimentSettings(
    name="models", key="metadata.customer", arms=(ArmSettings(name="a"), ArmSettings(name="b", model="other"))
)


def put(asked, *experiments, **known):
    chosen = {"names_route": False, "names_model": False, "may_leave": True}
    return assigned(asked, experiments or (ROUTES,), **{**chosen, **known})


def test_the_same_key_has_the_same_arm_and_each_arm_its_share():
    arms = [arm_of(ROUTES, f"user-{n}").name for n in range(4000)]
    assert arms == [arm_of(ROUTES, f"user-{n}").name for n in range(4000)]
    assert 0.73 < arms.count("hybrid") / len(arms) < 0.77
    # Fixed for ever: another release must not give users another arm.
    assert [arm_of(ROUTES, key).name for key in ("ada", "bob", "cy", "lea")] == ["hybrid", "hybrid", "hybrid", "local"]


def test_two_experiments_draw_independently():
    other = ExperimentSettings(name="later", arms=(LOCAL, HYBRID))
    both = sum(arm_of(ROUTES, f"u{n}") is LOCAL and arm_of(other, f"u{n}") is LOCAL for n in range(4000))
    assert 200 < both < 300  # a sixteenth, not a quarter


def test_the_arm_is_on_the_request():
    found = put(request(user="lea", task="mail"))
    assert (found.arm, found.route_mode) == ("routes/local", RouteMode.LOCAL_ONLY)
    found = put(request(metadata={"customer": "c3"}), MODELS)
    assert (found.arm, found.model) == (f"models/{arm_of(MODELS, 'c3').name}", arm_of(MODELS, "c3").model or "small")


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"user": None}, {}),
        ({"task": None}, {}),
        ({}, {"names_route": True}),
        ({}, {"may_leave": False}),
        ({"egress": EgressPolicy.NEVER}, {}),
        ({"messages": (Message("user", "look", parts="[]"),)}, {}),
    ],
)
def test_who_could_not_be_in_each_arm_is_in_none(fields, known):
    asked = request(**{"user": "lea", "task": "mail", **fields})
    assert put(asked, **known) is asked


def test_a_named_model_stays():
    asked = request(metadata={"customer": "c"})
    assert put(asked, MODELS, names_model=True) is asked
    assert put(asked, MODELS, may_leave=False).arm is not None  # nothing of it asks a target


TWO = '[[experiments]]\nname = "x"\n[[experiments.arms]]\nname = "a"\n[[experiments.arms]]\nname = "{}"\n{}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TWO.format("a", 'model = "m"'), "same name"),
        (TWO.format("b", ""), "do the same"),
        (TWO.format("b", "share = 0"), "share"),
        (TWO.format("b", 'rout_mode = "local_only"'), "rout_mode"),
        ('[[experiments]]\nname = "x"\narms = []\n', "arms"),
        (TWO.format("b", 'model = "m"').replace('"x"', '"x"\nkey = "ip"'), "key"),
    ],
)
def test_an_experiment_that_compares_nothing_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "outrider.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        configuration.load(path, environ={"HOME": str(tmp_path)})
