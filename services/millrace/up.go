// Package millrace is the whole product in one process: the services over an embedded broker, the same services
// that run alone elsewhere, over the same subjects. Only the broker's address differs.
package millrace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/services/admin"
	"millrace/services/debouncer"
	"millrace/services/exporter"
	"millrace/services/importer"
	presettrigger "millrace/services/preset-trigger"
	"millrace/services/run"
	"millrace/services/scanner"
	"millrace/services/storage"
	"millrace/services/webhooks"
	"millrace/services/worker"
	"millrace/shared/broker"
	"millrace/shared/media"
	"millrace/shared/topology"
)

// Options of the all-in-one. The tags make them flags of `millrace up`.
type Options struct {
	Data   string `help:"Folder for everything that is kept." default:"./data" type:"path" placeholder:"DIR"`
	HTTP   string `name:"http" help:"Where the API listens." default:"127.0.0.1:8080" placeholder:"HOST:PORT"`
	APIKey string `name:"api-key" help:"Key that clients use. Without one a key is made at the first start and shown once." placeholder:"KEY" secret:"yes"`
	storage.Sources
	storage.Library
	admin.Limits
	ExtraDebounceIntervals []string `help:"Debounce intervals allowed beside 5m, 10m, 1h and 1d, such as 2s,30s." placeholder:"LIST"`
	Executor               string   `help:"What carries prompt runs out: nats (workers elsewhere) or exec=CMD (a command per medium, here)." default:"nats" placeholder:"nats|exec=CMD"`

	NATSListen string `name:"nats-listen" help:"Let other processes connect to the embedded broker here." placeholder:"HOST:PORT"`
	NATSToken  string `name:"nats-token" help:"Token they must present. Required beyond this machine." placeholder:"TOKEN" secret:"yes"`
	NATSURL    string `name:"nats-url" help:"Use this broker instead of the embedded one." placeholder:"URL" secret:"yes"`
	run.Identity
	UnsafeFast bool `help:"Acknowledge before data is on disk. A power cut then loses acknowledged data."`
	run.Names

	Workers     int                `help:"Objects imported at a time." default:"16"`
	BulkWorkers int                `help:"The same for one-time jobs." default:"8"`
	MaxSize     int64              `help:"Largest object imported, in bytes; 0: no limit." default:"0"`
	Bandwidth   importer.Bandwidth `help:"What may be read from sources, such as 100MB/s; 0: no limit." default:"0" placeholder:"RATE"`
	KeepExports time.Duration      `help:"How long exports can be downloaded." default:"720h"`
	scanner.Listing

	run.Log
}

// KeyFile is the name of the key file in a data folder.
const KeyFile = "secrets.key"

// App is the running product.
type App struct {
	// Key is the API key when this start made one, to be shown once; else "".
	Key string

	host   *run.Host
	admin  *admin.Admin
	broker *broker.Broker // nil with NATSURL
}

// embedded is the instance name on an embedded broker: nobody else can be on it, so leases of an earlier life of this
// process are ours at once.
const embedded = "all-in-one"

// New starts a broker or connects to one, applies the topology and makes the services. What it began is undone when it
// fails.
func New(ctx context.Context, o Options, log *slog.Logger) (_ *App, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Data, 0o755); err != nil {
		return nil, fmt.Errorf("--data: %w", err)
	}
	app := &App{}
	connect, instance := app.dial(o, log), ""
	if o.NATSURL == "" {
		app.broker, err = broker.Start(ctx, broker.Config{
			Dir: filepath.Join(o.Data, "broker"), Listen: o.NATSListen, AuthToken: o.NATSToken, Unsafe: o.UnsafeFast, Logger: log,
		})
		if err != nil {
			return nil, explain(err)
		}
		connect = func(name string) (*nats.Conn, error) { return app.broker.Connect("millrace " + name) }
		instance = embedded
	}
	app.host = run.NewHost(connect, o.Topology(), instance, log)
	if app.broker != nil {
		app.host.OnStop("broker", func(context.Context) error { app.broker.Shutdown(); return nil })
		app.host.Ops.AddCheck("broker", func(context.Context) error { return app.broker.Healthy() })
	}
	if err := app.build(ctx, o); err != nil {
		return nil, errors.Join(err, app.host.Close())
	}
	return app, nil
}

func (app *App) dial(o Options, log *slog.Logger) func(string) (*nats.Conn, error) {
	return func(name string) (*nats.Conn, error) {
		return broker.Dial(o.NATSURL, "millrace "+name, append(o.Identity.Options(topology.AllInOne), broker.LogEvents(log))...)
	}
}

func (o Options) check() error {
	var errs []error
	if o.NATSURL != "" && o.NATSListen != "" {
		errs = append(errs, errors.New("--nats-listen is for the embedded broker, --nats-url is for another one: give one of them"))
	}
	if kind, cmd, _ := strings.Cut(o.Executor, "="); kind != "nats" && (kind != "exec" || cmd == "") {
		errs = append(errs, fmt.Errorf("--executor %q: must be nats or exec=CMD", o.Executor))
	}
	return errors.Join(errs...)
}

// explain adds the remedy that only the command line knows.
func explain(err error) error {
	if errors.Is(err, broker.ErrInUse) {
		return fmt.Errorf("%w: stop that process, or choose another folder with --data", err)
	}
	return err
}

// build makes the services, in the order in which a file travels.
func (app *App) build(ctx context.Context, o Options) error {
	env, err := app.host.Env("scanner")
	if err != nil {
		return err
	}
	if err := o.Topology().Apply(ctx, env.Bus.JetStream()); err != nil {
		return err
	}
	if o.NATSURL == "" && o.NATSListen == "" { // whoever had something in hand was an earlier life of this process
		if err := o.Topology().Reclaim(ctx, env.Bus.JetStream()); err != nil {
			return err
		}
	}
	if o.SecretsKeyData == "" {
		o.SecretsKey = storage.In(o.Data, o.SecretsKey, KeyFile)
	}
	opener, keeper, err := o.Opener(ctx, env)
	if err != nil {
		return err
	}
	listing := scanner.Config{PubSubEndpoint: o.PubSubEndpoint, Transport: opener.Transport()}
	o.Set(&listing)
	scan, err := scanner.New(listing, env, opener)
	if err != nil {
		return err
	}
	app.host.Add("scanner", scan)

	if env, err = app.host.Env("debouncer"); err != nil {
		return err
	}
	deb, err := debouncer.New(debouncer.Config{}, env)
	if err != nil {
		return err
	}
	app.host.Add("debouncer", deb)

	o.Library.Library = storage.In(o.Data, o.Library.Library, "library")
	library, err := o.Library.Open(ctx, o.Sources)
	if err != nil {
		return err
	}
	if library != nil {
		app.host.OnStop("library", func(context.Context) error { return library.Close() })
	}
	if env, err = app.host.Env("importer"); err != nil {
		return err
	}
	imp, err := importer.New(importer.Config{
		Workers: o.Workers, BulkWorkers: o.BulkWorkers, MaxSize: o.MaxSize, Bandwidth: o.Bandwidth,
	}, env, opener, library, media.New(media.Config{FFprobe: media.FindFFprobe()}))
	if err != nil {
		return err
	}
	app.host.Add("importer", imp)

	if env, err = app.host.Env("preset-trigger"); err != nil {
		return err
	}
	trigger, err := presettrigger.New(presettrigger.Config{}, env)
	if err != nil {
		return err
	}
	app.host.Add("preset-trigger", trigger)

	if command, ok := strings.CutPrefix(o.Executor, "exec="); ok {
		if env, err = app.host.Env("worker"); err != nil {
			return err
		}
		folders, err := worker.NewFolders(append([]string{o.Library.Library}, o.AllowDir...)...)
		if err != nil {
			return err
		}
		w, err := worker.New(worker.Config{Command: command}, env, folders)
		if err != nil {
			return err
		}
		app.host.Add("worker", w)
	}

	if env, err = app.host.Env("webhooks"); err != nil {
		return err
	}
	hooks, err := webhooks.New(webhooks.Config{AllowEndpoints: o.AllowEndpoint}, env, keeper)
	if err != nil {
		return err
	}
	app.host.Add("webhooks", hooks)
	if env, err = app.host.Env("exporter"); err != nil {
		return err
	}
	exp, err := exporter.New(exporter.Config{Keep: o.KeepExports}, env, opener)
	if err != nil {
		return err
	}
	app.host.Add("exporter", exp)

	if env, err = app.host.Env("admin"); err != nil {
		return err
	}
	executor, _, _ := strings.Cut(o.Executor, "=") // a command may hold what readers of runs shall not see
	app.admin, err = admin.New(admin.Config{
		Addr: o.HTTP, ExtraIntervals: o.ExtraDebounceIntervals, Executor: executor,
		Limits: o.Limits, AllowEndpoints: o.AllowEndpoint, MachineCredentials: o.MachineCredentials, Door: filepath.Join(o.Data, admin.DoorFile),
	}, env, admin.Deps{Sources: opener, Sealer: keeper, Ops: app.host.Ops, LinkKey: keeper.Derive(admin.LinkKey)})
	if err != nil {
		return err
	}
	app.host.Add("admin", app.admin)
	app.Key, err = app.admin.EnsureKey(ctx, o.APIKey)
	return err
}

// Run runs the services until ctx ends and what they had in hand is settled.
func (app *App) Run(ctx context.Context) error { return app.host.Run(ctx) }

// WaitReady returns when every service holds its consumers.
func (app *App) WaitReady(ctx context.Context) error { return app.host.WaitReady(ctx) }

// URL is where the API is, once it listens.
func (app *App) URL() string { return "http://" + app.admin.Addr() }
