# Works with GNU make 3.81, which macOS ships.

PROFILE = demo
NN =
SEEDS =
DEVICE =
EXECUTOR =
CLIPS =
CAPTIONS =
CHROMIUM =

PY = .venv/bin/python
# The settings and caches of a run stay in the environment, out of the user's home.
HOMES = IPYTHONDIR="$(CURDIR)/.venv/home/ipython" JUPYTER_CONFIG_DIR="$(CURDIR)/.venv/home/jupyter" \
	JUPYTER_DATA_DIR="$(CURDIR)/.venv/home/jupyter" MPLCONFIGDIR="$(CURDIR)/.venv/home/matplotlib"

.PHONY: help study report lab test coverage test-browser lint reference lock clean

help: ## list the targets
	@echo "make <target> [PROFILE=demo|esc10|smoke|paper|captions] [NN=\"01 02\"] [SEEDS=...] [DEVICE=...] [EXECUTOR=ray] [CLIPS=<folder>] [CAPTIONS=<file>]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

study: .venv/.stamp ## run the notebooks, or those of NN, and write their tables and figures to results/
	@$(HOMES) $(PY) -m atr study $(NN) --profile $(PROFILE) $(if $(SEEDS),--seeds "$(SEEDS)") \
		$(if $(DEVICE),--device $(DEVICE)) $(if $(CLIPS),--clips "$(CLIPS)") \
		$(if $(CAPTIONS),--captions "$(CAPTIONS)") $(if $(EXECUTOR),--executor $(EXECUTOR))

report: .venv/.stamp ## gather the results of PROFILE into results/<profile>/report/: a page, and LaTeX
	@$(HOMES) $(if $(CLIPS),ATR_CLIPS="$(CLIPS)") $(PY) -m atr report --profile $(PROFILE)

lab: .venv/.stamp ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks

test: lint ## check style and types, run the tests
	@$(HOMES) $(PY) -m pytest -n 2 --dist loadfile

coverage: .venv/.stamp ## run the tests and measure what share of atr they reach: a fifth slower
	@$(HOMES) $(PY) -m pytest -n 2 --dist loadfile --cov --cov-fail-under=90

test-browser: .venv/.browser ## use the widgets of notebook 00 and the report in Chromium or Chrome, as a reader does
	@$(HOMES) CHROMIUM="$(CHROMIUM)" $(PY) -m pytest tests/browser

lint: .venv/.stamp ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy atr

reference: .venv/.stamp ## refresh the committed results of PROFILE in results/reference/
	@$(HOMES) $(PY) -m atr reference --profile $(PROFILE)

lock: ## resolve the dependencies of pyproject.toml into requirements.lock (needs uv)
	uv pip compile pyproject.toml --extra test --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url -o requirements.lock

clean: ## remove the environment and the tools' caches; data/ and results/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build *.egg-info
	find atr tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is written last, so that an interrupted installation starts again.
.venv/.stamp: .venv/.locked pyproject.toml
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@mkdir -p .venv/home && touch $@

.venv/.browser: .venv/.stamp tests/browser/requirements.txt
	@if [ -z "$(CHROMIUM)" ] && [ ! -x "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" ] && \
		! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && \
		! command -v google-chrome >/dev/null && ! command -v google-chrome-stable >/dev/null; then \
		if [ "`id -u`" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get -q update && apt-get -q -y install chromium; \
		else \
			echo "This needs Chromium or Chrome: install one (apt install chromium, brew install --cask"; \
			echo "google-chrome), or name one you have: make test-browser CHROMIUM=<file>"; exit 1; \
		fi; \
	fi
	$(PY) -m pip install --disable-pip-version-check --no-input --quiet -r tests/browser/requirements.txt
	@touch $@

.venv/.locked: requirements.lock
	@found=; \
	for python in python3 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
		then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "atr needs Python 3.11, 3.12 or 3.13; found: `python3 -V 2>/dev/null || echo none`."; \
		echo "Install one of them (python.org, Homebrew, apt, pyenv, conda) so that python3.12, say, is on the PATH."; \
		exit 1; \
	fi; \
	echo "Setting up .venv with `$$found -V`: about 5 minutes on a fast connection, and 6 GB of disk."; \
	$$found -m venv --clear .venv
	$(PY) -m pip install --disable-pip-version-check --no-input --require-hashes -r requirements.lock
	@touch $@
