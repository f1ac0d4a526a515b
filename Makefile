# Two commands do everything on a fresh machine: make demo, make test.
# Empty: the newest suitable one that tools/setup.sh finds.
PYTHON ?=
PY := .venv/bin/python
STAMP := .venv/.installed
# Two threads suit the small networks of the demos. They sleep while they wait for each other:
# spinning is a little faster on an idle machine and many times slower on a busy one.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo evaluate demo-coco demo-ade20k benchmarks gpu-check test soak lint docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install the pinned stack (skipped when nothing changed)

$(STAMP): setup.py tools/setup.sh requirements/constraints.txt
	@PYTHON=$(PYTHON) bash tools/setup.sh
	@touch $@

DIGITS := work_dirs/digits
PRETRAIN_DIGITS = $(PY) tools/train.py configs/patchmix_vit-digits.py --work-dir $(DIGITS) --overwrite

demo: setup  ## pre-train a small ViT on digits (4 to 6 minutes on 2 cores)
	@$(PRETRAIN_DIGITS)

$(DIGITS)/last_checkpoint: | setup
	@$(PRETRAIN_DIGITS)

evaluate: setup $(DIGITS)/last_checkpoint  ## judge the demo's checkpoint: kNN, linear, few labels, fine-tuning
	@$(PY) -m mmpatchmix evaluate configs/patchmix_vit-digits.py "$$(cat $(DIGITS)/last_checkpoint)" \
	  --finetune configs/finetune/vit-digits.py --work-dir $(DIGITS)/evaluation

demo-coco: setup  ## train a detector with and without pre-training, on scenes of digits (about 6 minutes)
	@$(PY) examples/demo_coco.py

demo-ade20k: setup  ## train segmentation with and without pre-training, on scenes of digits, with three seeds
	@$(PY) examples/demo_ade20k.py

# Threads as torch chooses them: nothing else should run beside.
BENCHMARKS := mixing momentum data data:--table:decoders methods:--cost knn knn:--queries:50000:--bank:32768:--memory memory \
  step:--crops:2:--precision:fp32 step:--crops:2:--precision:bf16 step:--crops:10:--precision:fp32 \
  step:--crops:10:--precision:bf16 step:--table:parts:--precision:auto step:--table:freed-memory:--precision:auto \
  device_cost:--table:counted device_cost:--table:modelled device_cost:--table:compiled

benchmarks: setup  ## measure what docs/performance.md reports (about 45 minutes on 2 cores)
	@.venv/bin/python -m pip install -q -c requirements/constraints.txt -r requirements/benchmarks.txt
	@mkdir -p benchmarks/results
	@for name in $(BENCHMARKS); do \
	  set -- $$(echo $$name | tr : ' '); file=benchmarks/results/$$(echo $$name | tr -s ':-' '-').txt; \
	  script=$$1; shift; echo "benchmarks/$$script.py $$* -> $$file"; \
	  env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY $(PY) benchmarks/$$script.py "$$@" >$$file || exit 1; \
	done

gpu-check: setup  ## prove and measure on a GPU, in at most 8 minutes; again for what is left
	@.venv/bin/python -m pip install -q -c requirements/constraints.txt -r requirements/benchmarks.txt
	@env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY $(PY) benchmarks/gpu_check.py
	@$(PY) benchmarks/evidence.py

test: setup lint  ## lint and run the whole test suite
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

SOAK ?= 100
soak: setup  ## kill, fill, stop and cut runs by the hundred (about 30 minutes on an idle machine; disks and links need root)
	@SOAK=$(SOAK) OMP_NUM_THREADS=1 $(PY) -m tests.faults.soak

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/shellcheck tools/*.sh .ci/run

docs: setup  ## build the documentation into site/, which opens from the disk
	@.venv/bin/python -m pip install -q -c requirements/constraints.txt -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo "written: site/index.html"

clean:  ## remove .venv (work_dirs stays)
	rm -rf .venv
