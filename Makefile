# make demo   sets everything up and cleans one simulated exposure end to end
# make test   passes the tests
# make help   lists the rest

# the newest that can make an environment; another: make demo PYTHON=python3.12
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11; do \
	$$python -c 'import ensurepip, venv' > /dev/null 2>&1 && echo $$python && exit; done; echo python3)
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-dr05 test-faults lint bench accuracy compare batch clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' Makefile

demo: .venv/ready  ## simulate an exposure, clean it, show injected against recovered: demo/summary.png
	.venv/bin/python tests/measure/demo.py demo

test: .venv/ready  ## all tests but the slow faults
	.venv/bin/python -m pytest -q -m "not faults"

test-dr05: .venv-dr05/ready  ## the fidelity and end-to-end tests under jwst 1.7.2
	.venv-dr05/bin/python -m pytest -q -m "not faults and not slurm" --ignore tests/test_review.py

test-faults: .venv/ready  ## kills, full disks, mutated files
	.venv/bin/python -m pytest -q -m faults

lint: .venv/ready  ## style
	.venv/bin/ruff check .

bench: .venv/ready  ## what the corrections cost, against the aims: docs/cost.md
	.venv/bin/python tests/measure/bench.py

accuracy: .venv/ready  ## both methods against simulated truth: docs/accuracy.md
	.venv/bin/python tests/measure/accuracy.py

compare: .venv/ready .venv-dr05/ready  ## one exposure in both environments: docs/environments.md
	.venv/bin/python tests/measure/environments.py .venv/bin/python .venv-dr05/bin/python compare

batch: .venv/ready  ## write the DR0.5 batch files again from their table
	.venv/bin/python batch_scripts/make_batch.py --table batch_scripts/stage1_images.csv --out batch_scripts

clean:  ## remove what the targets above made, environments too
	rm -rf .venv .venv-dr05 demo bench compare

.venv/ready: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null || { \
	echo "Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is none of them or does not work:" \
	"name another, as in make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install -q -r requirements-dev.txt
	touch $@

.venv-dr05/ready: requirements-dr05.txt
	python3.11 -m venv --clear .venv-dr05
	.venv-dr05/bin/pip install -q -r requirements-dr05.txt
	touch $@
