# The jobs of continuous integration, each also by itself; they need: pip install -e ".[test]", and `peers` the extra `peers` as well.
# A job whose name is a marker of pytest runs the tests that `pytest` alone leaves out.
JOBS = lint test isa blas c leaks wheel browser peers
.PHONY: all $(JOBS) docstrings

all: $(JOBS)

lint:
	ruff check .
	ruff format --check .
	cython-lint src
	mypy

test:
	pytest -n 2

# The kernels' tests on every instruction set of this processor but the one that `test` uses.
isa:
	here=$$(python -c "import gradcore; print(gradcore.info()['isa'])"); \
	all=$$(GRADCORE_ISA=? python -c "import gradcore" 2>&1 | tail -1 | sed -n 's/.*support //p' | tr -d ,); \
	echo "instruction sets: $$all; $$here is tested by itself"; test -n "$$all"; \
	for isa in $$all; do \
	    test $$isa = $$here || GRADCORE_ISA=$$isa pytest -q -n 2 -m "kernels and not (peers or slow)" || exit 1; \
	done

# What NumPy computes, rounded as another processor's BLAS rounds.
blas:
	here=$$(python -c "import threadpoolctl, numpy; \
	    print([pool['architecture'] for pool in threadpoolctl.threadpool_info() if pool['internal_api'] == 'openblas'][0])"); \
	case $$here in Haswell|Zen) other=Prescott ;; *) other=Haswell ;; esac; \
	echo "OPENBLAS_CORETYPE: $$other in place of $$here"; \
	OPENBLAS_CORETYPE=$$other pytest -q -k "test_reference or test_meanfield or test_losses or test_init or test_tasks"

c leaks:
	pytest -q -n 2 -m $@

peers:
	pytest -q -n 2 -m $@
	pytest -q -n 2 gradcore/onnx gradcore/sklearn gradcore/torch tests/test_docstrings.py  # what is skipped without the libraries

wheel browser:
	pytest -q -m $@

# What numpydoc finds missing in public docstrings, file by file.
docstrings:
	python tests/*docstrings.py
