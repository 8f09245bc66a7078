# Everything runs in .venv, which is made on first use and brought up to date when
# pyproject.toml or constraints.txt change; else nothing is installed.

BASE ?= scratch
HANDLE ?= goose_lantern
SEED ?= 1
WORKERS ?= 2

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check install -qq --constraint constraints.txt
# What builds the package is locked too, so it is in .venv and not in an environment that pip makes for one build.
INSTALL := $(PIP) hatchling editables ziglang && $(PIP) --no-build-isolation --editable
# A file's tests run in one process, so that what they share is made once.
PYTEST := $(PYTHON) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
REQUIREMENTS := pyproject.toml constraints.txt
PEERS := $(patsubst benchmarks/peers/requirements/%.txt,build/peers/%/installed,$(wildcard benchmarks/peers/requirements/*.txt))
# The second is enough for `make demo`; the first includes it.
INSTALLED_ALL := $(VENV)/installed-all
INSTALLED_TRAIN := $(VENV)/installed-train
INSTALLED_CUDA := $(VENV)/installed-cuda
SOURCES := $(wildcard hgt_infer/kernels/source/*)
# clang-tidy reads every unit as one for AVX-512, with zig's headers of C: a machine may have none.
TIDY_FLAGS = -std=c++17 --target=x86_64-linux-gnu -march=x86-64-v4 -mavx512vnni -mavx512bf16 -nostdinc++ -nostdlibinc \
	$(foreach name,x86-linux-gnu generic-glibc x86-linux-any any-linux-any,-isystem \
	$(VENV)/lib/python3*/site-packages/ziglang/lib/libc/include/$(name))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test check browser kernels wheels sanitize demo lint format peers bench bench-quick \
	bench-report gpu-check clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(INSTALLED_ALL)  ## set up .venv with everything

test: lint browser kernels  ## lint, types, and the tests with coverage, in WORKERS processes
	@$(PYTEST) --cov -m "not slow"

check: lint kernels  ## the same without whole programs and services, and without coverage
	@$(PYTEST) -m "not slow and not integration"

kernels: $(INSTALLED_ALL)  ## compile the operators, where they have changed
	@$(PYTHON) -m hgt_infer.kernels.build

wheels: $(INSTALLED_ALL)  ## a wheel for each platform, and the sources, into dist
	@rm -f dist/hgt_infer-*
	@for target in x86_64-linux aarch64-linux aarch64-macos x86_64-windows; do \
		HGT_INFER_BUILD_TARGET=$$target $(PYTHON) -m hatchling build --target wheel || exit 1; \
	done
	@$(PYTHON) -m hatchling build --target sdist
	@for wheel in dist/*linux*.whl; do \
		$(VENV)/bin/auditwheel show $$wheel | tr '\n' ' ' | grep -Eo '^ .* tag: "manylinux_2_(5|12|17)_\w+"' \
			|| { echo "error: $$wheel needs a newer system than its name says" >&2; exit 1; }; \
	done

sanitize: $(INSTALLED_ALL)  ## the tests of the operators with AddressSanitizer and UBSan; needs g++
	@$(PYTHON) -m hgt_infer.kernels.build --sanitize address,undefined --output build/sanitized
	@LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 HGT_INFER_KERNELS_FOLDER=$(CURDIR)/build/sanitized \
		$(PYTHON) -m pytest --capture=sys tests/kernels -m "not integration"

demo: $(INSTALLED_TRAIN)  ## train on the sample tweets (BASE=gpt2 fine-tunes GPT-2), sample, compare
	@$(PYTHON) -m hgt_infer.kernels.build
	@$(PYTHON) -m training --tweets training/sample/tweets.js --handle $(HANDLE) \
		--base $(BASE) --seed $(SEED) --output build/demo/checkpoint --force
	@$(PYTHON) -m benchmarks.cases.demo build/demo/checkpoint

browser:  ## Chromium for the tests of the page, where root can install it; else they are skipped
	@command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
		|| { echo "installing Chromium" && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } \
		|| echo "no Chromium: the tests of the page are skipped"

lint: $(INSTALLED_ALL)  ## ruff, mypy, clang-format, clang-tidy, hadolint
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy
	@$(PYTHON) -m mypy hatch_build.py
	@$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES)
	@$(VENV)/bin/clang-tidy --quiet $(filter %.cc,$(SOURCES)) -- $(TIDY_FLAGS)
	@$(VENV)/bin/hadolint Dockerfile

format: $(INSTALLED_ALL)  ## let ruff and clang-format rewrite what they can
	@$(PYTHON) -m ruff check --fix
	@$(PYTHON) -m ruff format
	@$(VENV)/bin/clang-format -i $(SOURCES)

peers: $(PEERS)  ## environments of the peers that do not fit into .venv; compiles llama.cpp

bench: kernels  ## every installed backend over every workload, and the parts; results in build/bench
	@$(PYTHON) -m benchmarks run
	@$(PYTHON) -m pytest benchmarks/components -k "engine or light or parts"

bench-quick: kernels  ## batches of 1 and 16 and tweets, of us, transformers and OpenVINO
	@$(PYTHON) -m benchmarks run --quick --out build/bench/quick.json
	@$(PYTHON) -m benchmarks report build/bench/quick.json --out build/bench/quick

bench-report: $(INSTALLED_ALL)  ## the last `make bench` into docs/benchmarks.md and README.md
	@$(PYTHON) -m benchmarks report build/bench/suite.json

gpu-check: $(INSTALLED_ALL)  ## what works on this machine's GPU, and how fast (QUICK=1: less of it)
	@$(PYTHON) -c 'import sys; from hgt_infer.cuda.cudart import count_cuda_devices as count; \
		sys.exit(None if count() else "error: the NVIDIA driver shows no GPU here")'
	@$(MAKE) --no-print-directory $(INSTALLED_CUDA)
	@$(PYTHON) -m benchmarks.gpu_check $(if $(QUICK),--quick) \
		$(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

clean:  ## remove what was built and cached; .venv and build/peers stay
	rm -rf $(filter-out build/peers,$(wildcard build/*)) dist htmlcov .coverage .coverage.* .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find benchmarks hgt_infer tests training -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED_ALL): $(REQUIREMENTS) | $(PYTHON)
	@echo "installing everything into $(VENV)"
	@$(INSTALL) '.[serve,ray,train,fetch,trackers,bench,dev]'
	@touch $(INSTALLED_TRAIN) $@

$(INSTALLED_CUDA): $(INSTALLED_ALL)
	@echo "installing the CUDA libraries into $(VENV)"
	@$(INSTALL) '.[serve,ray,train,fetch,trackers,bench,dev,cuda]'
	@touch $@

# llama-cpp-python compiles llama.cpp's own server too, out of the same sources.
LLAMA_SERVER := -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_TOOLS_INSTALL=ON -DLLAVA_BUILD=OFF \
	-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_INSTALL_RPATH=$$ORIGIN/../lib

# The lists are whole: what a package asks for beside them is what does not fit. A wheel of llama.cpp in pip's
# cache may lack the server.
build/peers/%/installed: benchmarks/peers/requirements/%.txt | $(PYTHON)
	@echo "installing into build/peers/$*"
	@$(PYTHON) -m venv --clear build/peers/$*
	@CMAKE_ARGS='$(LLAMA_SERVER)' build/peers/$*/bin/python -m pip --disable-pip-version-check install -qq \
		--no-deps $(if $(filter llama_cpp,$*),--no-cache-dir) --requirement $<
	@touch $@

$(INSTALLED_TRAIN): $(REQUIREMENTS) | $(PYTHON)
	@echo "installing into $(VENV) what training and sampling need"
	@$(INSTALL) '.[train]'
	@touch $@

$(PYTHON):
	@for python in python3.11 python3; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "making $(VENV) with $$($$python --version)"; \
			$$python -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
			exit 0; \
		fi; \
	done; \
	echo "error: needs Python 3.11 or newer as python3.11 or python3" >&2; exit 1
