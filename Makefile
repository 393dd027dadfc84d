# Each target does its own set-up: a virtual environment in .venv and, once per machine, a build of llama.cpp.

.DEFAULT_GOAL := help
.PHONY: help demo chain bundle deb rpm release package-test reproducible test torture torture-long lint docs docs-check format clean

# An empty environment has no PATH.
PATH ?= /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
RUN := .venv/bin/python
READY := .venv/.ready

help:
	@echo "make demo        forty field messages sorted offline, the doubtful ones held: about half a minute"
	@echo "make chain       from a checkpoint on a hub to an answer, on real weights; 5 GB, half an hour the first time"
	@echo "make bundle      the program as a folder that needs no Python; builds llama.cpp for all processors, once"
	@echo "make deb         that folder as .deb (make rpm: as .rpm), both with and without the demo model"
	@echo "make release     archives, checksums and, with KEY=FILE, signatures of what is in dist"
	@echo "make package-test  the .deb on a bare machine: installed, used, upgraded, purged"
	@echo "make reproducible  the committed tree built and packed twice, in two places, and compared byte by byte"
	@echo "make test        lint and all tests"
	@echo "make torture     kills, power cuts, full disks, cut cables: at most 40 minutes; ONLY=r5 picks (make torture-long: 3 h)"
	@echo "make lint        ruff, mypy, import contracts, generated documents"
	@echo "make docs        write the generated documents anew"
	@echo "make format      format the code"
	@echo "make clean       remove .venv and caches (not the built wheel in ~/.cache/outrider)"

demo: $(READY)
	@$(RUN) -m agent demo

chain: $(READY)
	@$(RUN) scripts/chain.py

bundle: $(READY)
	$(RUN) scripts/bundle.py

deb rpm: $(READY)
	$(RUN) scripts/linux_package.py --format $@ --bundle dist/plain/outrider
	$(RUN) scripts/linux_package.py --format $@ --bundle dist/demo/outrider

release: $(READY)
	$(RUN) scripts/release.py $(if $(KEY),--key $(KEY))

package-test: $(READY)
	$(RUN) -m pytest -m package -s tests/package

reproducible: $(READY)
	$(RUN) scripts/reproducible.py

# Files go to two processes: much of the time passes waiting for child processes and for clocks.
test: lint
	$(RUN) -m pytest -n 2 --dist loadfile

torture: $(READY)
	TORTURE=full ONLY=$(ONLY) $(RUN) -m pytest -rs tests/torture

torture-long: $(READY)
	TORTURE=long ONLY=$(ONLY) $(RUN) -m pytest -rs tests/torture

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy scripts/*.py
	MYPYPATH=scripts $(RUN) -m mypy --explicit-package-bases benchmarks
	.venv/bin/lint-imports
	@$(MAKE) --no-print-directory docs-check

docs: $(READY)
	$(RUN) -m cogapp -r docs/cli.md docs/configuration.md docs/reliability.md

docs-check: $(READY)
	$(RUN) -m cogapp --check --diff docs/cli.md docs/configuration.md docs/reliability.md

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

$(READY): pyproject.toml constraints.txt packaging/models.lock scripts/environment.py scripts/llama_wheel.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; on Debian 12 run: apt-get install -y python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) scripts/environment.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find agent tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
