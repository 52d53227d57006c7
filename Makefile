# make demo · make test: each sets up .venv by itself. make help lists the rest.

SHELL := /bin/bash
VARIANT ?= b0
BUDGET ?= 120
PADDLE ?= paddlepaddle==3.3.1

# The first interpreter that the toolkits' pins admit; PYTHON=… names another.
PYTHON ?= $(shell for python in python3.11 python3.10 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null && echo $$python && break; done)

# Paddle uses one slow thread by default; the second variable is for AMD processors, others ignore it.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export MKL_DEBUG_CPU_TYPE ?= 5

.PHONY: help demo demo-smoke demo-det demo-cls bench bench-smoke bench-timm bench-distill bench-deploy compare-backbones test test-paddleclas unpacked-toolkits test-toolkits test-matrix lint clean

help:
	@echo "make demo         train, evaluate and picture a segmentation network on real images (VARIANT=b1: the bigger one)"
	@echo "make test         run the tests"
	@echo "make demo-smoke   the demo in a minute or two"
	@echo "make demo-det     train, evaluate and picture RetinaNet and Mask R-CNN on the same images (VARIANT=b1)"
	@echo "make compare-backbones  CycleMLP-B1 and ResNet-50 from random weights: same data, same time (BUDGET=120 seconds for each)"
	@echo "make demo-cls     pretrain with and without a teacher, then segment with and without the weights"
	@echo "make bench-distill   the gain of distillation over three seeds"
	@echo "make test-paddleclas   PaddleClas' released wheel as teacher, in an environment of its own"
	@echo "make test-toolkits   checkouts of PaddleSeg and PaddleDetection, by their own tools (TOOLKITS=DIR holds them or their archives)"
	@echo "make test-matrix   every Python and Paddle, an environment each (CELLS=\"3.11-3.2.2 …\": some; TOOLKITS=DIR)"
	@echo "make bench        every figure of the README's table of speed, ten minutes and more; stores and shows them"
	@echo "make bench-smoke  whether the network has become slower than the stored figures, within a minute"
	@echo "make bench-timm   the input pipeline against timm's, which gets an environment of its own"
	@echo "make bench-deploy    exported models against dygraph: the table of docs/deployment.md"
	@echo "make lint         ruff and mypy"
	@echo "make clean        remove .venv and output"

# One pip call: seg first and det later leaves a scikit-learn that conflicts with numpy.
.venv/installed: pyproject.toml setup.py Makefile
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null; then \
		echo "Python 3.10 or 3.11 is needed: the pins of PaddleSeg 2.8.0 and PaddleDetection 2.6.0 admit no other." >&2; \
		echo "Found: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1). Install python3.11 (with venv), or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(PADDLE)" -e ".[seg,det,cls,export,demo,dev]"
	@touch $@

demo: .venv/installed
	.venv/bin/python demo/seg.py --variant $(VARIANT) --out output/demo

demo-smoke: .venv/installed
	.venv/bin/python demo/seg.py --variant $(VARIANT) --out output/demo-smoke --smoke

demo-cls: .venv/installed
	.venv/bin/python demo/cls.py --out output/demo-cls

bench-deploy: .venv/installed
	.venv/bin/python -m benchmarks.deployment

bench: .venv/installed .venv-timm/installed
	.venv/bin/python -m benchmarks
	.venv/bin/python -m benchmarks.latency --json docs/results/latency.json
	.venv/bin/python -m benchmarks.bounds
	.venv/bin/python -m benchmarks.report

bench-smoke: .venv/installed
	.venv/bin/python -m benchmarks.smoke

# From its own index PyTorch's build for CPUs is 0.2 GB, from PyPI one for GPUs of several:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make bench-timm
.venv-timm/installed: Makefile
	$(or $(PYTHON),python3) -m venv --clear .venv-timm
	.venv-timm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 timm==1.0.31
	@touch $@

bench-timm: .venv/installed .venv-timm/installed
	.venv/bin/python -m benchmarks.pipeline

bench-distill: .venv/installed
	.venv/bin/python demo/cls.py --bench --out output/bench-distill

demo-det: .venv/installed
	.venv/bin/python demo/det.py --variant $(VARIANT) --out output/demo-det

compare-backbones: .venv/installed
	.venv/bin/python demo/compare.py --seconds $(BUDGET) --out output/compare

test: .venv/installed
	.venv/bin/python -m pytest

# The wheel pins what the toolkits pin otherwise, hence --no-deps and an environment of its own.
.venv-paddleclas/installed: pyproject.toml setup.py Makefile
	$(or $(PYTHON),python3) -m venv --clear .venv-paddleclas
	.venv-paddleclas/bin/python -m pip install --quiet --disable-pip-version-check "$(PADDLE)" -e ".[cls]" pytest scikit-learn requests six
	.venv-paddleclas/bin/python -m pip install --quiet --disable-pip-version-check --no-deps paddleclas==2.6.0
	@touch $@

test-paddleclas: .venv-paddleclas/installed
	.venv-paddleclas/bin/python -m pytest tests/classification/check_paddleclas.py

TOOLKITS ?= ../shared/toolkits
TOOLKITS_CACHE ?= $(HOME)/.cache/cyclemlp/toolkits

unpacked-toolkits:
	@if ! ls -d $(TOOLKITS)/Paddle* >/dev/null 2>&1; then \
		echo "TOOLKITS=$(TOOLKITS) holds no checkout and no archive of one. Get them, and give the folder as TOOLKITS=DIR:" >&2; \
		for tag in PaddleSeg/v2.9.1 PaddleSeg/develop PaddleDetection/release/2.7.1 PaddleDetection/develop; do \
			echo "  git clone --branch $${tag#*/} --depth 1 https://github.com/PaddlePaddle/$${tag%%/*} DIR/$${tag%%/*}-$${tag##*/}" >&2; \
		done; \
		echo "(the table was written with develop of October 2024: PaddleSeg d7975e7c, PaddleDetection 666f597f)" >&2; \
		exit 1; \
	fi
	@mkdir -p $(TOOLKITS_CACHE)
	@for archive in $(wildcard $(TOOLKITS)/*.tar.gz); do \
		[ -d $(TOOLKITS_CACHE)/$$(basename $$archive .tar.gz) ] || tar -xzf $$archive -C $(TOOLKITS_CACHE); \
	done

test-toolkits test-matrix: export CYCLEMLP_TOOLKITS = $(if $(wildcard $(TOOLKITS)/*.tar.gz),$(TOOLKITS_CACHE),$(TOOLKITS))

# Writes the table of docs/support.md; SHORT=1 runs what .ci/run does, and writes nothing.
test-toolkits: .venv/installed unpacked-toolkits
	.venv/bin/python -m pytest tests/toolkits $(if $(SHORT),-m short -k 'train or evaluate or export',--write-table docs/support.md)

# Writes another table of docs/support.md, and what `cyclemlp doctor` says by it.
test-matrix: .venv/installed unpacked-toolkits
	.venv/bin/python -m tests.matrix $(CELLS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv .venv-paddleclas .venv-timm output
