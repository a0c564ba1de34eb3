// Package admin is how people and clients see and steer: HTTP under /api/v2, and the same as NATS requests and
// commands, with one set of handlers behind all three. It is never in the way of a file; with every admin stopped,
// files are found, imported and run all the same.
//
// What a request changes is a record or a message on the bus, nothing else, so any number of admins may run side by
// side. Each request is answered only when what it asked for is durable.
package admin

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"millrace/services/exporter"
	"millrace/shared/bucket"
	"millrace/shared/bus"
	conn "millrace/shared/connector"
	"millrace/shared/control"
	"millrace/shared/egress"
	"millrace/shared/event"
	"millrace/shared/service"
	"millrace/shared/store"
	"millrace/shared/topology"
	"millrace/shared/window"
)

// Config of an admin.
type Config struct {
	// Addr is where to listen, HOST:PORT. Default 127.0.0.1:8080. Port 0 takes any free one, see Admin.Addr.
	Addr string
	// BasePath is what every route of the API starts with. Default /api/v2.
	BasePath string
	// ExtraIntervals are debounce intervals that are allowed beside store.PublicIntervals, such as "2s": for
	// development and tests.
	ExtraIntervals []string
	// MaxBody bounds the body of a JSON request, in bytes. Default 1 MiB. Uploads and notifications have limits of
	// their own.
	MaxBody int64
	// Executor says, for people, what carries runs out: "nats", "exec".
	Executor string
	// AllowEndpoints are networks, addresses and hosts that webhooks may be at although they are not public; see
	// egress.New.
	AllowEndpoints []string
	// MachineCredentials lets connectors be made that bring no credentials and use those of the machine.
	MachineCredentials bool

	// PushAudience, when set, lets storage systems push notifications with an OIDC token (Pub/Sub) instead of an API
	// key: it is the audience the token must be made for, exactly.
	PushAudience string
	// PushServiceAccount is the e-mail address the token must be of. Required with PushAudience.
	PushServiceAccount string
	// PushIssuers are the issuers to be trusted. Default: Google's two spellings.
	PushIssuers []string
	// PushJWKS is where the issuer publishes its signing keys. Default: Google's.
	PushJWKS string

	// Limits bound what one API key may ask of this process. Zero: no limits.
	Limits Limits
	// Door, when set, is the file that tells `millrace key` beside this server how to get in. It is written, readable for
	// nobody else, when Run listens, and removed when Run ends.
	Door string
}

func (c Config) withDefaults() Config {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:8080"
	}
	if c.BasePath == "" {
		c.BasePath = "/api/v2"
	}
	if c.MaxBody == 0 {
		c.MaxBody = 1 << 20
	}
	if len(c.PushIssuers) == 0 {
		c.PushIssuers = []string{"https://accounts.google.com", "accounts.google.com"}
	}
	if c.PushJWKS == "" {
		c.PushJWKS = "https://www.googleapis.com/oauth2/v3/certs"
	}
	return c
}

// Validate reports everything that is wrong with the configuration. Zero values mean the defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		bad("--http %q: want HOST:PORT such as 127.0.0.1:8080", c.Addr)
	}
	if !strings.HasPrefix(c.BasePath, "/") || strings.HasSuffix(c.BasePath, "/") {
		bad("base path %q: must start with / and not end with one", c.BasePath)
	}
	for _, s := range c.ExtraIntervals {
		if _, err := store.ParseInterval(s); err != nil {
			bad("--extra-debounce-intervals: %w", err)
		}
	}
	if _, err := egress.New(c.AllowEndpoints); err != nil {
		errs = append(errs, err)
	}
	if c.MaxBody < 0 {
		bad("largest body %d: must not be negative", c.MaxBody)
	}
	if (c.PushAudience == "") != (c.PushServiceAccount == "") {
		bad("push audience and push service account: give both or neither; an audience alone would let anybody's service account in")
	}
	if u, err := url.Parse(c.PushJWKS); err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		bad("push JWKS %q: want an http(s) URL", c.PushJWKS)
	}
	return errors.Join(errs...)
}

// Sources opens what connectors give access to.
type Sources interface {
	// Source returns the opened source of a stored connector, and the connector. The source stays Sources'.
	Source(ctx context.Context, connectorID string) (bucket.Source, store.Connector, error)
	// Open opens a source that the caller closes; nothing is taken from or put in a cache.
	Open(ctx context.Context, c store.Connector) (bucket.Source, error)
	// TryWriting writes an object below the connector's export path and deletes it again, and says whether it is left.
	TryWriting(ctx context.Context, c store.Connector) (key string, left bool, err error)
	// CheckDir returns the cleaned form of a folder that a connector may name. Its error is for people.
	CheckDir(path string) (clean string, err error)
	// Announce says what has the storage of a connector tell of its changes, and with create sets it up where it can.
	Announce(ctx context.Context, c store.Connector, name string, create bool) (conn.Announcements, error)
}

// Sealer encrypts at rest: credentials, and answers that are kept.
type Sealer interface {
	// Seal returns the ciphertext of plaintext, bound to aad.
	Seal(plaintext []byte, aad string) (string, error)
	// Open is the inverse of Seal.
	Open(sealed, aad string) ([]byte, error)
}

// Deps is what an admin is given from outside. All are required but Ops and LinkKey.
type Deps struct {
	Sources Sources
	Sealer  Sealer
	// Ops answers /healthz, /readyz and /metrics.
	Ops http.Handler
	// LinkKey signs download links, so all admins of a deployment must have the same, 32 bytes; see LinkKey. Without one,
	// links are good on this admin alone and as long as it lives.
	LinkKey []byte
}

// Admin is the service. See New.
type Admin struct {
	cfg     Config
	bus     *bus.Bus
	log     *slog.Logger
	deps    Deps
	metrics *metrics

	connectors  *store.Register[store.Connector]
	indexes     *store.Register[store.Index]
	automations *store.Register[store.Automation]
	prompts     *store.Register[store.Prompt]
	jobs        *store.Register[store.Job]
	runs        *store.Register[store.Run]
	scans       *store.Register[store.Scan]
	windows     *window.Windows
	ledger      *store.Ledger
	deletions   *store.Register[store.Deletion]
	documents   *store.Documents
	exports     *exporter.Exports
	exportAutos *store.Register[store.ExportAutomation]
	links       linkSigner
	runBook     *runBook
	recall      recall
	versions    shared[versions]
	mediaPages  mediaPages
	keys        *keyring
	webhooks    *webhooks
	push        *pushVerifier // nil: pushes need an API key
	sns         *snsVerifier
	limiter     *limiter
	operator    string // what the operator presents; "": there is no door for one
	answers     *answers
	feeds       *feeds

	router    *router
	api       huma.API
	handler   http.Handler
	env       service.Env
	offers    []offer          // what NATS offers of the API
	commanded map[string]offer // of these, what can be a command, by <resource>.<verb>
	commands  *control.Router

	commandRecords *store.Register[store.Command]

	listening atomic.Pointer[net.TCPAddr]
}

var _ service.Service = (*Admin)(nil)

// New binds the records of the topology and makes the handler. It fails with topology.ErrMissing when nobody has
// applied the topology. There is nothing to close.
func New(cfg Config, env service.Env, deps Deps) (*Admin, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Sources == nil || deps.Sealer == nil {
		return nil, errors.New("admin needs Sources and a Sealer")
	}
	a := &Admin{
		cfg:     cfg.withDefaults(),
		bus:     env.Bus,
		log:     env.Log.With("component", "admin"),
		deps:    deps,
		metrics: newMetrics(env.Metrics),
		ledger:  store.NewLedger(env.Bus),
		env:     env,
		links:   newLinkSigner(deps.LinkKey),
		feeds:   newFeeds(),
		limiter: newLimiter(cfg.Limits),
		sns:     newSNSVerifier(),
		answers: &answers{
			sealer: deps.Sealer, process: cmp.Or(env.Instance, event.NewID("proc")), underWay: make(map[string]chan struct{}),
		},
	}
	a.answers.log, a.answers.metrics = a.log, a.metrics
	if cfg.Door != "" {
		a.operator = "op_" + rand.Text()
	}
	ctx, cancel := context.WithTimeout(context.Background(), bindTimeout)
	defer cancel()
	if err := a.bind(ctx); err != nil {
		return nil, err
	}
	if a.cfg.PushAudience != "" {
		a.push = newPushVerifier(a.cfg)
	}
	a.handler = a.routes()
	var err error
	if a.offers, err = offers(a.api.OpenAPI()); err != nil {
		return nil, err
	}
	a.commanded = make(map[string]offer)
	for _, o := range a.offers {
		if o.commanded() {
			a.commanded[o.subject] = o
		}
	}
	a.router.HandleFunc("GET /docs", a.serveDocs())
	if a.commands, err = a.commandDoor(); err != nil {
		return nil, err
	}
	return a, nil
}

const bindTimeout = 10 * time.Second

func (a *Admin) bind(ctx context.Context) (err error) {
	if a.connectors, err = store.Open[store.Connector](ctx, a.bus, topology.Connectors); err != nil {
		return err
	}
	if a.indexes, err = store.Open[store.Index](ctx, a.bus, topology.Indexes); err != nil {
		return err
	}
	if a.automations, err = store.Open[store.Automation](ctx, a.bus, topology.Automations); err != nil {
		return err
	}
	if a.prompts, err = store.Open[store.Prompt](ctx, a.bus, topology.Prompts); err != nil {
		return err
	}
	if a.jobs, err = store.Open[store.Job](ctx, a.bus, topology.JobRecords); err != nil {
		return err
	}
	if a.runs, err = store.Open[store.Run](ctx, a.bus, topology.RunRecords); err != nil {
		return err
	}
	a.runBook = newRunBook(a.runs)
	a.versions.ask = a.askVersions
	if a.deletions, err = store.Open[store.Deletion](ctx, a.bus, topology.DeletionRecords); err != nil {
		return err
	}
	if a.scans, err = store.Open[store.Scan](ctx, a.bus, topology.Scans); err != nil {
		return err
	}
	if a.windows, err = window.Bind(ctx, a.bus); err != nil {
		return err
	}
	if a.documents, err = store.OpenDocuments(ctx, a.bus); err != nil {
		return err
	}
	if a.commandRecords, err = store.Open[store.Command](ctx, a.bus, topology.CommandRecords); err != nil {
		return err
	}
	if a.webhooks, err = openWebhooks(ctx, a.cfg, a.bus, a.deps.Sealer); err != nil {
		return err
	}
	if a.exports, err = exporter.Open(ctx, a.bus); err != nil {
		return err
	}
	if a.exportAutos, err = store.Open[store.ExportAutomation](ctx, a.bus, topology.ExportAutomations); err != nil {
		return err
	}
	reg, err := store.Open[store.Key](ctx, a.bus, topology.Keys)
	if err != nil {
		return err
	}
	a.keys = newKeyring(reg, a.log)
	a.answers.reg, err = store.Open[store.Answer](ctx, a.bus, topology.Answers)
	return err
}

// Handler answers requests. It works without Run too; then each request looks its key up in the broker.
func (a *Admin) Handler() http.Handler { return a.handler }

// Addr is where Run listens, HOST:PORT, or "" while it does not.
func (a *Admin) Addr() string {
	if addr := a.listening.Load(); addr != nil {
		return addr.String()
	}
	return ""
}

// Times of the server. There is no limit to a whole request: what a handler may take is bounded where it is registered.
const (
	headerTimeout   = 10 * time.Second
	bodyTimeout     = 60 * time.Second
	idleTimeout     = 120 * time.Second
	shutdownTimeout = 10 * time.Second
)

// Run listens and answers, over HTTP and NATS, until ctx ends and the requests in hand are answered, or ten seconds
// later. It fails at once when the address cannot be had.
func (a *Admin) Run(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", a.cfg.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use by another process: stop that one, or choose another address with --http HOST:PORT (%w)", a.cfg.Addr, err)
	}
	if err != nil {
		return fmt.Errorf("cannot listen on %s, choose another address with --http HOST:PORT: %w", a.cfg.Addr, err)
	}
	srv := &http.Server{
		Handler:           a.handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	srv.RegisterOnShutdown(a.feeds.end)
	var watching sync.WaitGroup
	watchCtx, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	watching.Go(func() { a.runBook.follow(watchCtx, a.log) })
	watching.Go(func() { a.keys.watch(watchCtx) })
	defer watching.Wait()
	defer stopWatch()
	if a.cfg.Door != "" {
		if err := a.openDoor(l.Addr().(*net.TCPAddr)); err != nil {
			return errors.Join(err, l.Close())
		}
		defer func() { _ = os.Remove(a.cfg.Door) }()
	}

	door, err := a.openRequestDoor(ctx)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer door.close()
	commandCtx, stopCommands := context.WithCancel(ctx)
	defer stopCommands()
	commands := make(chan struct{}) // closed when no more are taken
	var commandErr error
	go func() {
		defer close(commands)
		commandErr = a.commands.Run(commandCtx)
	}()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	a.listening.Store(l.Addr().(*net.TCPAddr))
	defer a.listening.Store(nil)
	a.log.Info("listening", "url", "http://"+l.Addr().String()+a.cfg.BasePath)

	select {
	case err := <-served:
		stopCommands()
		<-commands
		return errors.Join(fmt.Errorf("serve http on %s: %w", a.cfg.Addr, err), commandErr)
	case <-commands: // with an error, or ctx has ended
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close() // those that are still not done are cut off
	}
	<-commands
	return commandErr
}

// Ready returns nil when requests are answered from fresh keys.
func (a *Admin) Ready() error {
	if a.Addr() == "" {
		return fmt.Errorf("not listening on %s", a.cfg.Addr)
	}
	if !a.keys.fresh() {
		return errors.New("API keys are not loaded")
	}
	if err := a.commands.Ready(); err != nil {
		return fmt.Errorf("commands: %w", err)
	}
	return nil
}
