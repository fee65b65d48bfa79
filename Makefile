# Works with GNU make 3.81, which macOS ships.

PROFILE = demo
NN =
SEEDS =
DEVICE =
EXECUTOR =
CLIPS =
WITHOUT =
CAPTIONS =
CHROMIUM =
MINUTES = 10
KILLS =
SEED = 0
SITE = results/site
SMOKE =
PYTHON =
HAVE =
PIPS = 22.3 23.0.1 23.2.1 24.0 25.0 newest

PY = .venv/bin/python
# The settings and caches of a run stay in the environment, out of the user's home.
HOMES = IPYTHONDIR="$(CURDIR)/.venv/home/ipython" JUPYTER_CONFIG_DIR="$(CURDIR)/.venv/home/jupyter" \
	JUPYTER_DATA_DIR="$(CURDIR)/.venv/home/jupyter" MPLCONFIGDIR="$(CURDIR)/.venv/home/matplotlib"

MINUTES_smoke = 4 to 7 minutes
MINUTES_demo = about four hours (NN=01 alone: 34 minutes)
MINUTES_esc10 = $(MINUTES_esc50)
MINUTES_esc50 = hours (NN=01 alone: 50 minutes)
MINUTES_captions = 6 minutes
MINUTES_paper = weeks; it wants a GPU

.PHONY: help hello study report site lab test coverage test-browser lint reference gpu gpu-wheels lock lock-check torture door clean

help: ## list the targets
	@echo "make <target> [PROFILE=demo|esc50|esc10|smoke|paper|captions] [NN=\"01 02\"] [SEEDS=...] [DEVICE=...] [EXECUTOR=ray] [CLIPS=<folder>] [WITHOUT=<file>] [CAPTIONS=<file>]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

study: hello .venv/.study $(if $(EXECUTOR)$(filter 12,$(NN)),.venv/.cluster) ## run the notebooks, or those of NN, and write their tables and figures to results/
	@$(HOMES) $(PY) -m atr study $(NN) --profile $(PROFILE) $(if $(SEEDS),--seeds "$(SEEDS)") \
		$(if $(DEVICE),--device $(DEVICE)) $(if $(CLIPS),--clips "$(CLIPS)") $(if $(WITHOUT),--without "$(WITHOUT)") \
		$(if $(CAPTIONS),--captions "$(CAPTIONS)") $(if $(EXECUTOR),--executor $(EXECUTOR))

hello:
	@echo "Profile $(PROFILE), $(if $(NN),notebooks $(NN),all notebooks): $(if $(NN),part of )$(MINUTES_$(PROFILE)) on two CPU cores, once set up."
	@echo "Stop it whenever you like; the same command continues where it stopped."

report: .venv/.study ## gather the results of PROFILE into results/<profile>/report/: a page, and LaTeX
	@$(HOMES) $(if $(CLIPS),ATR_CLIPS="$(CLIPS)") $(PY) -m atr report --profile $(PROFILE)

site: .venv/.site ## make the project page of what is committed: README, docs, notebooks, reports, the modules, in SITE
	@$(HOMES) $(PY) -m sphinx -q -W --keep-going -b html -c docs/site -d .venv/home/doctrees . $(SITE)
	@for profile in `ls results/reference`; do \
		$(HOMES) $(PY) -m atr report --profile $$profile --results results/reference/$$profile \
			--out $(SITE)/reports/$$profile --allow-stale >/dev/null || exit 1; \
	done
	@$(HOMES) PYTHONPATH=. $(PY) docs/site/api.py $(SITE)/api
	@echo "→ $(SITE)/index.html"

lab: .venv/.study ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks

test: lint lock-check ## check style, types and the lock, run the tests
	@$(HOMES) $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: .venv/.test ## run the tests and measure what share of atr they reach: a fifth slower
	@$(HOMES) $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-fail-under=90

test-browser: .venv/.browser ## use the widgets of notebook 00 and the report in Chromium or Chrome, as a reader does
	@$(HOMES) CHROMIUM="$(CHROMIUM)" $(PY) -m pytest tests/browser

lint: .venv/.test ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy atr

reference: .venv/.study ## refresh the committed results of PROFILE, or those of NN, in results/reference/
	@$(HOMES) $(PY) -m atr reference $(NN) --profile $(PROFILE)

gpu: $(if $(filter .venv/%,$(PY)),.venv/.test) ## show in nine minutes on a GPU what only a GPU can; SMOKE=1: in miniature on the CPU
	@$(HOMES) ATR_COMMAND="make gpu$(if $(SMOKE), SMOKE=1)" $(PY) -m atr gpu $(if $(SMOKE),--smoke)

gpu-wheels: $(if $(filter .venv/%,$(PY)),.venv/.study) ## print how to bring what it needs to a GPU without a network, with PYTHON (3.12) and what HAVE lists
	@$(PY) tools/lock.py wheels "$(PYTHON)" $(HAVE)

lock: .venv/.test ## resolve pyproject.toml into requirements.lock, keeping what still fits (needs uv)
	$(PY) tools/lock.py write

lock-check: .venv/.test ## is the lock complete, for each platform and Python that is promised?
	@$(PY) tools/lock.py check

torture: .venv/.test ## kills, full disks and damaged files for MINUTES, or KILLS alone, drawn by SEED; prints its figures
	@$(PY) tests/torture.py --minutes $(MINUTES) $(if $(KILLS),--kills $(KILLS)) --seed $(SEED)

door: ## set up anew and run notebook 01, in a fresh clone by each pip of PIPS, and by uv
	@sh tools/door.sh $(PIPS)

clean: ## remove the environment and the tools' caches; data/ and results/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build *.egg-info
	find atr tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is written last, so that an interrupted installation starts again.
.venv/.study: requirements.lock pyproject.toml tools/setup.sh
	@sh tools/setup.sh core study
	@touch $@

.venv/.cluster: .venv/.study
	@sh tools/setup.sh --add cluster
	@touch $@

.venv/.test: .venv/.cluster
	@sh tools/setup.sh --add test
	@touch $@

.venv/.site: .venv/.study docs/site/requirements.txt
	$(PY) -m pip install --disable-pip-version-check --no-input --quiet -r docs/site/requirements.txt
	@touch $@

.venv/.browser: .venv/.test docs/site/requirements.txt tests/browser/requirements.txt
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
	$(PY) -m pip install --disable-pip-version-check --no-input --quiet -r docs/site/requirements.txt -r tests/browser/requirements.txt
	@touch $@
