# Everything here needs Go and make; what else it needs it builds itself, from the versions in tools.mod.

SERVICES := scanner debouncer importer preset-trigger webhooks exporter admin
MODULES  := services shared schemas
PACKAGES := $(MODULES:%=./%/...)
BINARIES := ./services/millrace/cmd/millrace $(foreach s,$(SERVICES),./services/$(s)/cmd/$(s))

# A tarball has no history: the version is then "devel" and nothing fails.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)

# Reproducible: no paths of this machine and no C. The stamp of the version control system is off because it fails where
# the checkout belongs to somebody else, as in many a CI; the version comes from above.
FLAGS := -trimpath -buildvcs=false
BUILD := CGO_ENABLED=0 go build $(FLAGS)
LDFLAGS := -s -w -X millrace/shared/process.version=$(VERSION)

# The tools have a module file of their own. -modfile works outside a workspace only, and in the folder of some module;
# it takes nothing from that module.
TOOLS := cd schemas && GOWORK=off

.DEFAULT_GOAL := help
.PHONY: help build test race test-clouds bulk sim mutations crash chaos soak fuzz lint vuln bench gate run demo schemas clean

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/millrace and one binary per service
	@mkdir -p bin
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/ $(BINARIES)

# One package more at a time than there are processors: those of whole programs wait more than they compute. They take
# longest, and are in the first module, so that nobody waits for them alone.
TESTS := -p $$(($$(getconf _NPROCESSORS_ONLN) + 1)) -timeout 20m

# With the flags of BUILD, so that what one of them has compiled serves the others; so it is for linters, below.
TEST := CGO_ENABLED=0 go test $(FLAGS)

# The S3 server that tests talk to is compiled beforehand, once, and not by each program that wants it while the clocks of
# others run.
test: ## all tests
	$(TOOLS) CGO_ENABLED=0 GOFLAGS='$(FLAGS)' go tool -modfile=../tools.mod -n versitygw >/dev/null
	$(TEST) $(TESTS) $(PACKAGES)

# The detector sees the process of the test, and not the programs that it starts.
race: ## the tests again, with the race detector, but for those that start whole programs (needs a C compiler)
	go test -race $(TESTS) $$(go list $(PACKAGES) | grep -v -e '/services/millrace$$' -e '/services/millrace/bench$$')

# What each provider's page says: MILLRACE_TEST_GCS, MILLRACE_TEST_S3 and MILLRACE_TEST_AZURE name empty buckets.
test-clouds: ## the tests of storage against real buckets that the environment names
	go test -count 1 -timeout 2h -v ./shared/bucket/gcs ./shared/bucket/s3 ./shared/bucket/azure -run '^TestCloud$$'

# The server that stands in for Google goes through all objects to find one, which takes longest.
bulk: ## 10,000 files on each kind of storage, not only on a folder
	MILLRACE_BULK=1 $(TEST) -count 1 -timeout 1h -v ./services/millrace -run '^TestBulkDrops$$'

# SEED=N is one history alone, shrunk when it fails; SEEDS=N is how many otherwise.
sim: SEEDS = 10000
sim: ## 10,000 histories of the pure core (SEED=n: one, SEEDS=n: so many)
	MILLRACE_SIM_SEEDS=$(SEEDS) MILLRACE_SIM_SEED=$(SEED) $(TEST) -count 1 -timeout 30m ./services/sim -run 'TestSimulation|TestSeedsThatFailed'

mutations: ## break one rule at a time, and see that a test goes red
	MILLRACE_MUTATIONS=1 go test -count 1 -timeout 30m -v ./services/sim -run TestMutations

# Eight cells at a time, which mostly wait.
crash: ## the crash matrix: each failpoint, killed, failing and stalled (AT=name: one of them)
	MILLRACE_CRASH=$(or $(AT),all) $(TEST) -count 1 -timeout 30m -parallel 8 -v ./services/millrace -run TestCrashMatrix

# A run that fails says its seed and leaves its history and logs in a folder. SEEDS=n is n seeds from SEED on.
chaos: ## faults on separate processes and three brokers, by a seed (SEED=n, FOR=1m)
	MILLRACE_CHAOS=$(or $(FOR),1m) MILLRACE_SEED=$(SEED) MILLRACE_SEEDS=$(SEEDS) $(TEST) -count 1 -timeout 24h -v ./services/millrace -run 'TestChaos$$'

soak: ## the same for long, without killing what is measured: memory, goroutines and disk (FOR=1h)
	MILLRACE_SOAK=$(or $(FOR),1h) MILLRACE_SEED=$(SEED) $(TEST) -count 1 -timeout 24h -v ./services/millrace -run 'TestSoak$$'

fuzz: FOR = 30s
fuzz: ## each fuzz target for 30 s (FOR=5m: so long)
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z]+' $(MODULES) | while IFS=: read -r file func; do \
		go test -run '^$$' -fuzz "^$${func#func }$$" -fuzztime $(FOR) "./$$(dirname "$$file")" || exit 1; \
	done

lint: ## go vet and golangci-lint (the first run builds it)
	CGO_ENABLED=0 go vet $(FLAGS) $(PACKAGES)
	CGO_ENABLED=0 GOFLAGS="$$GOFLAGS $(FLAGS)" $$($(TOOLS) go tool -modfile=../tools.mod -n golangci-lint) run $(PACKAGES)

vuln: ## known vulnerabilities of what is built in (asks the Go vulnerability database)
	$$($(TOOLS) go tool -modfile=../tools.mod -n govulncheck) $(PACKAGES)

bench: build bin/rclone bin/versitygw bin/benthos bin/onebyone ## every figure beside its yardstick
	bin/millrace bench

# Those that take seconds, not minutes. What is compared are ratios.
gate: build bin/rclone ## fail when a quick figure is worse beside its yardstick than docs/bench.md says
	bin/millrace bench --only match,arrivals,reference,small,nats --against docs/bench.md

run: build ## start everything on ./data, watching ./inbox
	bin/millrace up --quickstart

demo: build ## the whole story in a temporary folder, in under a minute
	bin/millrace demo

schemas: ## schemas, examples, Go types and subjects agree
	go test ./schemas/... ./shared/event/...

clean: ## remove what was built, not the data
	rm -rf bin

# What a plain copy takes, and what serves buckets, for the bench.
bin/rclone: TOOL = github.com/rclone/rclone
bin/versitygw: TOOL = github.com/versity/versitygw/cmd/versitygw
bin/rclone bin/versitygw: tools.mod tools.sum
	@mkdir -p bin
	$(TOOLS) $(BUILD) -modfile=../tools.mod -o ../$@ $(TOOL)

# What one would use instead, in a module of its own.
RIVALS := services/millrace/bench/rivals
bin/benthos bin/onebyone: bin/%: $(RIVALS)/%/main.go $(RIVALS)/go.mod $(RIVALS)/go.sum
	@mkdir -p bin
	cd $(RIVALS) && GOWORK=off $(BUILD) -o $(CURDIR)/$@ ./$*
