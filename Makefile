# make demo   sets everything up and cleans one simulated exposure end to end
# make test   runs the tests
# make help   lists the rest

# the newest that can make an environment; another: make demo PYTHON=python3.12
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11; do \
	$$python -c 'import ensurepip, venv' > /dev/null 2>&1 && echo $$python && exit; done; echo python3)
export OMP_NUM_THREADS ?= 1
VENV ?= .venv
WORKERS ?= 2
PYTEST = -m pytest -q -n $(WORKERS) --dist worksteal

.PHONY: help demo test test-quick test-dr05 test-faults lint bench accuracy compare batch clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' Makefile

demo: $(VENV)/ready  ## simulate an exposure, clean it, show injected against recovered: demo/summary.png
	$(VENV)/bin/python tests/measure/demo.py demo

test: $(VENV)/ready  ## all tests but the slow faults
	$(VENV)/bin/python $(PYTEST) -m "not faults"

test-quick: $(VENV)/ready  ## some of the tests, for another Python: make test-quick PYTHON=python3.13 VENV=.venv-3.13
	$(VENV)/bin/python $(PYTEST) -m "not faults" tests/test_[cfmw]*.py tests/test_exposure.py

test-dr05: .venv-dr05/ready  ## the fidelity and end-to-end tests under jwst 1.7.2
	.venv-dr05/bin/python $(PYTEST) -m "not faults and not slurm" $(foreach part,review simulation measure machines,--ignore tests/test_$(part).py)

test-faults: $(VENV)/ready  ## kills, full disks, mutated files
	$(VENV)/bin/python $(PYTEST) -m faults

lint: $(VENV)/ready  ## style
	$(VENV)/bin/ruff check .

bench: $(VENV)/ready  ## what the corrections cost, against the aims: docs/cost.md
	$(VENV)/bin/python tests/measure/bench.py

accuracy: $(VENV)/ready  ## both methods against simulated truth: docs/accuracy.md
	$(VENV)/bin/python tests/measure/accuracy.py

compare: $(VENV)/ready .venv-dr05/ready  ## one exposure in both environments: docs/environments.md
	$(VENV)/bin/python tests/measure/environments.py $(VENV)/bin/python .venv-dr05/bin/python compare

batch: $(VENV)/ready  ## write the DR0.5 batch files again from their table
	$(VENV)/bin/python batch_scripts/make_batch.py

clean:  ## remove what the targets above made, environments too
	rm -rf .venv .venv-* demo bench compare

$(VENV)/ready: requirements.txt requirements-dev.txt
	@python=$(PYTHON); test ! -x $(VENV)/bin/python || python=$(VENV)/bin/python; \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null || { \
	echo "Python 3.11, 3.12 or 3.13 is needed, and $$python is none of them or does not work:" \
	"name another, as in make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -r requirements-dev.txt
	touch $@

.venv-dr05/ready: requirements-dr05.txt
	python3.11 -m venv --clear .venv-dr05
	.venv-dr05/bin/pip install -q -r requirements-dr05.txt
	touch $@
