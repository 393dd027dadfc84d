"""The command ``outrider``: a table of commands, each loaded only when it is used.

Data goes to stdout, notices and errors to stderr. Every failure is one line and an exit code
of the table in docs/cli.md; ``--traceback`` shows where an internal error came from.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from agent import __version__
from agent.cli.invocation import Invocation
from agent.errors import OutriderError, StorageError

# Name -> where it lives and its line in the help. A test keeps the line equal to the docstring.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "agent.cli.demo.command:demo",
        "Sort forty field messages offline, hold the doubtful ones, and ask when the line is back.",
    ),
    "serve": ("agent.cli.serve:serve", "Run the daemon until it is told to stop."),
    "ask": ("agent.cli.ask:ask", "Ask one question and print the answer."),
    "chat": ("agent.cli.chat:chat", "Talk with the local model, turn by turn."),
    "env": ("agent.cli.env:env", "Print OPENAI_BASE_URL and OPENAI_API_KEY for any client."),
    "requests": ("agent.cli.requests:requests", "See what was asked and what became of it."),
    "queue": ("agent.cli.queue:queue", "See and steer what waits to leave the device."),
    "egress": ("agent.cli.egress:egress", "See what has left the device."),
    "budget": ("agent.cli.budget:budget", "See how far what targets may cost is used up."),
    "target": ("agent.cli.target:target", "Say where requests may be escalated to."),
    "routes": ("agent.cli.routes:routes", "Check the routing rules, and try them on requests."),
    "models": ("agent.cli.models:models", "See, check and remove the installed models."),
    "measure": (
        "agent.cli.measure:measure",
        "Measure what MODEL is worth on this device, and keep the result with it.",
    ),
    "get": ("agent.cli.get:get", "Get a model that is good enough on this very device, and make it the default."),
    "pull": (
        "agent.cli.pull:pull",
        "Get MODEL: a name, owner/repository[@revision][:file], an https URL, or a GGUF file or folder.",
    ),
    "quantize": (
        "agent.cli.quantize:quantize",
        "Make a smaller model of MODEL, and put it into the store.",
    ),
    "tasks": ("agent.cli.tasks:tasks", "Make, see and teach tasks: named workloads that can be calibrated."),
    "calibrate": (
        "agent.cli.calibrate:calibrate",
        "Find the threshold of TASK that keeps a promise, from EXAMPLES of its traffic, and use it from now on.",
    ),
    "evaluate": (
        "agent.cli.evaluate:evaluate",
        "Measure how TASK is answered on DATA: local only, hybrid and cloud only, for one model or several.",
    ),
    "report": (
        "agent.cli.report:report",
        "Tell what was answered where, what it cost, what it saved, and how good the answers were.",
    ),
    "review": ("agent.cli.review:review", "Say of answers whether they are right."),
    "bundle": ("agent.cli.bundle:bundle", "Carry models to another device in one signed file, without a network."),
    "prefixes": ("agent.cli.prefixes:prefixes", "See and erase the saved beginnings of prompts."),
    "erase": (
        "agent.cli.erase:erase",
        "Remove what is kept of one person: requests, answers, queue, feedback, files, examples.",
    ),
    "key": ("agent.cli.key:key", "See, replace and recover the database key."),
    "backup": ("agent.cli.backup:backup", "Write a consistent copy of the database."),
    "salvage": ("agent.cli.salvage:salvage", "Take what can be read out of a damaged database into a new one."),
    "service": ("agent.cli.service:service", "Have the machine start the daemon, and see how it is."),
    "update": (
        "agent.cli.update:update",
        "Replace this program by the release in FILE, with its signature FILE.minisig beside it.",
    ),
    "config": ("agent.cli.config:config", "See the configuration and where each value comes from."),
    "doctor": ("agent.cli.doctor:doctor", "Examine this machine and name each problem with its remedy."),
    "tune": ("agent.cli.tune:tune", "Measure threads and cache types on this device and say what suits it."),
    "bench": ("agent.cli.bench:bench", "Measure what the daemon costs against its worker driven directly."),
}

FIRST_STEPS = [
    ("outrider get", "get a model that suits this device"),
    ("outrider serve", "start it, in a terminal of its own"),
    ('outrider ask "What is the capital of France?"', "ask it"),
    ('eval "$(outrider env)"', "let any OpenAI client of this shell use it"),
]
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
INTERNAL_ERROR = OutriderError.exit_code


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("First steps"):
            formatter.write_dl(FIRST_STEPS)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, turn every failure into one line on stderr, and exit."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        arguments = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in arguments
        try:
            code = super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        except OutriderError as error:
            _fail(str(error), error.code, error.exit_code, as_json=as_json)
        except click.UsageError as error:
            if not as_json:
                error.show()
                sys.exit(error.exit_code)
            _fail(error.format_message(), "usage", error.exit_code, as_json=True)
        except click.ClickException as error:
            _fail(error.format_message(), "usage", error.exit_code, as_json=as_json)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", "interrupted", INTERRUPTED, as_json=as_json)
        except Exception as error:
            if "--traceback" in arguments:
                raise
            if isinstance(error, OSError):
                from agent.cli.os_problem import told

                if line := told(error):
                    _fail(line, StorageError.code, StorageError.exit_code, as_json=as_json)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            _fail(
                f"internal error: {reason}; run it again with --traceback for the place, and report it",
                OutriderError.code,
                INTERNAL_ERROR,
                as_json=as_json,
            )
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: str, exit_code: int, *, as_json: bool) -> NoReturn:
    if as_json:
        import json

        click.echo(json.dumps({"error": {"code": code, "message": message, "exit_code": exit_code}}), err=True)
    else:
        click.echo(f"outrider: {message}", err=True)
    sys.exit(exit_code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Configuration file. Default: $OUTRIDER_CONFIG, else ~/.config/outrider/outrider.toml.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of database, keys, tokens and models.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="One value over file and environment, for example server.port=9000. Repeatable.",
)
@click.option("--traceback", is_flag=True, help="Show where an internal error came from.")
@click.version_option(__version__, prog_name="outrider")
@click.pass_context
def cli(
    ctx: click.Context, config_path: Path | None, data_dir: Path | None, assignments: tuple[str, ...], traceback: bool
) -> None:
    """Answers offline, knows how sure it is, escalates when there is a line."""
    ctx.obj = Invocation(config_path, data_dir, assignments)
