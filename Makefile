# Two commands matter: `make sweep` and `make test`.  Both make .venv with the pinned dependencies first.
PYTHON ?= python3
BIN := .venv/bin

# Some hundred processes of a test run import the tree: each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: sweep test test-fast mutants check dashboard docs bench bench-peers wheels clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

sweep: .venv/installed
	$(BIN)/python tune/sweep.py $(ARGS)

# Triton, for tests of what a GPU would run; not among the packages, because torch behaves otherwise where it finds it.
.venv/triton: | .venv/installed
	-$(BIN)/python -m pip install --quiet --no-deps --target $@ "triton==3.7.1"

# What slow tests of foreign models and trainers need (`-m slow`).  Beside the environment and without their torch: where
# torchao finds transformers it imports that too, and the wheel of torchvision needs CUDA's libraries to be whole.
FRAMEWORKS := transformers==5.24.0 tokenizers safetensors huggingface-hub httpx2 httpcore2 truststore hf-xet tqdm typer \
	shellingham annotated-doc accelerate==1.15.0 lightning==2.6.6 pytorch-lightning==2.6.6 lightning-utilities \
	torchmetrics peft==0.21.2 scikit-learn==1.9.1 joblib threadpoolctl cloudpickle narwhals
.venv/frameworks: | .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ $(FRAMEWORKS)
.venv/vision: | .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ torchvision==0.28.0 timm==1.0.31

test: .venv/installed .venv/triton check
	$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder $(ARGS)

test-fast: .venv/installed
	$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder -m 'not (slow or ray or browser or compiled or long)' $(ARGS)

# Hours; goes on where it was broken off.  One module: make mutants ARGS="'altgrad.stability.guard*'"; see tests/mutants.py
mutants: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mutants]"
	OMP_NUM_THREADS=1 nice $(BIN)/python -P tests/mutants.py $(ARGS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dashboard: .venv/installed
	$(BIN)/streamlit run dashboard $(ARGS)

docs: .venv/installed
	$(BIN)/python docs/generate.py
	$(BIN)/python -m mkdocs build --strict

bench: .venv/installed
	$(BIN)/python -m bench $(ARGS)

# Beside .venv, whose pins they must not move; without their torch.  One that does not install is named in the table.
PEERS := torchao qtorch brevitas dependencies==2.0.1 unfoldNd unit-scaling einops docstring-parser ninja
bench-peers: .venv/installed
	for peer in $(PEERS); do \
		$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/peers $$peer || true; \
	done
	PYTHONPATH=build/peers $(BIN)/python -m bench.studies.peers $(ARGS)

# For `python -m bench.gpu` on a machine with torch and without a package index; of the Python there: PYTHON_THERE=3.12
PYTHON_THERE ?= 3.12
wheels: .venv/installed
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --python-version $(PYTHON_THERE) --dest wheels \
		--constraint constraints.txt pydantic pydantic-core annotated-types typing-inspection typing-extensions PyYAML \
		numpy pyarrow rich markdown-it-py mdurl pytest iniconfig pluggy packaging pygments pytest-timeout gfloat \
		array-api-compat ml-dtypes nvidia-ml-py

clean:
	rm -rf .venv results build dist mutants
