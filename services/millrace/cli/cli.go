// Package cli is the command line of millrace: run everything, run one service, or be a client.
package cli

import (
	"fmt"

	"millrace/services/admin"
	"millrace/services/debouncer"
	"millrace/services/exporter"
	"millrace/services/importer"
	presettrigger "millrace/services/preset-trigger"
	"millrace/services/run"
	"millrace/services/scanner"
	"millrace/services/webhooks"
	"millrace/services/worker"
	"millrace/shared/process"
)

const description = `Turns a bucket into a pipeline: what is dropped under a watched prefix is imported as one job when the drop has gone quiet, and a prompt runs on exactly what came in.

Flags can also be given as MILLRACE_… environment variables and in a YAML file (--config).`

// CLI is the command line of millrace.
type CLI struct {
	run.ConfigFile

	Up   upCommand   `cmd:"" group:"run" help:"Run everything in this process."`
	Demo demoCommand `cmd:"" group:"run" help:"Show the whole path in a temporary folder, in under a minute."`

	Scanner       scanner.Command       `cmd:"" group:"services" help:"Which files? Notifications and listings become arrivals and tasks."`
	Debouncer     debouncer.Command     `cmd:"" group:"services" help:"When? Arrivals become windows, windows become jobs."`
	Importer      importer.Command      `cmd:"" group:"services" help:"Bring them in: tasks become media."`
	PresetTrigger presettrigger.Command `cmd:"" group:"services" help:"What next? Jobs become prompt runs."`
	Exporter      exporter.Command      `cmd:"" group:"services" help:"Where to? Results become files, for download or in a bucket."`
	Admin         admin.Command         `cmd:"" group:"services" help:"See and steer: the HTTP API."`
	Webhooks      webhooks.Command      `cmd:"" group:"services" help:"Tell others: events become signed requests to webhooks."`
	Worker        worker.Command        `cmd:"" group:"services" help:"Carry prompt runs out with a command per medium."`

	Job        jobCommand        `cmd:"" group:"client" help:"Import jobs: create, ls, get, watch, cancel, retry, files."`
	Automation automationCommand `cmd:"" group:"client" help:"Import automations and their windows: ls, get, apply, plan, pause, resume, flush, extend, drop."`
	Connector  connectorCommand  `cmd:"" group:"client" help:"Connectors: ls, get, create, test, notify, browse, rm."`
	Index      indexCommand      `cmd:"" group:"client" help:"Indexes: ls, create, get, media, rm."`
	Prompt     promptCommand     `cmd:"" group:"client" help:"Prompts: ls, create, get, rm."`
	PromptRun  runCommand        `cmd:"" name:"run" group:"client" help:"Prompt runs: ls, create, get, cancel, results, failed."`
	Export     exportCommand     `cmd:"" group:"client" help:"Exports: ls, create, get, download."`
	Webhook    webhookCommand    `cmd:"" group:"client" help:"Webhooks and their deliveries: ls, create, get, test, pause, resume, rotate, rm, events, deliveries, retry."`
	Explain    explainCommand    `cmd:"" group:"client" help:"Tell the whole story of one object: why it was imported, or why not."`
	Dead       deadCommand       `cmd:"" group:"client" help:"Messages that could not be handled: ls, replay, rm."`
	Events     eventsCommand     `cmd:"" group:"client" help:"Follow events as they happen."`
	Key        keyCommand        `cmd:"" group:"client" help:"API keys: create, ls, revoke. For operators: beside the server, or with its broker."`

	Secrets secretsCommand `cmd:"" group:"other" help:"The key that seals credentials: rotate, key, reseal. For operators, as is key."`

	NatsAccounts accountsCommand `cmd:"" group:"other" help:"Print accounts and permissions for a NATS server, a user per service."`

	Bench      benchCommand      `cmd:"" group:"other" help:"Measure every figure beside its yardstick."`
	Completion completionCommand `cmd:"" group:"other" help:"Print what makes a shell complete this command line."`
	Version    versionCommand    `cmd:"" group:"other" help:"Print the version."`
	Complete   completeCommand   `cmd:"" hidden:"" passthrough:"" help:"What a shell asks."`
}

// Main runs the command line and returns the exit code.
func Main(args []string) int { return run.Parse(&CLI{}, "millrace", description, args) }

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run() error {
	_, err := fmt.Println("millrace", process.Version())
	return err
}
