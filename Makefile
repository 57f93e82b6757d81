# Every target shares one .venv, which setup.sh creates if it is missing, incomplete or out of date.
# PYTHON=/path/to/python chooses another interpreter; ARGS="..." is passed to pytest.

.PHONY: help venv demo test test-slow docs lab app bench-fuse clean

help:
	@echo "make demo       run all notebooks on the miniature world, into executed/mini"
	@echo "make test       run the fast tests"
	@echo "make test-slow  run the slow tests"
	@echo "make docs       build the documentation into site/, with the notebooks that make demo executed"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make app        show the playground as a page without code"
	@echo "make bench-fuse time fusing against mergekit and others (half an hour, 15 GB of disk)"
	@echo "make venv       set up .venv only"
	@echo "make clean      remove .venv, build files and caches; runs/ and executed/ are kept"

# One process of tests for every core.
parallel = -n logical --dist worksteal

venv:
	@bash setup.sh

demo: venv
	.venv/bin/fusinglib run --all --params params/mini --output executed/mini

test: venv
	.venv/bin/python -m pytest $(parallel) $(ARGS)

test-slow: venv
	.venv/bin/python -m pytest $(parallel) -m slow $(ARGS)

docs: venv executed/mini/summary.html
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build

executed/mini/summary.html:
	$(MAKE) demo

lab: venv
	.venv/bin/fusinglib lab

# Voila leaves out cells tagged skip-execution unless told otherwise; papermill should.
app: venv
	.venv/bin/voila notebooks/fuse_playground.ipynb --VoilaExecutor.skip_cells_with_tag=

mergekit = benchmarks/.venv-mergekit

bench-fuse: venv $(mergekit)/complete
	.venv/bin/python benchmarks/fuse.py --mergekit $(mergekit)/bin/python

$(mergekit)/complete: benchmarks/fuse-requirements.txt
	.venv/bin/python -m venv --clear $(mergekit)
	$(mergekit)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf .venv $(mergekit) build dist site .cache *.egg-info .pytest_cache .ruff_cache
	find . -path ./runs -prune -o -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo "Kept: runs/ (finished runs) and executed/ (executed notebooks)."
