# The commands of this repository. `make` alone lists them.
# Options of octavo come from the environment as they are: OCTAVO_PORT=8123 make serve

.DEFAULT_GOAL := help
.PHONY: help install serve chat bench test test-all lint sanitize soak fuzz clean
# Else each process compiles all of octavo anew at every start.
unexport PYTHONDONTWRITEBYTECODE
OCTAVO := .venv/bin/octavo
PYTEST_ARGS ?=
TEST_WORKERS ?= 2

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  ARGS=... adds arguments to serve, chat and bench; every option is OCTAVO_<NAME> in the environment too."

install: ## Make .venv and install the pinned packages
	@tools/setup run

serve: install ## Serve the demo model (or OCTAVO_MODEL) on http://127.0.0.1:8000
	@exec $(OCTAVO) serve $(ARGS)

chat: install ## Chat with the model in the terminal
	@exec $(OCTAVO) chat $(ARGS)

bench: install ## Measure speed: prefill, decode and many streams at once
	@$(OCTAVO) bench latency --input-len 512 --output-len 64 $(ARGS)
	@$(OCTAVO) bench throughput --num-prompts 32 --input-len 128 --output-len 64 $(ARGS)

PYTEST := .venv/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test: ## Run all tests but the long ones, in TEST_WORKERS=2 processes; PYTEST_ARGS=... adds arguments
	@tools/setup dev
	@$(PYTEST) -m "not long" $(PYTEST_ARGS)

test-all: ## Run all tests, the long ones too, with coverage
	@tools/setup dev
	@$(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=85 $(PYTEST_ARGS)

lint: ## Check style and types
	@tools/setup dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

sanitize: ## Run the tests of the native kernels under the address and undefined-behaviour sanitizers
	@tools/setup dev
	@tools/sanitize

soak: ## Thirty minutes (DURATION=seconds) of mixed load, hostile requests and kills; says whether all held
	@tools/setup dev
	@.venv/bin/python -m tools.soak $(ARGS)

fuzz: ## Fuzz all that reads what comes from outside, FUZZ_SECONDS (600) each
	@tools/setup dev
	@tools/fuzz

clean: ## Remove .venv and what tools left behind; fetched models stay
	rm -rf .venv build dist octavo/kernels/cpu/_native*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov coverage.xml
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
