# Every target sets up .venv first; a second run finds it ready and starts in seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA_DIR ?= data/brain-tumor-mri-dataset
EXPORT ?= model-lite

.PHONY: app test test-all train lint lock audit-deps test-lowest phantoms web federated clean

# what the page needs: no PyTorch, as model-lite has its ONNX file
$(VENV)/.ready-page: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@test -d $(VENV) || echo 'Once: about 1 GB of packages into $(VENV), some minutes; pip shows each as it comes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[page]'
	touch $@

$(VENV)/.ready: $(VENV)/.ready-page requirements.txt
	@echo 'Once: about 7 GB of packages into $(VENV), minutes; pip shows each as it comes.'
	@command -v nvidia-smi >/dev/null || echo 'No NVIDIA driver: PIP_EXTRA_INDEX_URL set to an index of CPU builds of torch saves most of it.'
	$(BIN)/pip install -r requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

app: $(VENV)/.ready-page
	$(BIN)/python app.py

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# what an install from constraints.txt brings: `pip install -c constraints.txt -r requirements.txt`
$(VENV)-tools/.ready:
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/bin/pip install --quiet uv pip-audit
	touch $@

lock: $(VENV)-tools/.ready
	$(VENV)-tools/bin/uv pip compile pyproject.toml requirements-dev.txt --extra train --extra page --extra export \
		--extra clinical --universal --python-version 3.10 --no-header --no-annotate --quiet \
		--no-emit-package brain-tumor-mri --output-file constraints.txt

# known vulnerabilities of the locked versions; needs the network. --strict: a package that no advisory was had for is no pass
audit-deps: $(VENV)-tools/.ready
	@$(VENV)-tools/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict 2>$(VENV)-tools/audit.log \
		|| { echo 'audit-deps: vulnerable packages stand above, or advisories were not to be had: $(VENV)-tools/audit.log' >&2; exit 1; }

# the lowest versions that pyproject.toml allows still answer, and still refuse what attacks them
test-lowest: $(VENV)-tools/.ready
	$(VENV)-tools/bin/uv venv --quiet --clear --python $(PYTHON) $(VENV)-lowest
	$(VENV)-tools/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct -e '.[train,page]' 'pytest>=8.3'
	$(VENV)-lowest/bin/brain-tumor-mri predict examples/phantom-glioma.png --model model-lite --backend torch
	$(VENV)-lowest/bin/python -m pytest -m "not slow" tests/inference/test_hostile_folders.py tests/images/test_formats.py \
		tests/images/test_archive.py \
		tests/test_train_command.py::test_a_run_leaves_the_plain_hub_layout_metrics_tables_and_plots

train: $(VENV)/.ready
	test -d $(DATA_DIR)/Training || $(BIN)/python data_scripts/download_kaggle.py --output_dir $(DATA_DIR)
	$(BIN)/accelerate launch --quiet train.py configs/seed.yaml --data_dir $(DATA_DIR)

phantoms: $(VENV)/.ready
	$(BIN)/python data_scripts/make_phantoms.py --output_dir data/phantoms

# Flower asks for other versions of several packages, and for Python 3.11 or later
.venv-federated/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-federated
	.venv-federated/bin/pip install --quiet -e '.[federated]' pytest
	touch $@

federated: .venv-federated/.ready
	@echo '.venv-federated/bin/brain-tumor-mri federate --config configs/federated.yaml'

web/node_modules/.ready: web/package.json
	npm install --prefix web --ignore-scripts --no-package-lock --silent
	touch $@

web: $(VENV)/.ready web/node_modules/.ready
	$(BIN)/python web/build.py --model $(EXPORT) --output web/dist

clean:
	rm -rf $(VENV) $(VENV)-tools $(VENV)-lowest .venv-federated web/node_modules web/dist
