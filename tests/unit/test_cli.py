"""The command line without a daemon: help, configuration, output, errors and their exit codes."""

import errno
import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agent import errors, executable
from agent.cli import output, queue
from agent.cli.client import RemoteError, find_daemon
from agent.cli.invocation import parse_assignment
from agent.cli.main import COMMANDS, cli
from agent.errors import CannotRedact
from agent.storage.instance_lock import InstanceLock

ROOT = Path(__file__).parents[2]


def run(*arguments, stdin=""):
    return CliRunner().invoke(cli, list(arguments), input=stdin, prog_name="outrider")


def leaves(command, name):
    if isinstance(command, click.Group):
        for inner_name, inner in command.commands.items():
            yield from leaves(inner, f"{name} {inner_name}")
    else:
        yield name, command


ALL = [pair for name in COMMANDS for pair in leaves(cli.get_command(click.Context(cli), name), name)]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_command_has_help_with_an_example_and_json(name, command):
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_each_command_says(name):
    command = cli.get_command(click.Context(cli), name)
    assert command.get_short_help_str(limit=200) == COMMANDS[name][1].removesuffix(".") or COMMANDS[name][1] == (
        command.get_short_help_str(limit=200)
    )


def test_help_imports_neither_http_nor_database_nor_tables():
    script = (
        "import sys\nfrom agent.cli.main import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        "bad = {'httpx2', 'rich', 'sqlcipher3', 'starlette', 'tomlkit', 'psutil', 'llama_cpp'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_a_failure_is_one_line_on_stderr_with_its_exit_code(tmp_path):
    result = run("--data-dir", str(tmp_path), "ask", "hello")
    assert result.exit_code == errors.DaemonUnreachable.exit_code
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "outrider serve" in result.stderr


def test_a_failure_as_json(tmp_path):
    result = run("--data-dir", str(tmp_path), "ask", "hello", "--json")
    found = json.loads(result.stderr)["error"]
    assert found["code"] == "daemon_unreachable"
    assert found["exit_code"] == result.exit_code == 69


def test_wrong_usage_is_2_also_as_json():
    assert run("queue", "list", "--state", "nonsense").exit_code == 2
    result = run("nonsense", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"]["code"] == "usage"


def test_a_fault_of_ours_is_one_line_without_a_traceback(monkeypatch):
    from agent.cli.invocation import Invocation

    def fault(self, **flags):
        raise ValueError("something\nunforeseen")

    monkeypatch.setattr(Invocation, "load", fault)
    result = run("config", "show")
    assert result.exit_code == 70
    assert result.stderr.count("\n") == 1
    assert "ValueError: something" in result.stderr
    assert "Traceback" not in result.stderr
    assert isinstance(run("--traceback", "config", "show").exception, ValueError)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "Permission denied; give user somebody access to it"),
        (errno.ENOSPC, "No space left on device; free some space there"),
        (errno.EROFS, "Read-only file system; name a place that can be written"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ours(monkeypatch, number, remedy):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "/media/stick/file")

    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setattr("agent.configuration.load", refuse)
    result = run("doctor", "--disk")
    assert result.exit_code == errors.StorageError.exit_code
    assert result.stderr.startswith(f"outrider: /media/stick/file: {remedy}")


def test_config_show_tells_the_origin_of_each_value(tmp_path, monkeypatch):
    path = tmp_path / "outrider.toml"
    path.write_text("[server]\nport = 9000\n[confidence]\nthreshold = 0.7\n")
    monkeypatch.setenv("OUTRIDER_CONFIDENCE_THRESHOLD", "0.8")
    result = run("--config", str(path), "--set", "engine.threads=3", "config", "show", "--json")
    rows = {row["key"]: row for row in json.loads(result.stdout)}
    assert rows["server.port"] == {"key": "server.port", "value": 9000, "origin": str(path)}
    assert rows["confidence.threshold"]["value"] == 0.8
    assert rows["confidence.threshold"]["origin"] == "env OUTRIDER_CONFIDENCE_THRESHOLD"
    assert rows["engine.threads"] == {"key": "engine.threads", "value": 3, "origin": "flag"}
    assert rows["server.host"]["origin"] == "default"


def test_config_check_names_the_key_and_exits_78(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text("[server]\nprot = 9000\n")
    result = run("--config", str(path), "config", "check")
    assert result.exit_code == 78
    assert "server.prot" in result.stderr
    assert "did you mean" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server.port=9000", ("server.port", 9000)),
        ("engine.confine=false", ("engine.confine", False)),
        ("engine.model=a-model", ("engine.model", "a-model")),
        ('server.allowed_hosts=["a", "b"]', ("server.allowed_hosts", ["a", "b"])),
    ],
)
def test_assignments_are_read_as_toml_or_text(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["server.port", "server.prot=1", "=1"])
def test_assignments_that_mean_nothing_are_refused(text):
    with pytest.raises(errors.ConfigError, match="--set"):
        parse_assignment(text)


def test_env_quotes_for_each_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTRIDER_API_KEY", "it's $secret")
    result = run("--data-dir", str(tmp_path), "env")
    assert "export OPENAI_BASE_URL=http://127.0.0.1:8484/v1\n" in result.stdout
    shown = subprocess.run(
        ["sh", "-c", f'{result.stdout}\nprintf %s "$OPENAI_API_KEY"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "it's $secret"
    assert "'it''s $secret'" in run("--data-dir", str(tmp_path), "env", "--shell", "powershell").stdout


def test_a_dead_daemon_is_not_sent_the_token(tmp_path):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / "daemon.json").write_text(json.dumps({"pid": int(child.stdout), "url": "http://127.0.0.1:1"}))
    (tmp_path / "token").write_text("secret")
    result = run("--data-dir", str(tmp_path), "ask", "hello")
    assert result.exit_code == 69
    assert "no daemon runs" in result.stderr


def test_another_process_under_the_pid_of_a_killed_daemon_is_not_taken_for_it(tmp_path):
    pid = os.getpid()

    def announce(started):
        found = {"pid": pid, "started": started, "url": "http://127.0.0.1:1"}
        (tmp_path / "daemon.json").write_text(json.dumps(found))

    announce(executable.started(pid))
    assert find_daemon(tmp_path) is None  # nobody holds the lock
    lock = InstanceLock(tmp_path)
    assert find_daemon(tmp_path).url == "http://127.0.0.1:1"
    announce("1")
    assert find_daemon(tmp_path) is None
    lock.release()
    InstanceLock(tmp_path).release()  # looking has left nothing locked


def test_remote_errors_exit_like_their_class():
    assert RemoteError("x", code="queue_full", status=507).exit_code == errors.QueueFull.exit_code
    assert RemoteError("x", code="of_a_newer_release", status=400).exit_code == 2
    assert RemoteError("x", code="of_a_newer_release", status=500).exit_code == 70


CONFIG = """# mine, keep this line
[server]
port = 9000  # and this
"""


def target_add(path, *more, stdin=""):
    base = ["--config", str(path), "--data-dir", str(path.parent / "data")]
    return run(
        *base, "target", "add", "main", "--base-url", "https://api.example.com/v1", "--model", "m", *more, stdin=stdin
    )


def test_target_add_keeps_comments_and_defaults_to_approve(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text(CONFIG)
    result = target_add(path)
    assert result.exit_code == 0, result.stderr
    text = path.read_text()
    assert text.startswith(CONFIG)
    assert tomllib.loads(text)["targets"] == [
        {"name": "main", "base_url": "https://api.example.com/v1", "model": "m", "egress": "approve"}
    ]
    assert "names are NOT removed" in result.stderr
    assert json.loads(run("--config", str(path), "target", "list", "--json").stdout)[0]["name"] == "main"
    assert run("--config", str(path), "target", "remove", "main").exit_code == 0
    assert path.read_text() == CONFIG


def test_a_target_that_is_refused_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text(CONFIG)
    for more in (
        ["--base-url", "http://192.0.2.1/v1"],
        ["--base-url", "https://api.example.com:99999/v1"],
        ["--base-url", "https://api.example.com:abc/v1"],
        ["--base-url", "http://[::1/v1"],
        ["--base-url", "https://exa\x7fmple.com/v1"],
        ["--api-key-file", "/k", "--api-key-env", "K"],
    ):
        result = target_add(path, *more)
        assert result.exit_code == 78, more
        assert path.read_text() == CONFIG
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_target_that_are_not_there_are_named_at_once(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text(CONFIG)
    result = target_add(path, "--api-key-file", str(tmp_path / "nokey"), "--ca-file", str(tmp_path / "noca"))
    assert result.exit_code == 0
    assert f"api_key_file {tmp_path / 'nokey'} cannot be read: put the key there, mode 0600" in result.stderr
    assert f"ca_file {tmp_path / 'noca'} does not exist: correct ca_file" in result.stderr


def test_a_target_is_added_to_targets_written_inline(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text(
        'targets = [{name = "one", base_url = "https://one.example/v1", model = "m", egress = "never"}]\n' + CONFIG
    )
    assert target_add(path).exit_code == 0
    found = tomllib.loads(path.read_text())
    assert [one["name"] for one in found["targets"]] == ["one", "main"]
    assert found["server"] == {"port": 9000}


def test_an_edit_that_does_not_load_names_the_file_of_the_user(tmp_path):
    from agent.cli.config_file import replace_config

    path = tmp_path / "outrider.toml"
    path.write_text(CONFIG)
    with pytest.raises(errors.ConfigError) as caught:
        replace_config(path, "[[targets]]\n")
    assert str(caught.value).startswith(f"{path}: ")
    assert path.read_text() == CONFIG


@pytest.mark.parametrize("given", ["", " \n"])
def test_an_empty_question_is_not_asked(given):
    assert "the question is empty" in run("ask", given).stderr
    assert "the question is empty" in CliRunner().invoke(cli, ["ask", "-"], input=given).stderr


def test_a_configuration_behind_a_link_is_changed_where_it_lies(tmp_path):
    (tmp_path / "dotfiles").mkdir()
    own, path = tmp_path / "dotfiles" / "outrider.toml", tmp_path / "outrider.toml"
    own.write_text(CONFIG)
    path.symlink_to(own)
    assert target_add(path).exit_code == 0
    assert path.is_symlink()
    assert "main" in own.read_text()


def test_target_test_of_nobody_is_69(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text('[[targets]]\nname = "main"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\negress = "approve"\n')
    result = run("--config", str(path), "target", "test", "main", "--json")
    assert result.exit_code == 69
    assert json.loads(result.stdout)["state"] == "offline"
    assert run("--config", str(path), "target", "test", "other").exit_code == 2


def test_doctor_names_problem_and_remedy(tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    path = tmp_path / "outrider.toml"
    path.write_text(
        f'data_dir = "{data}"\n[server]\nport = 0\n'
        '[[targets]]\nname = "main"\nbase_url = "https://api.example.com/v1"\nmodel = "m"\negress = "allow"\n'
        f'api_key_file = "{tmp_path / "nokey"}"\n'
    )
    result = run("--config", str(path), "doctor", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    problems = {finding["subject"]: finding for finding in found if finding["level"] == "problem"}
    assert {"data directory", "target main"} <= set(problems)
    assert problems["data directory"]["remedy"] == f"chmod 700 {data}"
    assert all(finding["remedy"] for finding in problems.values())
    assert any("UNREDACTED" in finding["detail"] for finding in found)


def test_doctor_goes_on_after_a_broken_configuration(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text("nonsense")
    result = run("--config", str(path), "doctor")
    assert result.exit_code == 1
    assert "PROBLEM  configuration" in result.stdout
    assert "machine" in result.stdout


def test_terminal_control_characters_of_an_answer_are_not_printed():
    assert output.printable("a\x1b[2Jb\n\tc\x07") == "a\ufffd[2Jb\n\tc\ufffd"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (4096, "4.0 KiB"), (1 << 40, "1.0 TiB")])
def test_sizes(count, text):
    assert output.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (90, "1 min"), (7200, "2 h"), (200_000, "2 d")])
def test_spans(seconds, text):
    assert output.span(seconds) == text


def test_piped_tables_are_whole_and_plain(capsys):
    output.table(["ID", "TEXT"], [("1", "x" * 300), ("2", None)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"1   {'x' * 300}"
    assert lines[2] == "2   -"


def test_a_typed_api_key_is_kept_in_a_private_file(tmp_path):
    from agent.cli.invocation import Invocation
    from agent.cli.target import _keep_key

    path = _keep_key(Invocation(None, tmp_path / "data"), "main", " secret\n")
    assert path.read_text() == "secret\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_reader_that_has_gone_gets_no_complaint():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        result = subprocess.run(
            [sys.executable, "-m", "agent", "config", "show"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert (result.returncode, result.stderr) == (1, "")


def test_a_row_that_cannot_be_pseudonymised_does_not_end_the_list(capsys):
    class Rows:
        def as_sent(self, row_id, target):
            if row_id == "second":
                raise CannotRedact("it holds a file or sound, in which nothing can be replaced")
            return b"{}"

    queue._show_bodies(Rows(), [{"id": "first"}, {"id": "second"}, {"id": "third"}], "main", more=0)
    told = capsys.readouterr().err
    assert "second will not leave, released or not: it holds a file or sound" in told
    assert "--- third, 2 B" in told
