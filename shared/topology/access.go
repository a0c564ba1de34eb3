package topology

import (
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Access is what one service does on the broker, in the words of the table of streams. What its user is permitted
// follows from it; see Users.
type Access struct {
	Service   string
	Consumes  []string // durable consumers
	Resets    []string // those of them that it takes back when they stand still
	Publishes []string // subjects behind the prefix, beside its own dead letters
	Reads     []string // streams, buckets and Documents: single messages and scans; buckets and Documents also by consumers
	Follows   []string // streams by consumers of its own that leave nothing behind, which can read all of the stream
	Writes    []string // buckets and Documents
	Purges    []string // streams
}

// Accesses is the table of services. The admin is not in it: it makes the streams, and so may do what they need.
func Accesses() []Access {
	return []Access{
		{
			Service:  "scanner",
			Consumes: []string{ScannerNotifications, ScannerJobsLive, ScannerJobsBulk, ScannerDue},
			Publishes: []string{
				"notification.*", "arrival.*.*", "task.*.*.*", "file.*.*", "media.*.*.*", "timer.scan.*.*", "due.scan.*",
				"event.import_job.started.*.*", "event.automation.drift.*.*",
			},
			Reads:  []string{Arrivals, Files, Media, Connectors, Indexes, Automations, Scans, JobRecords, Leases},
			Writes: []string{Scans, JobRecords, Leases}, Purges: []string{Arrivals},
		},
		{
			Service:   "debouncer",
			Consumes:  []string{DebouncerArrivals},
			Publishes: []string{"job.requested.live.*"},
			Reads:     []string{Arrivals, Automations, Windows},
			Writes:    []string{Windows}, Purges: []string{Arrivals},
		},
		{
			Service:   "importer",
			Consumes:  []string{ImporterLive, ImporterBulk, ImporterDeletions},
			Publishes: []string{"file.*.*", "media.*.*.*", "arrival.*.*", "event.import_job.*.*.*", "event.media.created.*.*"},
			Reads: []string{
				Files, Media, Arrivals, Connectors, Indexes, Automations, ExportAutomations, Windows, JobRecords, RunRecords,
				DeletionRecords, Leases, Documents,
			},
			Follows: []string{Files},
			Writes: []string{
				Connectors, Indexes, Automations, ExportAutomations, Windows, JobRecords, RunRecords, DeletionRecords, Leases, Documents,
			},
			Purges: []string{Tasks, Files, Media, Arrivals},
		},
		{
			Service:   "preset-trigger",
			Consumes:  []string{PresetTriggerJobs, PresetTriggerWanted},
			Resets:    []string{PresetTriggerJobs, PresetTriggerWanted},
			Publishes: []string{"run.requested.*", "event.prompt_run.*.*.*", "event.media.processing.*.*.*"},
			Reads:     []string{Media, Reports, Indexes, Prompts, JobRecords, RunRecords, Leases, Documents}, Follows: []string{Reports},
			Writes: []string{RunRecords, Leases, Documents},
		},
		{
			Service:   "webhooks",
			Consumes:  []string{WebhooksEvents},
			Publishes: []string{"delivery.*.*", "envelope.*"},
			Reads:     []string{Deliveries, Webhooks, JobRecords, RunRecords, Leases, Documents}, Follows: []string{Deliveries},
			Writes: []string{Webhooks, Leases}, Purges: []string{Deliveries},
		},
		{
			Service:   "exporter",
			Consumes:  []string{ExporterExports, ExporterRuns},
			Resets:    []string{ExporterRuns},
			Publishes: []string{"export.requested.*", "event.export.*.*.*"},
			Reads: []string{
				Reports, Media, Connectors, Indexes, JobRecords, RunRecords, ExportRecords, ExportAutomations, Documents,
			},
			Writes: []string{ExportRecords, ExportAutomations, Documents},
		},
		{
			Service:   "worker",
			Consumes:  []string{WorkerRuns},
			Publishes: []string{"run.report.*.*"},
			Reads:     []string{Reports, RunRecords, Documents},
		},
	}
}

// User is what one user of the broker may do. What is not allowed is denied.
type User struct {
	Name      string
	Why       string
	Publish   []string
	Deny      []string // of what Publish allows
	Subscribe []string
	Responses bool // may answer each request that it was sent, once
}

// Inbox is the prefix of the inboxes of a service, so that no user can read what another is answered.
func Inbox(service string) string { return "_INBOX_" + service }

// AllInOne is the user of a process that runs all services on a broker that is not its own.
const AllInOne = "millrace"

// Users is the users of a deployment: one per service, and those who knock at the doors.
func (t Topology) Users() []User {
	users := []User{
		t.provisioner("admin", "makes the streams; answers requests, carries out commands"),
		t.provisioner(AllInOne, "all services in one process"),
	}
	for _, a := range Accesses() {
		users = append(users, t.user(a))
	}
	return append(users,
		User{
			Name: "client", Why: "people and programs that send requests and commands, and hear of events; has the scope admin",
			Publish:   []string{t.Subject("api", ">"), t.Subject("command", "*", "*"), "$SRV.>"},
			Subscribe: []string{"_INBOX.>", t.Subject("event", ">")},
		},
		User{
			Name: "notifier", Why: "storage systems that publish their notifications here",
			Publish: []string{t.Subject("notification", "*")}, Subscribe: []string{Inbox("notifier") + ".>"},
		},
	)
}

// provisioner may do all that this deployment needs, but neither remove nor overwrite a stream.
func (t Topology) provisioner(name, why string) User {
	publish := []string{
		t.Subject(">"), "$JS.API.INFO", "$JS.API.STREAM.>", "$JS.API.CONSUMER.>", "$JS.API.DIRECT.>", "$JS.ACK.>", "$JS.FC.>",
	}
	for _, s := range t.Streams() {
		if s.Config.Name != t.Stream(s.Name) { // buckets and documents
			publish = append(publish, s.Config.Subjects...)
		}
	}
	return User{
		Name: name, Why: why, Responses: true,
		Publish:   publish,
		Deny:      []string{"$JS.API.STREAM.DELETE.>", "$JS.API.STREAM.RESTORE.>", "$JS.API.STREAM.SNAPSHOT.>", "$JS.API.STREAM.MSG.DELETE.>"},
		Subscribe: []string{Inbox(name) + ".>", t.Subject("api", ">"), "$SRV.>"},
	}
}

func (t Topology) user(a Access) User {
	streams, consumers := make(map[string]Stream), make(map[string]Consumer)
	for _, s := range t.Streams() {
		streams[s.Name] = s
	}
	for _, c := range t.Consumers() {
		consumers[c.Config.Durable] = c
	}
	stored := func(name string) string { return streams[name].Config.Name }

	// What there is may be looked at by all: each service checks at its start that nothing is missing.
	publish := []string{"$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.INFO.*.*", t.Subject("dead", a.Service, "*")}
	for _, c := range a.Consumes {
		s := t.Stream(consumers[c].Stream)
		// Acknowledgements have two forms; the second one, with the domain and the account, is that of coming servers.
		publish = append(publish, "$JS.API.CONSUMER.MSG.NEXT."+s+"."+c, "$JS.ACK."+s+"."+c+".>", "$JS.ACK.*.*."+s+"."+c+".>")
	}
	for _, c := range a.Resets {
		publish = append(publish, "$JS.API.CONSUMER.RESET."+t.Stream(consumers[c].Stream)+"."+c)
	}
	for _, s := range a.Publishes {
		publish = append(publish, t.Subject(s))
	}
	for _, name := range a.Reads {
		s := stored(name)
		publish = append(publish, "$JS.API.DIRECT.GET."+s, "$JS.API.DIRECT.GET."+s+".>", "$JS.API.STREAM.MSG.GET."+s)
	}
	for _, name := range slices.Concat(a.Follows, slices.DeleteFunc(slices.Clone(a.Reads), func(name string) bool {
		return stored(name) == t.Stream(name) // a stream: its consumers could be changed or removed
	})) {
		s := stored(name)
		publish = append(publish, "$JS.API.CONSUMER.CREATE."+s+".>", "$JS.API.CONSUMER.DELETE."+s+".*",
			"$JS.API.CONSUMER.MSG.NEXT."+s+".*", "$JS.FC."+s+".>")
	}
	for _, name := range a.Writes {
		publish = append(publish, streams[name].Config.Subjects...)
		if name == Documents { // a document that replaces one takes its place
			publish = append(publish, "$JS.API.STREAM.PURGE."+stored(name))
		}
	}
	for _, name := range a.Purges {
		publish = append(publish, "$JS.API.STREAM.PURGE."+stored(name))
	}
	return User{Name: a.Service, Why: "the service " + a.Service, Publish: publish, Subscribe: []string{Inbox(a.Service) + ".>"}}
}

// PasswordsFile takes the passwords of WriteAccounts from a file beside that of the accounts.
const PasswordsFile = `include "passwords.conf"`

// WriteAccounts writes the accounts and users of a deployment as configuration of a NATS server. Passwords are
// variables: that of preset-trigger is $PRESET_TRIGGER_PASSWORD. passwords is what defines them: PasswordsFile, or what
// WritePasswords writes.
func (t Topology) WriteAccounts(w io.Writer, passwords string) error {
	var b strings.Builder
	b.WriteString("# Made by `millrace nats-accounts --prefix " + t.Prefix + "` from what each service does; do not edit.\n" +
		"# Passwords are variables, which `millrace nats-accounts --passwords` makes.\n" + passwords + "\n\n" +
		"accounts {\n  # All of Millrace, and nothing else.\n  MILLRACE {\n    jetstream: enabled\n    users = [\n")
	list := func(indent, key string, subjects []string) {
		fmt.Fprintf(&b, "%s%s: [\n", indent, key)
		for _, s := range subjects {
			fmt.Fprintf(&b, "%s  %q\n", indent, s)
		}
		fmt.Fprintf(&b, "%s]\n", indent)
	}
	for _, u := range t.Users() {
		fmt.Fprintf(&b, "      # %s\n      {\n        user: %s\n        password: $%s\n        permissions {\n", u.Why, u.Name, PasswordVariable(u.Name))
		b.WriteString("          publish {\n")
		list("            ", "allow", u.Publish)
		if len(u.Deny) > 0 {
			list("            ", "deny", u.Deny)
		}
		b.WriteString("          }\n")
		list("          ", "subscribe", u.Subscribe)
		if u.Responses {
			b.WriteString("          allow_responses: { max: 1, expires: \"2m\" }\n")
		}
		b.WriteString("        }\n      }\n")
	}
	b.WriteString("    ]\n  }\n  # For those who look after the servers.\n  SYS {\n    users = [ { user: sys, password: $SYS_PASSWORD } ]\n  }\n}\n\nsystem_account: SYS\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// WritePasswords writes the variables of WriteAccounts with new random passwords, 130 bits each.
func (t Topology) WritePasswords(w io.Writer) error {
	var b strings.Builder
	for _, u := range append(t.Users(), User{Name: "sys"}) {
		fmt.Fprintf(&b, "%s: %q\n", PasswordVariable(u.Name), rand.Text())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// PasswordVariable is the name of the variable with the password of a user.
func PasswordVariable(user string) string {
	return strings.ToUpper(strings.ReplaceAll(user, "-", "_")) + "_PASSWORD"
}
