// Package topology is every stream, consumer and bucket of Millrace, as data.
//
// One writer applies it (Apply); services bind to what is there and fail loudly when it is missing. All names carry
// the prefix of the deployment, so that several can share a broker.
package topology

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Topology knows the names of one deployment.
type Topology struct {
	// Prefix starts every subject, stream and bucket name: letters, digits, "-" and "_".
	Prefix string
	// Replicas of each stream: 1 on a single broker, 3 on a cluster.
	Replicas int
}

// The streams, by what they carry.
const (
	Notifications = "notifications"
	Arrivals      = "arrivals"
	Timers        = "timers"
	Jobs          = "jobs"
	Tasks         = "tasks"
	Files         = "files"
	Media         = "media"
	Events        = "events"
	Runs          = "runs"
	Reports       = "reports"
	Deletions     = "deletions"
	Exports       = "exports"
	DeadLetters   = "dead"
	Deliveries    = "deliveries"
	Commands      = "commands"
)

// The key-value buckets.
const (
	Connectors      = "connectors"
	Indexes         = "indexes"
	Automations     = "automations"
	Windows         = "windows"
	Scans           = "scans"
	Prompts         = "prompts"
	JobRecords      = "job"
	RunRecords      = "run"
	DeletionRecords = "deletion"

	ExportRecords     = "export"
	ExportAutomations = "export_automations"

	Keys     = "keys"
	Leases   = "leases"
	Answers  = "answers"
	Webhooks = "webhooks"

	CommandRecords = "command"
)

// Documents is the object store of what is too big for a record: job reports, the media lists of runs, and exports for
// download.
const Documents = "documents"

// The durable consumers.
const (
	ScannerNotifications = "scanner-notifications"
	ScannerJobsLive      = "scanner-jobs-live"
	ScannerJobsBulk      = "scanner-jobs-bulk"
	ScannerDue           = "scanner-due"
	DebouncerArrivals    = "debouncer-arrivals"
	ImporterLive         = "importer-live"
	ImporterBulk         = "importer-bulk"
	ImporterDeletions    = "importer-deletions"
	PresetTriggerJobs    = "preset-trigger-jobs"
	PresetTriggerWanted  = "preset-trigger-wanted"
	WorkerRuns           = "worker-runs"
	ExporterExports      = "exporter-exports"
	ExporterRuns         = "exporter-runs"
	WebhooksEvents       = "webhooks-events"
	AdminCommands        = "admin-commands"
)

// Subject joins tokens behind the prefix: Subject("arrival", a, h) is "millrace.arrival.a.h".
func (t Topology) Subject(tokens ...string) string {
	n := len(t.Prefix)
	for _, s := range tokens {
		n += 1 + len(s)
	}
	b := make([]byte, 0, n)
	b = append(b, t.Prefix...)
	for _, s := range tokens {
		b = append(append(b, '.'), s...)
	}
	return string(b)
}

// Stream is the broker's name of a stream.
func (t Topology) Stream(name string) string { return t.Prefix + "-" + name }

// Bucket is the broker's name of a key-value bucket or object store.
func (t Topology) Bucket(name string) string { return t.Prefix + "-" + name }

// Stream is a row of the table.
type Stream struct {
	Name   string // Topology.Stream makes the broker's name of it
	Why    string
	Config jetstream.StreamConfig
}

// Consumer is a row of the table.
type Consumer struct {
	Stream string // key of the stream
	Why    string
	Config jetstream.ConsumerConfig // Durable is the broker's name
}

const day = 24 * time.Hour

// lease is how long a delivery outlives its process. Whoever works longer renews it three times per lease, so it may be
// short: it is what a crash costs.
const lease = 20 * time.Second

// Streams is the table of streams, the ones behind key-value buckets and the object store included.
func (t Topology) Streams() []Stream {
	limits, work := jetstream.LimitsPolicy, jetstream.WorkQueuePolicy
	rows := []Stream{
		t.stream(Notifications, "raw provider payloads as received; replayable; other programs may publish here",
			limits, []string{"notification.*"}, func(c *jetstream.StreamConfig) { c.MaxAge = 7 * day }),
		t.stream(Arrivals, "the newest version of an object replaces the older inside a window; purged once planned",
			limits, []string{"arrival.*.*"}, onePerSubject),
		t.stream(Timers, "alarm clocks only: nothing that could evict one, nothing sources from it",
			limits, []string{"timer.*.*.*", "due.*.*"}, onePerSubject, func(c *jetstream.StreamConfig) {
				c.AllowMsgSchedules = true
				c.AllowMsgTTL = true
			}),
		t.stream(Jobs, "planning work", work, []string{"job.requested.*.*"}, onePerSubject),
		t.stream(Tasks, "transfer work", work, []string{"task.*.*.*"}, onePerSubject),
		t.stream(Files, "the current state of each object of each unfinished job",
			limits, []string{"file.*.*"}, onePerSubject),
		t.stream(Media, "the ledger of settled object versions; creating an imported one is the commit point",
			limits, []string{"media.*.*.*"}, onePerSubject),
		t.stream(Events, "the public feed", limits, []string{"event.>"},
			func(c *jetstream.StreamConfig) { c.MaxAge = 30 * day }),
		t.stream(Runs, "runs to be made, and work for executors", work, []string{"run.wanted.*", "run.requested.*"}),
		t.stream(Reports, "what executors say back, the newest per medium", limits, []string{"run.report.*.*"}, onePerSubject),
		t.stream(Deletions, "media and indexes that somebody deleted and that are still to be cleared away",
			work, []string{"delete.*"}, onePerSubject),
		t.stream(Exports, "work for exporters", work, []string{"export.requested.*"}, onePerSubject),
		t.stream(Deliveries, "what was and is to be sent to webhooks, with its schedule and its log",
			limits, []string{"delivery.*.*", "envelope.*"}, onePerSubject, func(c *jetstream.StreamConfig) { c.MaxAge = 30 * day }),
		t.stream(DeadLetters, "poison, with its reason; replayable", limits, []string{"dead.*.*"},
			func(c *jetstream.StreamConfig) { c.MaxAge = 30 * day }),
		t.stream(Commands, "what people and programs ask for without waiting for an answer", work, []string{"command.*.*"}),
	}
	for _, b := range []struct{ name, why string }{
		{Connectors, "access to buckets; credentials sealed"},
		{Indexes, "what media are imported into"},
		{Automations, "saved configuration, one import automation per index"},
		{Windows, "the debounce window of each automation: a compare-and-set register"},
		{Scans, "when an automation was last listed, what that found, and when it is next"},
		{Prompts, "what runs ask"},
		{JobRecords, "one record per job: status and progress"},
		{RunRecords, "one record per run: status and progress"},
		{DeletionRecords, "how far the deletion of each index is; that of a medium stands in the ledger"},
		{ExportRecords, "one record per export: status and where the file is"},
		{ExportAutomations, "saved configuration, one export automation per index"},
		{Keys, "API keys, hashed"},
		{Leases, "who does what only one should do"},
		{Webhooks, "who is told of what; signing secrets sealed"},
	} {
		rows = append(rows, t.keyValue(b.name, b.why))
	}
	answers := t.keyValue(Answers, "what was answered to requests with an idempotency key; sealed")
	answers.Config.MaxAge = day + time.Hour // a day is promised
	rows = append(rows, answers)
	commands := t.keyValue(CommandRecords, "what became of each command, so that a repetition is known as one for a week")
	commands.Config.MaxAge = 7 * day
	rows = append(rows, commands)
	return append(rows, t.objectStore(Documents, "job reports, media lists of runs, exports for download"))
}

// Consumers is the table of durable consumers. All pull, all acknowledge explicitly, and none has a delivery limit that
// the server would enforce in silence: giving up is ours (bus.Outcome).
func (t Topology) Consumers() []Consumer {
	return []Consumer{
		t.consumer(ScannerNotifications, Notifications, "which files?", 20_000, "notification.*"),
		t.consumer(ScannerJobsLive, Jobs, "plans windows", 200_000, "job.requested.live.*"),
		t.consumer(ScannerJobsBulk, Jobs, "plans one-time jobs", 10_000, "job.requested.bulk.*"),
		t.consumer(ScannerDue, Timers, "re-scans", 1_000, "due.scan.*"),
		t.consumer(DebouncerArrivals, Arrivals, "merges arrivals into windows", 20_000, "arrival.*.*"),
		t.consumer(ImporterLive, Tasks, "imports what somebody waits for", 20_000, "task.live.*.*"),
		t.consumer(ImporterBulk, Tasks, "imports backfills", 20_000, "task.bulk.*.*"),
		t.consumer(ImporterDeletions, Deletions, "clears away what was deleted", 1_000, "delete.*"),
		t.consumer(PresetTriggerJobs, Events, "starts runs after jobs", 1_000,
			"event.import_job.completed.*.*", "event.import_job.partial_completed.*.*"),
		t.consumer(PresetTriggerWanted, Runs, "makes the runs that people ask for", 1_000, "run.wanted.*"),
		t.consumer(WebhooksEvents, Events, "makes deliveries of events", 10_000, "event.import_job.*.*.*", "event.media.*.*.*",
			"event.media.processing.*.*.*", "event.prompt_run.*.*.*", "event.export.*.*.*"),
		t.consumer(WorkerRuns, Runs, "carries runs out", 1_000, "run.requested.*"),
		t.consumer(ExporterExports, Exports, "makes exports", 1_000, "export.requested.*"),
		t.consumer(ExporterRuns, Events, "exports runs that completed", 1_000,
			"event.prompt_run.completed.*.*", "event.prompt_run.partial_completed.*.*"),
		t.consumer(AdminCommands, Commands, "carries commands out", 1_000, "command.*.*"),
	}
}

func (t Topology) stream(name, why string, keep jetstream.RetentionPolicy, subjects []string, opts ...func(*jetstream.StreamConfig)) Stream {
	c := jetstream.StreamConfig{
		Name:               t.Stream(name),
		Description:        why,
		Retention:          keep,
		Storage:            jetstream.FileStorage,
		Replicas:           max(t.Replicas, 1),
		Discard:            jetstream.DiscardOld,
		AllowDirect:        true,
		AllowAtomicPublish: true,
		Duplicates:         2 * time.Minute,
	}
	for _, s := range subjects {
		c.Subjects = append(c.Subjects, t.Subject(s))
	}
	for _, o := range opts {
		o(&c)
	}
	return Stream{Name: name, Why: why, Config: c}
}

func onePerSubject(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }

// keyValue is the stream that a key-value client expects behind a bucket (NATS ADR-8), made here rather than by the
// client so that it takes atomic batches too: a group of compare-and-sets costs about four fsyncs instead of one each.
func (t Topology) keyValue(name, why string) Stream {
	b := t.Bucket(name)
	return Stream{Name: name, Why: why, Config: jetstream.StreamConfig{
		Name:               "KV_" + b,
		Description:        why,
		Subjects:           []string{"$KV." + b + ".>"},
		Storage:            jetstream.FileStorage,
		Replicas:           max(t.Replicas, 1),
		MaxMsgsPerSubject:  1,
		Discard:            jetstream.DiscardNew,
		DenyDelete:         true,
		AllowRollup:        true,
		AllowDirect:        true,
		AllowAtomicPublish: true,
		Duplicates:         2 * time.Minute,
	}}
}

// objectStore is the stream that an object store client expects (NATS ADR-20).
func (t Topology) objectStore(name, why string) Stream {
	b := t.Bucket(name)
	return Stream{Name: name, Why: why, Config: jetstream.StreamConfig{
		Name:        "OBJ_" + b,
		Description: why,
		Subjects:    []string{"$O." + b + ".C.>", "$O." + b + ".M.>"},
		Storage:     jetstream.FileStorage,
		Replicas:    max(t.Replicas, 1),
		Discard:     jetstream.DiscardNew,
		AllowRollup: true,
		// Not AllowDirect: a replica that lags would answer that a document which a record names is not there.
		Duplicates: 2 * time.Minute,
	}}
}

func (t Topology) consumer(name, stream, why string, pending int, filters ...string) Consumer {
	c := jetstream.ConsumerConfig{
		Durable:       name,
		Description:   why,
		AckPolicy:     jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckWait:       lease,
		MaxDeliver:    -1,
		MaxAckPending: pending,
	}
	for _, f := range filters {
		c.FilterSubjects = append(c.FilterSubjects, t.Subject(f))
	}
	return Consumer{Stream: stream, Why: why, Config: c}
}
