"""Configuration: merged in order, refused by name, each value with its origin."""

import pytest

from agent import configuration, settings
from agent.errors import ConfigError


def load(tmp_path, text="", environ=None, **flags):
    path = tmp_path / "outrider.toml"
    path.write_text(text)
    return configuration.load(path, environ={"HOME": str(tmp_path), **(environ or {})}, flags=flags)


def test_no_target_is_looser_than_the_policy_of_the_whole_device(tmp_path):
    path = tmp_path / "outrider.toml"
    target = '[[targets]]\nname = "{}"\nbase_url = "https://x/v1"\nmodel = "m"\negress = "{}"\n'
    targets = "".join(target.format(egress, egress) for egress in ("allow", "approve", "never"))
    for policy, expected in (("never", ["never"] * 3), ("redact", ["redact", "approve", "never"])):
        path.write_text(f'[egress]\npolicy = "{policy}"\n' + targets)
        found = configuration.load(path, environ={"HOME": str(tmp_path)}).settings.targets
        assert [one.egress for one in found] == expected


def test_flag_beats_environment_beats_file(tmp_path):
    text = "[server]\nport = 1\n[engine]\nparallel = 2\nthreads = 1\n"
    env = {"OUTRIDER_SERVER_PORT": "2", "OUTRIDER_ENGINE_PARALLEL": "3"}
    loaded = load(tmp_path, text, env, **{"server.port": 3})
    assert (loaded.settings.server.port, loaded.settings.engine.parallel, loaded.settings.engine.threads) == (3, 3, 1)
    assert loaded.origins["server.port"] == "flag"
    assert loaded.origins["engine.parallel"] == "env OUTRIDER_ENGINE_PARALLEL"
    assert loaded.origins["engine.threads"] == str(tmp_path / "outrider.toml")
    assert "queue.ttl_s" not in loaded.origins


def test_data_dir_defaults_below_home(tmp_path):
    assert load(tmp_path).settings.data_dir == str(tmp_path / ".local/share/outrider")
    assert load(tmp_path, environ={"XDG_DATA_HOME": "/x"}).settings.data_dir == "/x/outrider"


TARGET = '[[targets]]\nname = "main"\nbase_url = "{url}"\nmodel = "m"\negress = "{egress}"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[servr]\n", "unknown key servr; did you mean server"),
        ("[server]\nprot = 1\n", "unknown key server.prot; did you mean port"),
        ("server = 1\n", "must be a table"),
        ("[adapters]\n", "must be written as [[adapters]]"),
        ('[[adapters]]\nnam = "a"\n', "unknown key adapters[0].nam; did you mean name"),
        ('[[adapters]]\nname = "a"\nmodel = "m"\npath = "a.gguf"\n', "path 'a.gguf' is not absolute"),
        ('[[adapters]]\nname = "a"\nmodel = "m"\npath = "/a"\n' * 2, "adapters: the name a is used twice"),
        ('[[adapters]]\nname = "a"\nmodel = "m"\npath = "/a"\nscale = 0\n', "scale"),
        ("[server]\nport = 70000\n", "server.port"),
        ('[server]\nport = "80"\n', "server.port"),
        ("[confidence]\nthreshold = 1.5\n", "confidence.threshold"),
        ("[server]\nhost = '0.0.0.0'\n", "no TLS"),
        ("[server]\ntls_cert = 'x'\n", "go together"),
        ("not toml", "not valid TOML"),
        ("targets = 3\n", "[[targets]]"),
        ('[redaction]\nterms = ["x"]\n', "redaction.terms"),
        (TARGET.format(url="http://10.0.0.1/v1", egress="allow"), "plain http"),
        (TARGET.format(url="ftp://x.test", egress="allow"), "not an http"),
        (TARGET.format(url="https://u:p@x.test/v1", egress="allow"), "password"),
        (TARGET.format(url="https://x.test/v1", egress="sure"), "egress"),
        (TARGET.format(url="https://x.test/v1", egress="allow") * 2, "used twice"),
        (TARGET.format(url="https://x.test/v1", egress="allow").replace("egress", "egres"), "targets[0].egres"),
        ('[[targets]]\nname = "a"\nbase_url = "https://x.test/v1"\nmodel = "m"\n', "egress"),
        (TARGET.format(url="https://x.test/v1", egress="allow") + 'api_key_env="A"\napi_key_file="b"\n', "both set"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"OUTRIDER_SERVER_PROT": "1"}, "did you mean OUTRIDER_SERVER_PORT"),
        ({"OUTRIDER_SERVER_PORT": "many"}, "OUTRIDER_SERVER_PORT"),
    ],
)
def test_a_bad_variable_is_refused_by_name(tmp_path, environ, says):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, environ=environ)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "address", ["https://a:99999/v1", "https://a:abc/v1", "https://a:0/v1", "http://[::1/v1", "https://:443/v1"]
)
def test_an_address_that_cannot_work_is_refused(tmp_path, address):
    text = f'[[targets]]\nname = "main"\nbase_url = "{address}"\nmodel = "m"\negress = "approve"\n'
    with pytest.raises(ConfigError, match=r"target main: base_url .* is not a"):
        load(tmp_path, text)


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        configuration.load(tmp_path / "none.toml", environ={})


def test_lists_from_the_environment_are_comma_separated(tmp_path):
    loaded = load(tmp_path, environ={"OUTRIDER_SERVER_ALLOWED_HOSTS": "a.local, b.local"})
    assert loaded.settings.server.allowed_hosts == ("a.local", "b.local")


def test_every_setting_says_what_it_is():
    for section in [*configuration.sections().values(), settings.TargetSettings]:
        import typing

        for name, hint in typing.get_type_hints(section, include_extras=True).items():
            assert hint.__metadata__[0].description.endswith((".", ")")), name
