# The few commands people and CI type. `make demo` and `make test` set everything up themselves.
PYTHON ?= python3
RUN := .venv/bin/python
NIN := .venv/bin/nin
WORKERS ?= 2
export PYTHON
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help demo test check cpp fuzz export train verify publish serve bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: .venv/complete  ## export, prove, serve, classify real images
	@scripts/build_cpp.sh || echo "==> The demo goes on without C++"
	@$(RUN) scripts/demo.py

test: check cpp  ## lint, types and all tests
	@$(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: .venv/complete  ## lint and types only
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@git ls-files 'cpp_client/*.cpp' 'cpp_client/*.h' | xargs .venv/bin/clang-format --dry-run --Werror

cpp: .venv/complete  ## build the C++ library and tools in cpp_client/build/release
	@scripts/build_cpp.sh

fuzz:  ## let libFuzzer attack what reads files, a minute each
	@scripts/fuzz.sh

train: .venv/complete  ## train by the best recipe, to runs/best (hours on a CPU)
	@$(RUN) train/train.py $(ARGS)

export: .venv/complete  ## write artifacts/
	@$(NIN) export onnx
	@$(NIN) export onnx --precision int8
	@$(NIN) export torchscript

verify: .venv/complete  ## run the parity gate on artifacts/
	@$(NIN) verify

publish: export  ## make artifacts/ the next version in model_repository/
	@$(NIN) publish

serve: cpp  ## serve model_repository/ with the embedded Triton
	@ls -d model_repository/fashion_mnist/[1-9]* > /dev/null 2>&1 || $(MAKE) --no-print-directory publish
	@exec $(NIN) serve

bench: cpp  ## measure every way to run the exports, to artifacts/bench/report.html
	@$(NIN) bench $(ARGS)

clean:  ## remove what can be made again, the environment included
	rm -rf artifacts .venv .triton .releases cpp_client/build .mypy_cache .pytest_cache .ruff_cache

# An environment holds the path of the checkout that made it: in a copied or moved one it would run the
# original's code, so it is made anew.
ifneq ($(shell cat .venv/complete 2> /dev/null),$(CURDIR))
.PHONY: .venv/complete
endif
.venv/complete: pyproject.toml constraints.txt scripts/bootstrap.sh
	@scripts/bootstrap.sh
