# make demo   sets everything up and cleans one simulated exposure end to end
# make test   passes the tests
# make help   lists the rest

PYTHON ?= python3
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-dr05 test-faults lint bench accuracy batch clean
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: .venv/ready  ## simulate an exposure, clean it, show injected against recovered: demo/summary.png
	.venv/bin/python tests/demo.py demo

test: .venv/ready  ## all tests but the slow faults
	.venv/bin/python -m pytest -q -m "not faults"

test-dr05: .venv-dr05/ready  ## the fidelity and end-to-end tests under jwst 1.7.2
	.venv-dr05/bin/python -m pytest -q -m "not faults and not slurm" --ignore tests/test_review.py

test-faults: .venv/ready  ## kills, full disks, mutated files
	.venv/bin/python -m pytest -q -m faults

lint: .venv/ready  ## style
	.venv/bin/ruff check .

bench: .venv/ready  ## what the corrections cost, as ratios
	.venv/bin/python tests/bench.py

accuracy: .venv/ready  ## both methods against simulated truth
	.venv/bin/python tests/accuracy.py

batch: .venv/ready  ## write the DR0.5 batch files again from their table
	.venv/bin/python batch_scripts/make_batch.py --table batch_scripts/stage1_images.csv --out batch_scripts

clean:  ## remove what the targets above made, environments too
	rm -rf .venv .venv-dr05 demo bench

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install -q -r requirements-dev.txt
	touch $@

.venv-dr05/ready: requirements-dr05.txt
	python3.11 -m venv --clear .venv-dr05
	.venv-dr05/bin/pip install -q -r requirements-dr05.txt
	touch $@
