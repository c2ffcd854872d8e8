# `make demo` and `make test` are all a newcomer needs. Both want cargo, a C compiler, and npm or curl.
#
# DuckDB is linked as a prebuilt library that scripts/duckdb.sh fetches once; where there is none to fetch it is compiled
# from source, which takes half an hour more. Everything that is built lies in a cache folder outside the checkout, so
# several checkouts share one. Set LIANBO_CACHE, CARGO_TARGET_DIR or DUCKDB_LIB_DIR to have them elsewhere.

cache := $(or $(LIANBO_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lianbo)
CARGO_TARGET_DIR ?= $(cache)/target
export CARGO_TARGET_DIR

# $(call cargo,SUBCOMMAND,ARGUMENTS): cargo with the prebuilt DuckDB, or with DuckDB compiled in.
define cargo
@if folder=$$(scripts/duckdb.sh); then \
	export DUCKDB_LIB_DIR="$$folder"; \
	set -x; cargo $(1) --no-default-features $(2); \
else \
	echo "make: compiling DuckDB from source instead; the first time this takes half an hour or more" >&2; \
	set -x; cargo $(1) $(2); \
fi
endef

.PHONY: help demo test build release lint bench docs

help:
	@echo "make demo      the whole story against the built-in WeChat simulator"
	@echo "make test      every test"
	@echo "make build     the program, quickly built:   $(CARGO_TARGET_DIR)/debug/lianbo"
	@echo "make release   the program with DuckDB inside: $(CARGO_TARGET_DIR)/release/lianbo"
	@echo "make lint      formatting and clippy, warnings are errors"
	@echo "make bench     benchmarks"
	@echo "make docs      what of docs/ is generated: the tables, and the results in the notebooks"

demo:
	$(call cargo,run,-- demo)

test:
	$(call cargo,test,)

build:
	$(call cargo,build,)

# For packaging: default features, one file without a library beside it.
release:
	cargo build --release --locked

lint:
	cargo fmt --check
	$(call cargo,clippy,--all-targets -- -D warnings)

bench:
	$(call cargo,bench,)

docs: export LIANBO_WRITE_DOCS = 1
docs:
	$(call cargo,test,--test it docs::)
