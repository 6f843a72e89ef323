# make run    sets up, and starts the server with the example jobs and an agent on this host;
#             ARGS="--port 5001" are more of its options
# make test   sets up, and runs every check
# make stateful EXAMPLES=5000   throws random lives of a server at the kernel, for as long as it takes
# make dist   makes dist/apsis.pyz, one file that any Python from 3.11 on runs, and a wheel
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check format lint types tests stateful bench bench-pages screenshots chaos kills soak dist
.PHONY: test-dist clean

SECONDS ?= 60
SEED ?= 1
N ?= 60
SOAK ?= 900
# Tests wait for processes half of the time: three at once keep two processors busy.
WORKERS ?= 3

run: .venv/installed
	$(BIN)/apsis serve --config jobs.example/apsis.yaml --local-agent $(ARGS)

test: check

check: lint types tests

format: .venv/tested
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

lint: .venv/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/tested
	$(BIN)/mypy

tests: .venv/tested .venv/procstar/made
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Of the pages, with 10,000 jobs and a million runs: some 15 minutes.
bench-pages: .venv/tested
	$(BIN)/python -m benchmarks.pages

screenshots: .venv/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pillow
	$(BIN)/python docs/screenshots/make.py

bench: .venv/tested
	$(BIN)/python benchmarks/run.py

# A quarter of an hour at 20 runs a second with 20 agents: what a server takes must not grow.
soak: .venv/tested
	cd tests && ../$(BIN)/python -m chaos.soak --seconds $(SOAK)

# Kills the server at its n-th commit, send and receive, for every n up to N.
kills: .venv/tested
	cd tests && ../$(BIN)/python -m chaos.kills --to $(N)

# Kills, freezes, cuts and fills what it can for so long, and counts what came of it (tests/chaos).
chaos: .venv/tested
	cd tests && ../$(BIN)/python -m chaos --seconds $(SECONDS) --seed $(SEED)

dist: .venv/tested
	rm -rf dist
	$(BIN)/python packaging/build.py dist

# The tests that start a server or command as users do, once more, from the one file.
test-dist: dist
	APSIS_TEST_PROGRAM=$(CURDIR)/dist/apsis.pyz $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	    $$(grep -lE '^from server import' tests/test_*.py)

clean:
	rm -rf .venv build dist *.egg-info

# -e: the checkout itself runs, so that an edit needs no new set-up.
.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# A server and its agents that are not ours, for our agent to be tried under. Apart from everything else:
# it needs an older websockets. PYTHONPATH leads there where it is wanted.
.venv/procstar/made: | .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .venv/procstar \
		procstar==0.4.3 websockets==13.1
	touch $@
