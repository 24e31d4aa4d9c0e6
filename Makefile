# `make help` lists the targets. PYTHON is the interpreter that .venv is made with.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -qq --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo install sdk server test coverage test-install torture check audit sbom lock bench fidelity \
	edit-fidelity edits fullsize clean

help:
	@echo "make demo      install, export the embedded model with FP8 weights, edit, make demo/report.html"
	@echo "make install   install everything that tests need into $(VENV)"
	@echo "make check     ruff and mypy"
	@echo "make test      all tests; those that need a GPU are skipped without one"
	@echo "make coverage  the same, and which lines they did not run; takes half as long again"
	@echo "make test-install   build the wheel and install it with every extra in fresh environments (downloads gigabytes)"
	@echo "make torture   thousands of damaged files, kills and floods (docs/reliability.md)"
	@echo "make audit     known vulnerabilities of the pinned versions, where an index that knows them can be reached"
	@echo "make sbom      bills of materials (CycloneDX) of this environment and of the server's image, in build/sbom"
	@echo "make lock      pin the packages of the server's image, with their hashes, to the newest that are allowed"
	@echo "make server    install NVIDIA Triton Inference Server in build/server, for tests and benchmarks of serving"
	@echo "make sdk       ONNX Runtime's headers and library in build/onnxruntime-sdk, for the C++ runtime (docs/cpp.md)"
	@echo "make bench     measure latency, cold start, export, lists of jobs, serving and fidelity; updates bench/results/ and docs/"
	@echo "make fidelity  only the fidelity part of it: ours, other libraries' quantization, speed of quantized steps"
	@echo "make edit-fidelity   only what edits keep: regions, text, characters, chains; updates bench/results/ and docs/"
	@echo "make edits     measure the success of each kind of edit at 28 and 4 steps; updates bench/results/ and docs/"
	@echo "make fullsize  measure the export at FLUX.1 Kontext's full size (70 GB of disk); updates bench/results/ and docs/"
	@echo "make clean     remove what the above made, except $(VENV)"

# One environment for all targets. A stamp file in it records each set of extras that is installed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.kontext-demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing kontext-export[cpu,export,bench,rest] into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[cpu,export,bench,rest]'
	@touch $@

$(VENV)/.kontext-all: $(VENV)/.kontext-demo
	$(PIP) --editable '.[cpu,export,bench,rest,openvino,rtx,batch,test]'
	@touch $@

install: $(VENV)/.kontext-all sdk

# For the C++ runtime; downloads two Debian packages. If that fails, the C++ tests are skipped.
sdk: build/onnxruntime-sdk/lib

build/onnxruntime-sdk/lib: runtime/cpp/fetch-onnxruntime.sh $(VENV)/.kontext-all
	-runtime/cpp/fetch-onnxruntime.sh build/onnxruntime-sdk $(BIN)/python

demo: $(VENV)/.kontext-demo
	@mkdir -p demo
	$(BIN)/kontext-export --fp8 --output demo/kontext-tiny-fp8 --force
	$(BIN)/kontext-bench demo demo/kontext-tiny-fp8 --output demo

server: $(VENV)/.kontext-demo
	$(BIN)/kontext-bench serve

# If the server cannot be installed, the tests that need it are skipped.
test: install
	-$(BIN)/kontext-bench serve
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope $(PYTEST_ARGS)

coverage: override PYTEST_ARGS += --cov --cov-report=term
coverage: test

# The built wheel in fresh environments, for every documented `pip install`.
test-install: install
	$(BIN)/python -m pytest tests/install -m install --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

# Longer than CI has time for.
torture: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/torture -m torture $(PYTEST_ARGS)

check: install
	$(BIN)/ruff check .
	@mkdir -p build/types && ln -sfn ../.. build/types/kontext
	$(BIN)/mypy

$(VENV)/.kontext-audit: $(VENV)/.kontext-demo
	$(PIP) --editable '.[audit]'
	@touch $@

LOCKS := $(patsubst %,export/server/templates/requirements-%.txt,onnxruntime onnxruntime-gpu)

# A package that the index knows no advisories of is listed as "could not be audited" and fails nothing.
audit: $(VENV)/.kontext-audit
	for file in constraints.txt constraints-serve.txt $(LOCKS); do \
	  $(BIN)/pip-audit --disable-pip --no-deps --progress-spinner off -r $$file || exit 1; done

sbom: $(VENV)/.kontext-audit
	@mkdir -p build/sbom
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library -o build/sbom/environment.json $(BIN)/python
	for lock in $(LOCKS); do \
	  $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml -o build/sbom/image-$$(basename $$lock .txt).json $$lock; done

# For every platform that has wheels, Python 3.12 and newer: the server's image has 3.12.
lock: $(VENV)/.kontext-audit
	for lock in $(LOCKS); do \
	  name=$$(basename $$lock .txt); \
	  echo "$${name#requirements-}" | cat export/server/templates/requirements.txt - | \
	  $(BIN)/uv pip compile - --constraint constraints-serve.txt --universal --python-version 3.12 --generate-hashes \
	    --no-annotate --no-emit-index-url --quiet --upgrade --custom-compile-command 'make lock' -o $$lock; done

build/kontext-tiny-%: $(VENV)/.kontext-demo $(wildcard tiny/checkpoint/*/*)
	@mkdir -p build
	$(BIN)/kontext-export --$* --output $@ --force
	@touch $@

# Ray, for lists of jobs.
$(VENV)/.kontext-batch: $(VENV)/.kontext-demo
	$(PIP) --editable '.[cpu,export,bench,rest,batch]'
	@touch $@

bench: $(VENV)/.kontext-batch $(addprefix build/kontext-tiny-,fp32 fp8 int8 int4)
	$(BIN)/kontext-bench export --json bench/results/export.json
	$(BIN)/kontext-bench latency build/kontext-tiny-fp32 --against diffusers,diffusers-compiled \
		--json bench/results/latency.json
	$(BIN)/kontext-bench throughput build/kontext-tiny-fp32 --json bench/results/throughput.json
	$(BIN)/kontext-bench coldstart build/kontext-tiny-fp32 --json bench/results/coldstart.json
	$(BIN)/kontext-bench batch build/kontext-tiny-fp32 --json bench/results/batch.json
	-$(BIN)/kontext-bench serve && $(BIN)/kontext-bench serving build/kontext-tiny-fp32 \
		--json bench/results/serving.json && $(BIN)/kontext-bench serving build/kontext-tiny-fp32 --rest \
		--concurrency 1,2,4 --json bench/results/rest.json && $(BIN)/kontext-bench capacity \
		--check-server build/kontext-tiny-fp32 --json bench/results/capacity.json
	$(MAKE) fidelity

# Installed after latencies are measured: diffusers imports torchao if it is installed, which slows its start.
$(VENV)/.kontext-peers: $(VENV)/.kontext-demo
	$(PIP) --editable '.[cpu,export,bench,peers]'
	@touch $@

build/kontext-tiny-%-weights: $(VENV)/.kontext-demo $(wildcard tiny/checkpoint/*/*)
	@mkdir -p build
	$(BIN)/kontext-export --$* --weight-only --output $@ --force
	@touch $@

build/kontext-tiny-%-fp16: $(VENV)/.kontext-demo $(wildcard tiny/checkpoint/*/*)
	@mkdir -p build
	$(BIN)/kontext-export --$(subst -weights, --weight-only,$*) --fp16 --output $@ --force
	@touch $@

build/kontext-tiny-%-static: $(VENV)/.kontext-demo $(wildcard tiny/checkpoint/*/*)
	@mkdir -p build
	$(BIN)/kontext-export --$* --static-inputs --output $@ --force
	@touch $@

build/kontext-tiny-%-rank16: $(VENV)/.kontext-demo $(wildcard tiny/checkpoint/*/*)
	@mkdir -p build
	$(BIN)/kontext-export --$* --rank 16 --output $@ --force
	@touch $@

build/kontext-tiny-nf4-int8-%: bench/recipes/nf4-int8-%.json $(VENV)/.kontext-demo $(wildcard tiny/checkpoint/*/*)
	@mkdir -p build
	$(BIN)/kontext-export --recipe $< --output $@ --force
	@touch $@

# ggml's quantizers, which no Python package has. If the library cannot be downloaded, those peers are skipped.
GGML := build/ggml/package/bins/linux-x64/libggml-base.so

$(GGML):
	@mkdir -p build/ggml
	-cd build/ggml && npm pack --silent @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz

# One bundle of each kind. Scales of fp32 bundles take twice the bits of those of 16-bit ones: two of the latter too.
BUNDLES := fp8 fp8-weights int8 int8-weights int8-weights-fp16 int8-static nf4-int8-single nf4-int8-linear1 \
	int4 int4-fp16 int4-rank16 nf4 nvfp4 nvfp4-weights
QUANTIZED := $(addprefix build/kontext-tiny-,$(BUNDLES))

fidelity: $(VENV)/.kontext-peers $(GGML) build/kontext-tiny-fp32 $(QUANTIZED)
	GGML_LIBRARY=$(abspath $(GGML)) $(BIN)/kontext-bench fidelity $(QUANTIZED) --reference build/kontext-tiny-fp32 \
		--peers all --count 2 --json bench/results/fidelity.json
	$(BIN)/kontext-bench edit-fidelity $(EDITING) --reference build/kontext-tiny-fp32 -n 4 \
		--json bench/results/edit_fidelity.json
	$(BIN)/kontext-bench methods --json bench/results/methods.json
	$(BIN)/kontext-bench approximations build/kontext-tiny-fp32 --json bench/results/approximations.json
	$(BIN)/kontext-bench quantspeed --json bench/results/quantspeed.json
	$(BIN)/kontext-bench loras --json bench/results/loras.json
	$(BIN)/kontext-bench readme

EDITING := $(addprefix build/kontext-tiny-,fp8 int8 int4)

# Tesseract (Debian: tesseract-ocr) reads the text of pictures, where it is installed.
edit-fidelity: $(VENV)/.kontext-demo build/kontext-tiny-fp32 $(EDITING)
	$(BIN)/kontext-bench edit-fidelity $(EDITING) --reference build/kontext-tiny-fp32 -n 4 \
		--json bench/results/edit_fidelity.json
	$(BIN)/kontext-bench readme

edits: $(VENV)/.kontext-demo build/kontext-tiny-fp32
	$(BIN)/kontext-bench edits build/kontext-tiny-fp32 --json bench/results/edits.json
	$(BIN)/kontext-bench readme

fullsize: $(VENV)/.kontext-demo
	$(BIN)/kontext-bench fullsize --json bench/results/fullsize.json
	$(BIN)/kontext-bench readme

clean:
	rm -rf build demo .coverage coverage.xml .pytest_cache .mypy_cache .ruff_cache .hypothesis
