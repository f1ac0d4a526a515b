# Two commands do everything on a fresh machine: make demo, make test.
# Empty: the newest suitable one that tools/setup.sh finds.
PYTHON ?=
PY := .venv/bin/python
INSTALL = PYTHON=$(PYTHON) bash tools/setup.sh
STAMP := .venv/.installed
# Two threads suit the small networks of the demos. They sleep while they wait for each other:
# spinning is a little faster on an idle machine and many times slower on a busy one.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo evaluate demo-coco demo-ade20k benchmarks gpu-check gpu-evidence test test-programs soak chaos upstream lint docs clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv with the pinned versions that training needs (skipped if nothing changed)

PINS := setup.py tools/setup.sh requirements/constraints.txt
$(STAMP): $(PINS)
	@$(INSTALL)
	@touch $@

$(STAMP)-%: $(PINS)  # with an extra of setup.py
	@$(INSTALL) --editable '.[$*]'
	@touch $(STAMP) $@

DIGITS := work_dirs/digits

demo: setup  ## pre-train a small ViT on digits with and without mixing (about 90 seconds on 2 cores)
	@$(PY) examples/demo.py --work-dir $(DIGITS)

$(DIGITS)/last_checkpoint: | setup
	@$(PY) examples/demo.py --work-dir $(DIGITS)

evaluate: setup $(DIGITS)/last_checkpoint  ## judge the demo's checkpoint: kNN, linear, few labels, fine-tuning
	@$(PY) -m mmpatchmix evaluate configs/patchmix_vit-digits_plain.py "$$(cat $(DIGITS)/last_checkpoint)" \
	  --finetune configs/finetune/vit-digits_plain.py

demo-coco: $(STAMP)-detection  ## train a detector with and without pre-training, on scenes of digits (3 to 6 minutes)
	@$(PY) examples/demo_coco.py

demo-ade20k: $(STAMP)-detection $(STAMP)-segmentation  ## train segmentation with and without pre-training, on scenes of a digit, with three seeds (10 to 14 minutes)
	@$(PY) examples/demo_ade20k.py

# Threads as torch chooses them: nothing else should run beside.
BENCHMARKS := mixing momentum data data:--table:decoders knn knn:--queries:50000:--bank:32768:--memory memory \
  step:--crops:2:--precision:fp32 step:--crops:2:--precision:bf16 step:--crops:10:--precision:fp32 \
  step:--crops:10:--precision:bf16 step:--table:parts:--precision:auto step:--table:freed-memory:--precision:auto \
  device_cost:--table:counted device_cost:--table:modelled device_cost:--table:compiled

benchmarks: $(STAMP)-all  ## measure what docs/performance.md reports (about 45 minutes on 2 cores)
	@$(INSTALL) -r requirements/benchmarks.txt
	@mkdir -p benchmarks/results
	@for name in $(BENCHMARKS); do \
	  set -- $$(echo $$name | tr : ' '); file=benchmarks/results/$$(echo $$name | tr -s ':-' '-').txt; \
	  script=$$1; shift; echo "benchmarks/$$script.py $$* -> $$file"; \
	  env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY $(PY) benchmarks/$$script.py "$$@" >$$file || exit 1; \
	done

gpu-check: $(STAMP)-all  ## prove and measure on a GPU, in at most 8 minutes; again for what is left
	@$(INSTALL) -r requirements/benchmarks.txt
	@env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY $(PY) benchmarks/gpu_check.py
	@$(PY) benchmarks/evidence.py

DATA ?= data/cifar10.tar.gz
gpu-evidence: $(STAMP)-all  ## compare M = 1 and M = 2 on a GPU, in at most 9 minutes; again for what is left
	@env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY $(PY) benchmarks/gpu_evidence.py --data $(DATA)
	@$(PY) benchmarks/evidence.py

PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(STAMP)-all lint  ## lint and run all tests but those of whole programs and of compiled steps
	@$(PYTEST) -m 'not program'
	@echo 'Not run: the tests of whole programs and compiled steps. They are run by make test-programs.'

test-programs: $(STAMP)-all  ## run these: upstream's tools, the demo, the notebook, restarts, compiled steps
	@$(PYTEST) -m program

SOAK ?= 100
soak: $(STAMP)-all  ## kill, fill, stop and cut runs by the hundred (about 30 minutes on an idle machine; disks and links need root)
	@SOAK=$(SOAK) OMP_NUM_THREADS=1 $(PY) -m tests.faults.soak

chaos: $(STAMP)-all  ## kill runs at every file event and resume them, by ckpt-chaos (hours on 2 cores)
	@OMP_NUM_THREADS=1 $(PY) -W ignore::RuntimeWarning -m tests.faults.chaos

upstream: $(STAMP)-all  ## run mmengine's own tests with our classes in place of its own (downloads them)
	@$(INSTALL) parameterized
	@OMP_NUM_THREADS=1 $(PY) -m tests.upstream

lint: $(STAMP)-all
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/shellcheck tools/*.sh .ci/run

docs: setup  ## build the documentation into site/, which opens from the disk
	@$(INSTALL) -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo "written: site/index.html"

clean:  ## remove .venv (work_dirs stays)
	rm -rf .venv
