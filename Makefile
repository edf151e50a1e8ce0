# make demo   sets everything up and trains a LoRA without and with the face loss: out/demo.png
# make test   sets everything up and runs every suite; SUITES="python host" runs those of such a name
# make test-cpus   the numeric suites as other processors compute them: a step of a release
# make gpu    what a machine with a GPU has to prove; make gpu-bench measures there (docs/cuda.md)
# make install PREFIX=/usr/local   puts what `make build` made, headers and packages there
# Further: demo-pixels (the loss alone, on pixels), results (docs/results.md anew), setup, build, fixtures, header,
# format, freeze, bench, fuzz (MINUTES for each target, or for those in TARGETS), clean. Variables: MODELS and PHOTOS for demo-pixels, FACEGRAD_TEST_DATA for the tests that use real
# models, PREFIX and DESTDIR for the installation.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LIBRARY := target/release/libfacegrad.so
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# Before 1.0 the ABI is the minor version.
ABI := $(basename $(VERSION))
FIXTURES := target/fixtures
DATA := $(abspath $(or $(FACEGRAD_TEST_DATA),../shared/data))

export PYTHONPATH := $(CURDIR)/bindings/python

.PHONY: demo demo-pixels results test test-cpus test-torch gpu gpu-bench setup build install fixtures header format freeze
.PHONY: bench fuzz wheel clean prerequisites
.DEFAULT_GOAL := build

prerequisites:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.92 or newer from https://rustup.rs"; exit 1; }
	@command -v c++ >/dev/null || { echo "c++ is missing: install a C++ compiler (Debian: apt install g++)"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 or newer, or set PYTHON="; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than 3.10: install a newer Python, or set PYTHON="; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv is missing: install it (Debian: apt install python3-venv)"; exit 1; }

# `.venv/torch` is where .cargo/config.toml lets torch-sys look, whatever Python it is.
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

# Works where it lands: nothing in it names PREFIX. It does not build, so that root need not. Parts for other versions of
# torch that an earlier installation put there stay.
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

# With models or photographs of your own it is the pixels that are trained: the small FLUX draws cartoons only.
demo: $(if $(MODELS)$(PHOTOS),demo-pixels,build)
	$(if $(MODELS)$(PHOTOS),,$(RUN) examples/demo/demo.py)

demo-pixels: build
	$(RUN) examples/demo/pixels.py $(if $(MODELS),--models $(MODELS)) $(if $(PHOTOS),--photos $(PHOTOS))

# The wheel with a part for every torch in torch/versions.txt, or in VERSIONS, and the sdist: dist/. TORCHES=FOLDER keeps what is
# downloaded.
wheel: target/wheel/.ready
	PATH=$(CURDIR)/target/wheel/venv/bin:$$PATH python packaging/wheel.py $(VERSIONS)
	$(if $(VERSIONS),,$(RUN) -m pytest -q packaging)

# Installs the wheel in dist/ beside each torch in VERSIONS (by default all that it has parts for) and compares the numbers.
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
	touch $@

fixtures: $(FIXTURES)/.ready

test: build fixtures
	$(RUN) tests/run $(DATA) $(SUITES)

test-cpus: build fixtures
	$(RUN) tests/run --processors $(DATA) $(SUITES)

# Without a checkout: python tests/gpu/run.py, and python benches/gpu.py.
gpu: build $(VENV)/.ready-tests
	$(RUN) tests/gpu/run.py --device $(or $(DEVICE),cuda)

gpu-bench: build $(VENV)/.ready-tests
	$(RUN) benches/gpu.py

header: setup
	FACEGRAD_UPDATE_HEADER=1 cargo test --test header

format: $(VENV)/.ready-tests
	cargo fmt
	$(VENV)/bin/ruff check --quiet --fix .
	$(VENV)/bin/ruff format --quiet .
	$(VENV)/bin/clang-format -i $$(git ls-files '*.c' '*.cc' '*.cpp' '*.h' '*.hpp' ':!include' ':!abi')

# The header as this version promises it; only ever grows within an ABI version.
freeze:
	$(PYTHON) tests/hosts/header.py freeze include/facegrad.h abi

bench: build $(VENV)/.ready-tests
	cargo bench --bench abi
	$(RUN) benches/step.py
	$(RUN) benches/window.py
	test ! -d $(DATA) || $(RUN) benches/mobilefacenet.py $(DATA)
	test ! -d $(DATA) || $(RUN) benches/evaluate.py $(DATA)

# Campaigns; what they find and keep is replayed by `cargo test --test hostile`. See docs/reliability.md.
fuzz: $(VENV)/.ready-tests
	fuzz/campaign $(or $(MINUTES),5) $(TARGETS)

clean:
	cargo clean
	rm -rf $(VENV) out
