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

.PHONY: help demo demo-smoke demo-det demo-cls bench bench-smoke bench-timm bench-distill bench-deploy bench-trainers gpu-check compare-backbones compare-chain test test-paddleclas unpacked-toolkits test-toolkits test-matrix test-heads test-paddlex test-serve attack mutants docs lint clean

help:
	@echo "make demo         train, evaluate and picture a segmentation network on real images (VARIANT=b1: the bigger one)"
	@echo "make test         run the tests, in as many processes as there are cores (WORKERS=N)"
	@echo "make demo-smoke   the demo in a minute or two"
	@echo "make demo-det     train, evaluate and picture RetinaNet and Mask R-CNN on the same images (VARIANT=b1)"
	@echo "make compare-backbones  CycleMLP-B1 and ResNet-50 from random weights: same data, same time (BUDGET=120 seconds for each)"
	@echo "make compare-chain  pretrain, then segment and detect: CycleMLP, ResNet-50-vd and MiT-B0 at equal computing time, over three seeds"
	@echo "make demo-cls     pretrain with and without a teacher, then segment with and without the weights"
	@echo "make bench-distill   the gain of distillation over three seeds"
	@echo "make test-paddleclas   PaddleClas' released wheel as teacher, in an environment of its own"
	@echo "make test-toolkits   checkouts of PaddleSeg and PaddleDetection, by their own tools (TOOLKITS=DIR holds them or their archives)"
	@echo "make mutants      which changes of the code no test notices (MODULE=losses: of one; EVERY=4: each fourth change)"
	@echo "make attack       kills, full disks, changing data, launches, long runs (SHORT=1: a few of each)"
	@echo "make test-heads   every model of those checkouts with CycleMLP as its backbone: docs/heads.md"
	@echo "make test-paddlex   PaddleX's wheel with the checkouts, in an environment of its own (PADDLEX_ENV)"
	@echo "make test-serve   examples/serve asked by a client and by Chromium, which the system has to have"
	@echo "make test-matrix   every Python and Paddle, an environment each (CELLS=\"3.11-3.2.2 …\": some; TOOLKITS=DIR)"
	@echo "make bench        every figure of docs/performance.md's first table, ten minutes and more; stores them as this processor's"
	@echo "make bench-smoke  whether the network has become slower than the stored figures, within a minute"
	@echo "make bench-timm   the input pipeline against timm's, which gets an environment of its own"
	@echo "make bench-deploy    exported models against dygraph: the table of docs/deployment.md"
	@echo "make gpu-check    on a machine with a GPU: right, trains, how fast; writes its table into docs/performance.md"
	@echo "make bench-trainers  PaddleSeg's and PaddleDetection's trainers with B1 and ResNet-50, from files to updates"
	@echo "make docs         the documentation as a site, output/docs/index.html"
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
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(PADDLE) -e ".[seg,det,cls,export,serve,demo,docs,dev]"
	@touch $@

demo: .venv/installed
	.venv/bin/python demo/seg.py --variant $(VARIANT) --out output/demo

demo-smoke: .venv/installed
	.venv/bin/python demo/seg.py --variant $(VARIANT) --out output/demo-smoke --smoke

demo-cls: .venv/installed
	.venv/bin/python demo/cls.py --out output/demo-cls

bench-deploy: .venv/installed
	.venv/bin/python -m benchmarks.deployment
	@if .venv/bin/python -c 'import openvino' 2>/dev/null; then .venv/bin/python -m benchmarks.deployment --openvino; fi

bench-trainers: .venv/installed
	.venv/bin/python -m benchmarks.trainers

# PADDLE names the build for your CUDA: docs/performance.md.
gpu-check: .venv/installed
	.venv/bin/python -m benchmarks.gpu

bench: .venv/installed .venv-timm/installed
	.venv/bin/python -m benchmarks
	.venv/bin/python -m benchmarks.latency --store
	.venv/bin/python -m benchmarks.bounds
	.venv/bin/python -m benchmarks.compiled
	.venv/bin/python -m benchmarks.report

docs: .venv/installed
	.venv/bin/python docs/generate.py
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs output/docs

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

# Goes on where an earlier one ended: remove output/chain to begin anew.
compare-chain: .venv/installed
	.venv/bin/python demo/chain.py --out output/chain --store

WORKERS ?= $(shell cores=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2); echo $$((cores < 8 ? cores : 8)))

# A process of one thread for each core, up to 8: tests mostly start programs and wait for them, which one thread does.
test: .venv/installed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile

# The wheel pins what the toolkits pin otherwise, hence --no-deps and an environment of its own.
.venv-paddleclas/installed: pyproject.toml setup.py Makefile
	$(or $(PYTHON),python3) -m venv --clear .venv-paddleclas
	.venv-paddleclas/bin/python -m pip install --quiet --disable-pip-version-check $(PADDLE) -e ".[cls]" pytest scikit-learn requests six
	.venv-paddleclas/bin/python -m pip install --quiet --disable-pip-version-check --no-deps paddleclas==2.6.0
	@touch $@

test-paddleclas: .venv-paddleclas/installed
	.venv-paddleclas/bin/python -m pytest tests/classification/check_paddleclas.py

TOOLKITS ?= ../shared/toolkits
TOOLKITS_CACHE ?= $(HOME)/.cache/cyclemlp/toolkits

# What TOOLKITS holds, unpacked where it is archives: CYCLEMLP_TOOLKITS is the folder of the checkouts.
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

test-toolkits test-heads test-paddlex test-matrix: export CYCLEMLP_TOOLKITS = $(if $(wildcard $(TOOLKITS)/*.tar.gz),$(TOOLKITS_CACHE),$(TOOLKITS))

# Write the table of docs/support.md and docs/heads.md; SHORT=1 runs what .ci/run does, and writes nothing.
test-toolkits test-heads: .venv/installed unpacked-toolkits
	.venv/bin/python -m pytest $(if $(filter test-heads,$@),tests/toolkits/test_heads.py,tests/toolkits) \
		$(if $(SHORT),-m short -k 'train or evaluate or export',--write-table docs/support.md)

PADDLEX_ENV ?= $(HOME)/.cache/cyclemlp/paddlex-3.7.2

# imgaug by itself: it asks for opencv-python, whose module PaddleX's opencv-contrib-python has.
test-paddlex: unpacked-toolkits
	@$(PADDLEX_ENV)/bin/python -c 'import paddlex, imgaug' 2>/dev/null || { $(or $(PYTHON),python3) -m venv $(PADDLEX_ENV) && \
	$(PADDLEX_ENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PADDLE) "paddlex[cv]==3.7.2" \
		"numpy<2" safetensors tqdm pytest visualdl scikit-learn shapely terminaltables imageio && \
	$(PADDLEX_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps imgaug; } || \
	{ echo "PaddleX cannot be installed here. Make an environment where it can, Python 3.10 or 3.11 with what the" >&2; \
	  echo "Makefile installs for test-paddlex, and name its folder: make test-paddlex PADDLEX_ENV=DIR" >&2; exit 1; }
	$(PADDLEX_ENV)/bin/python -m pytest tests/paddlex

# Writes the table of docs/reliability.md; SHORT=1 runs what .ci/run does, and writes nothing.
attack: .venv/installed
	CYCLEMLP_ATTACK=$(if $(SHORT),short,long) .venv/bin/python -m pytest tests/attack $(if $(SHORT),-m 'not long',--write-table docs/reliability.md)

# A browser's driver beside what the tests need; the browser is the system's.
test-serve: .venv/installed
	.venv/bin/python -c 'import playwright' 2>/dev/null || .venv/bin/python -m pip install --quiet --disable-pip-version-check playwright
	.venv/bin/python -m pytest tests/deploy/test_serve.py tests/deploy/check_page.py

EVERY ?= 1

mutants: .venv/installed
	.venv/bin/python -m tests.mutants $(MODULE) --every $(EVERY)

# Writes another table of docs/support.md, and what `cyclemlp doctor` says by it.
test-matrix: .venv/installed unpacked-toolkits
	.venv/bin/python -m tests.matrix $(CELLS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv .venv-paddleclas .venv-timm output
