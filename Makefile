# Two commands: `make run` trains SGLR for real through `flwr run`; `make test` shows that it is correct, and `make check`
# the part of it that starts no Flower and no browser, for the moment between two edits.
# `make deploy-demo` trains on a SuperLink and three SuperNodes with TLS and authentication, on this machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run deploy-demo check test faults fuzz fab package results lint proto clean
run: $(STAMP)
	$(BIN)/sglr run configs/quickstart.toml

deploy-demo: $(STAMP)
	$(BIN)/sglr federation demo configs/deploy.toml

# What starts Flower has the machine to itself. The rest takes two processes, a file each, as they have one thread.
ALONE := flower or browser
check: lint
	$(BIN)/python -m pytest -m "not ($(ALONE)) and not slow" -n 2 --dist loadfile

test: lint
	$(BIN)/python -m pytest -m "not ($(ALONE))" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "$(ALONE)"

# The long forms of what `make test` runs in short, on an idle machine: hours, and three minutes.
faults: $(STAMP)
	SGLR_FAULT_SEEDS=$(or $(SEEDS),20) $(BIN)/python -m pytest tests/faults

fuzz: $(STAMP)
	SGLR_FUZZ_INPUTS=100000 $(BIN)/python -m pytest tests/exchange/test_fuzz.py tests/exchange/test_fuzz_port.py tests/flower/test_fuzz_protocol.py

# The Flower app as Flower Hub takes it, and its bundle.
fab: $(STAMP)
	rm -rf build/fab
	$(BIN)/python tools/fab.py build/fab

# Wheel and sdist, in dist/.
package: $(STAMP)
	$(BIN)/python -m build --no-isolation

# The tables, pictures and claims in README.md and docs/results.md, from the ledger in results/.
results: $(BIN)/python
	$(BIN)/python -m tools.results

$(BIN)/python:
	@$(MAKE) $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. sglr_flower/exchange/exchange.proto

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (torch and its CUDA libraries: about 5 GB, a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
