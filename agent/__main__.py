"""Entry point. Children of this program are recognised before anything else is imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line, or one of the children that it starts."""
    match sys.argv[1:2]:
        case ["engine-worker"]:
            from agent.engine.worker import main as worker

            return worker(sys.argv[2:])
        case ["list-devices"]:
            from agent.engine.execution_providers import main as list_devices

            return list_devices(sys.argv[2:])
        case ["engine-speed"]:
            from agent.engine.speed_probe import main as speed

            return speed(sys.argv[2:])
        case ["measure-worker"]:
            from agent.evaluation.measure_worker import main as measure

            return measure(sys.argv[2:])
        case ["migrate"]:
            from agent.storage.migrations import main as migrate

            return migrate(sys.argv[2:])
        case ["fit"]:
            from agent.confidence.fitting import main as fit

            return fit(sys.argv[2:])
        case ["check-schema"]:
            from agent.escalation.schema_validator import main as check

            return check(sys.argv[2:])
        case ["quantize-worker"]:
            from agent.models.recipes.worker import main as quantize

            return quantize(sys.argv[2:])
        case ["pull-worker"]:
            from agent.models.download import main as download

            return download(sys.argv[2:])
        case ["load-modules"]:  # scripts/module_check.py: is everything in the package?
            import importlib

            for name in sys.argv[2:]:
                importlib.import_module(name)
            return 0
        case ["windows-service"]:
            from agent.service.windows import main as windows_service

            return windows_service()
    from agent.cli.main import cli

    cli(prog_name="outrider")
    return 0


if __name__ == "__main__":
    sys.exit(main())
