# make demo          trains a LoRA without the face loss and with it, and draws out/demo.png
# make demo-pixels   the loss alone, on pixels; MODELS and PHOTOS name models and photographs of your own
# make build         the library, target/release/libfacegrad.so
# make install       installs the library and its headers under PREFIX (/usr/local) in DESTDIR
# make test          every suite; SUITES="python hosts" runs the suites whose name contains one of these words
# make test-cpus     the numeric suites, as other processors compute them (CONTRIBUTING.md)
# make gpu           the suite for a machine with a GPU; make gpu-bench measures there (docs/cuda.md)
# make bench         what a call costs, and steps against PyTorch (docs/performance.md)
# make results       measures the figures of docs/results.md again
# make fuzz          fuzzes every target, or those in TARGETS, for MINUTES each (docs/reliability.md)
# make wheel         the wheel and the sdist, into dist/; make test-torch runs the wheel beside other versions of torch
# make format        formats all code; make check-format only checks it
# make header        writes include/facegrad.h from src/ffi; make freeze writes abi/ from that header
# make setup         .venv; make fixtures writes what the tests compare with; make clean removes what was built
#
# A target first makes what it needs, except that `install` needs `make build` and `test-torch` needs `make wheel`.
# FACEGRAD_TEST_DATA names the folder of real models and photographs for the tests.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LIBRARY := target/release/libfacegrad.so
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# The library's SONAME ends in major.minor, because before version 1.0 every minor version may change the ABI.
ABI := $(basename $(VERSION))
FIXTURES := target/fixtures
DATA := $(abspath $(or $(FACEGRAD_TEST_DATA),../shared/data))

export PYTHONPATH := $(CURDIR)/bindings/python

.PHONY: demo demo-pixels results test test-cpus test-torch gpu gpu-bench setup build install fixtures header freeze
.PHONY: format check-format bench fuzz wheel clean prerequisites
.DEFAULT_GOAL := build

prerequisites:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.92 or newer from https://rustup.rs"; exit 1; }
	@command -v c++ >/dev/null || { echo "c++ is missing: install a C++ compiler (Debian: apt install g++)"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 or newer, or set PYTHON="; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than 3.10: install a newer Python, or set PYTHON="; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv is missing: install it (Debian: apt install python3-venv)"; exit 1; }

# .cargo/config.toml tells torch-sys to look for libtorch in `.venv/torch`. The link hides the Python version in torch's real path.
$(VENV)/.ready: requirements.txt | prerequisites
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	ln -sfn "$$($(RUN) -c 'import os, torch; print(os.path.relpath(os.path.dirname(torch.__file__), "$(VENV)"))')" $(VENV)/torch
	touch $@

$(VENV)/.ready-tests: $(VENV)/.ready tests/requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -r tests/requirements.txt
	touch $@

setup: $(VENV)/.ready

build: setup
	cargo build --release
	ln -sfn libfacegrad.so $(LIBRARY).$(ABI)

PREFIX ?= /usr/local
INSTALLED := $(DESTDIR)$(PREFIX)
TORCH = $(realpath $(or $(LIBTORCH),$(VENV)/torch))
# The minor version of the torch that the part was compiled for, such as 2.11.
TORCH_MINOR = $(shell sed -n "s/^__version__ = '\([0-9]*\.[0-9]*\).*/\1/p" $(TORCH)/version.py)
PART = lib/facegrad/torch$(TORCH_MINOR)
PACKAGE = sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@ABI@|$(ABI)|g' -e 's|@TORCH@|$(TORCH)|g'

# The installed tree can be moved, because no file in it names PREFIX. This target builds nothing, so root can run it without
# a compiler. It leaves the parts for other versions of torch that an earlier installation put there.
install:
	@test -f $(LIBRARY) || { echo "$(LIBRARY) is missing: run \`make build\` first"; exit 1; }
	install -d $(INSTALLED)/include $(INSTALLED)/lib/pkgconfig $(INSTALLED)/lib/cmake/facegrad $(INSTALLED)/$(PART)
	install -m 755 $(LIBRARY) $(INSTALLED)/lib/libfacegrad.so.$(VERSION)
	ln -sfn libfacegrad.so.$(VERSION) $(INSTALLED)/lib/libfacegrad.so.$(ABI)
	ln -sfn libfacegrad.so.$(ABI) $(INSTALLED)/lib/libfacegrad.so
	install -m 755 target/release/libfacegrad_torch.so $(INSTALLED)/$(PART)
	ln -sfn facegrad/torch$(TORCH_MINOR)/libfacegrad_torch.so $(INSTALLED)/lib/libfacegrad_torch.so
	install -m 644 include/facegrad.h bindings/cpp/*.hpp $(INSTALLED)/include
	$(PACKAGE) bindings/cpp/package/facegrad.pc.in > $(INSTALLED)/lib/pkgconfig/facegrad.pc
	for name in Config ConfigVersion Torch; do \
		$(PACKAGE) bindings/cpp/package/facegrad$$name.cmake.in > $(INSTALLED)/lib/cmake/facegrad/facegrad$$name.cmake || exit 1; done

# The demo's small FLUX draws only cartoons. With MODELS or PHOTOS, the pixels are trained instead.
demo: $(if $(MODELS)$(PHOTOS),demo-pixels,build)
	$(if $(MODELS)$(PHOTOS),,$(RUN) examples/demo/demo.py)

demo-pixels: build
	$(RUN) examples/demo/pixels.py $(if $(MODELS),--models $(MODELS)) $(if $(PHOTOS),--photos $(PHOTOS))

# Writes the wheel, with a part for every torch in torch/versions.txt or in VERSIONS, and the sdist to dist/. TORCHES=FOLDER
# keeps the downloaded versions of torch.
wheel: target/wheel/.ready
	PATH=$(CURDIR)/target/wheel/venv/bin:$$PATH python packaging/wheel.py $(VERSIONS)
	$(if $(VERSIONS),,$(RUN) -m pytest -q packaging)

# Installs the wheel in dist/ beside each torch in VERSIONS and compares what it computes. The default is every torch that the
# wheel has a part for.
test-torch: setup
	$(RUN) packaging/matrix.py $(DATA) $(RUN) $(VERSIONS)

target/wheel/.ready: packaging/requirements.txt | prerequisites
	test -x target/wheel/venv/bin/python || $(PYTHON) -m venv target/wheel/venv
	target/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -r packaging/requirements.txt
	touch $@

results: build
	$(RUN) examples/demo/results.py

$(FIXTURES)/.ready: $(VENV)/.ready-tests $(wildcard tests/fixtures/*.py)
	$(RUN) -W ignore tests/fixtures/make.py $(FIXTURES) $(DATA)
	$(RUN) -W ignore tests/fixtures/decoders.py $(FIXTURES)
	$(RUN) -W ignore tests/fixtures/latent.py $(FIXTURES)
	$(RUN) -W ignore tests/fixtures/step.py $(FIXTURES)
	$(RUN) -W ignore tests/fixtures/evaluate.py $(FIXTURES) $(DATA)
	test ! -d $(DATA) || $(RUN) -W ignore tests/fixtures/photographs.py $(FIXTURES) $(DATA)
	touch $@

fixtures: $(FIXTURES)/.ready

test: build fixtures
	$(RUN) tests/run $(DATA) $(SUITES)

test-cpus: build fixtures
	$(RUN) tests/run --processors $(DATA) $(SUITES)

# Beside an installed facegrad, without a build: python tests/gpu/run.py, and python benches/gpu.py.
gpu: build fixtures
	$(RUN) tests/gpu/run.py --numeric --device $(or $(DEVICE),cuda)

gpu-bench: build $(VENV)/.ready-tests
	$(RUN) benches/gpu.py

header: setup
	FACEGRAD_UPDATE_HEADER=1 cargo test --test header

# The C and C++ that is written by hand: cbindgen lays out include/ and abi/.
C_FILES = $$(git ls-files '*.c' '*.cc' '*.cpp' '*.h' '*.hpp' ':!include' ':!abi')

format: $(VENV)/.ready-tests
	cargo fmt
	$(VENV)/bin/ruff check --quiet --fix .
	$(VENV)/bin/ruff format --quiet .
	$(VENV)/bin/clang-format -i $(C_FILES)

check-format: $(VENV)/.ready-tests
	cargo fmt --check
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/ruff format --quiet --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)

# Writes the current header to abi/ as what this ABI version promises. It refuses a header that breaks an earlier promise.
freeze:
	$(PYTHON) tests/hosts/header.py freeze include/facegrad.h abi

bench: build $(VENV)/.ready-tests
	cargo bench --bench abi
	$(RUN) benches/step.py
	$(RUN) benches/window.py
	test ! -d $(DATA) || $(RUN) benches/mobilefacenet.py $(DATA)
	test ! -d $(DATA) || $(RUN) benches/evaluate.py $(DATA)

# `cargo test --test hostile` replays the inputs that a campaign keeps. See docs/reliability.md.
fuzz: $(VENV)/.ready-tests
	fuzz/campaign $(or $(MINUTES),5) $(TARGETS)

clean:
	cargo clean
	rm -rf $(VENV) out
