# Every target sets itself up: a bare Debian or Raspberry Pi OS with make is enough.
.DEFAULT_GOAL := help
.PHONY: help demo test test-export lint bench bench-cloud bench-split release lock clean

BIN := .venv/bin

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a simulated sensor through the live pipeline to MQTT, labels on the terminal; about 30 s
	@tools/setup.sh demo
	@$(BIN)/har-agent demo

test: ## the tests; ARGS="-k window" goes to pytest
	@tools/setup.sh dev
	$(BIN)/python -m pytest $(ARGS)

test-export: ## the training side's types and tests; installs PyTorch
	@tools/setup.sh export
	cd tools/export && .venv/bin/mypy && .venv/bin/python -m pytest $(ARGS)

lint: ## format, style, types, the import contracts and the playbooks
	@tools/setup.sh dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd deploy/ansible && PATH="$(CURDIR)/$(BIN):$$PATH" ansible-lint --offline -q

bench: ## speed and memory on this machine, against ONNX Runtime and paho alone; about ten minutes
	@tools/setup.sh dev
	$(BIN)/har-agent bench $(ARGS)
	$(BIN)/python tools/bench/run.py

bench-cloud: ## edge against cloud over links of 20, 40 and 80 ms; needs root for the links; about three minutes
	@tools/setup.sh dev
	$(BIN)/python tools/bench/cloud_link.py $(ARGS)

bench-split: ## a network in parts: the planner's picks, a mobile link, boards in a chain; needs root; about half an hour
	@tools/setup.sh dev
	@tools/setup.sh export
	$(BIN)/python tools/bench/split.py $(ARGS)

release: ## wheel, sdist, an archive for each kind of board, SBOM, checksums: dist/; KEY=release.key.pem signs
	@tools/setup.sh dev
	@$(BIN)/python tools/release.py build $(if $(KEY),--key $(KEY)) $(ARGS)

lock: ## write requirements/*.txt from pyproject.toml; ARGS="--upgrade" takes the newest versions
	@tools/setup.sh dev
	tools/lock.sh $(ARGS)

clean: ## remove what the other targets made
	rm -rf .venv dist build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	cd tools/export && rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
