package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/nats-io/nats.go"
	"gopkg.in/yaml.v3"

	"millrace/shared/broker"
	"millrace/shared/process"
	"millrace/shared/service"
	"millrace/shared/topology"
)

// Log are the flags of logging.
type Log struct {
	LogLevel  string `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
	LogFormat string `help:"text or json." default:"text" enum:"text,json"`
}

// Names are the flags that name a deployment on a broker.
type Names struct {
	Prefix   string `help:"What every subject, stream and bucket of this deployment starts with." default:"millrace" placeholder:"NAME"`
	Replicas int    `help:"Copies of each stream: 1, or 3 on a cluster." default:"1" enum:"1,3,5"`
}

// Topology returns the topology of the deployment.
func (n Names) Topology() topology.Topology {
	return topology.Topology{Prefix: n.Prefix, Replicas: n.Replicas}
}

// Split are the flags of a process with a single service.
type Split struct {
	NATSURL string `name:"nats-url" help:"Broker, or several nodes of one, separated by commas; nats://USER:PASSWORD@HOST:PORT." default:"nats://127.0.0.1:4222" placeholder:"URL" secret:"yes"`
	Identity
	Names
	Ops string `help:"Where to answer /healthz, /readyz and /metrics; empty: nowhere." placeholder:"HOST:PORT"`
	Log
}

// Identity are the flags of who we are to a broker, beside what its URL says.
type Identity struct {
	NATSCreds string `name:"nats-creds" help:"File with the credentials (JWT and key) of a NATS user." type:"path" placeholder:"FILE"`
	NATSCA    string `name:"nats-ca" help:"File with the certificates to trust the broker by, instead of the system's." type:"path" placeholder:"FILE"`
	NATSCert  string `name:"nats-cert" help:"File with the certificate to show to a broker that wants one." type:"path" placeholder:"FILE"`
	NATSKey   string `name:"nats-key" help:"File with the key of --nats-cert." type:"path" placeholder:"FILE"`
}

// Options are the options of a connection under this identity. A service has inboxes of its own, so that brokers can
// keep others from reading what it is answered.
func (i Identity) Options(service string) []nats.Option {
	options := []nats.Option{nats.CustomInboxPrefix(topology.Inbox(service))}
	if i.NATSCreds != "" {
		options = append(options, nats.UserCredentials(i.NATSCreds))
	}
	if i.NATSCA != "" {
		options = append(options, nats.RootCAs(i.NATSCA))
	}
	if i.NATSCert != "" || i.NATSKey != "" {
		options = append(options, nats.ClientCert(i.NATSCert, i.NATSKey))
	}
	return options
}

// patience is how long a service waits for the topology before it says that it is missing.
const patience = 30 * time.Second

// lookTimeout bounds one look for the topology: what has no leader does not answer.
const lookTimeout = 3 * time.Second

// Run runs one service as a process until ctx ends. build makes it; it may be called again while the topology is not
// there yet. A service that applies the topology itself says so.
func (s Split) Run(ctx context.Context, name string, applies bool, build func(context.Context, *Host, service.Env) (service.Service, error)) error {
	log, err := process.NewLogger(s.LogFormat, s.LogLevel, os.Stderr)
	if err != nil {
		return err
	}
	connect := func(conn string) (*nats.Conn, error) {
		return broker.Dial(s.NATSURL, "millrace "+conn, append(s.Options(name), broker.LogEvents(log))...)
	}
	h := NewHost(connect, s.Topology(), "", log)
	env, err := h.Env(name)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	if applies {
		err := Patiently(ctx, log, patience, func() error { return s.Topology().Apply(ctx, env.Bus.JetStream()) })
		if err != nil {
			return errors.Join(err, h.Close())
		}
	}
	// Looked for before anything is built, as a service registers its metrics when it is made. All of it: whoever applies
	// it does so in no particular order.
	err = Patiently(ctx, log, patience, func() error {
		attempt, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		return s.Topology().Complete(attempt, env.Bus.JetStream())
	})
	if err != nil {
		return errors.Join(err, h.Close())
	}
	svc, err := build(ctx, h, env)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	h.Add(name, svc)
	if s.Ops != "" {
		h.Add("ops", opsServer{h.Ops, s.Ops})
	}
	log.Info("starting", "service", name, "version", process.Version())
	return h.Run(ctx)
}

type opsServer struct {
	ops  *process.Ops
	addr string
}

func (o opsServer) Run(ctx context.Context) error { return o.ops.Serve(ctx, o.addr) }
func (o opsServer) Ready() error                  { return nil }

// Parse reads the command line, the environment (MILLRACE_…) and a YAML file, in this order of precedence, into cli,
// and runs the command that was named. It returns the exit code.
func Parse(cli any, name, description string, args []string) int {
	ctx, stop := process.Signals(context.Background())
	defer stop()
	parser, err := kong.New(cli,
		kong.Name(name),
		kong.Description(description),
		kong.UsageOnError(),
		kong.DefaultEnvars("MILLRACE"),
		kong.Configuration(yamlResolver),
		kong.ValueFormatter(help),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, Tree: false}),
		kong.Vars{"version": process.Version()},
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
		return 2
	}
	kctx, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\nTry '%s --help'.\n", name, err, commandOf(name, err))
		return 2
	}
	if err := kctx.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// commandOf is how far a command line was understood that could not be parsed.
func commandOf(name string, err error) string {
	var p *kong.ParseError
	if errors.As(err, &p) {
		for _, step := range p.Context.Path {
			if step.Command != nil {
				name += " " + step.Command.Name
			}
		}
	}
	return name
}

// ConfigFile is the flag that names the YAML file.
type ConfigFile struct {
	Config kong.ConfigFlag `help:"YAML file with flags as keys: 'http: 0.0.0.0:8080'." placeholder:"FILE" type:"path"`
}

// yamlResolver finds flags by name at the top level of a YAML document. A key that is no flag is a mistake.
func yamlResolver(r io.Reader) (kong.Resolver, error) {
	values := map[string]any{}
	if err := yaml.NewDecoder(r).Decode(&values); err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	return resolver(values), nil
}

type resolver map[string]any

// Validate refuses keys that no flag has.
func (r resolver) Validate(app *kong.Application) error {
	known := map[string]bool{}
	var visit func(n *kong.Node)
	visit = func(n *kong.Node) {
		for _, f := range n.Flags {
			known[f.Name] = true
		}
		for _, c := range n.Children {
			visit(c)
		}
	}
	visit(app.Node)
	var errs []error
	for k := range r {
		if !known[k] {
			errs = append(errs, fmt.Errorf("configuration file: %q is not a flag", k))
		}
	}
	return errors.Join(errs...)
}

// Resolve returns the value of a flag, nil when the file has none or the environment has one, which goes first.
func (r resolver) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, env := range flag.Envs {
		if _, set := os.LookupEnv(env); set {
			return nil, nil
		}
	}
	return r[flag.Name], nil
}

// help is a flag's help with its default and its environment variable.
func help(v *kong.Value) string {
	text := strings.TrimSuffix(v.Help, ".")
	var notes []string
	if v.HasDefault && v.Default != "" && !strings.Contains(text, "(default") {
		notes = append(notes, "default: "+v.Default)
	}
	if len(v.Tag.Envs) > 0 {
		notes = append(notes, "$"+v.Tag.Envs[0])
	}
	if len(notes) > 0 {
		text += " (" + strings.Join(notes, ", ") + ")"
	}
	return text + "."
}

// Print writes the flags of a command as YAML, secrets left out.
func Print(w io.Writer, flags any) error {
	out := map[string]any{}
	collect(reflect.ValueOf(flags), out)
	enc := yaml.NewEncoder(w)
	defer func() { _ = enc.Close() }()
	return enc.Encode(out)
}

func collect(v reflect.Value, out map[string]any) {
	v = reflect.Indirect(v)
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		if field.Anonymous || field.Tag.Get("embed") != "" || field.Tag.Get("prefix") != "" {
			collect(value, out)
			continue
		}
		if !field.IsExported() || field.Tag.Get("json") == "-" || field.Tag.Get("hidden") != "" {
			continue
		}
		name := field.Tag.Get("name")
		if name == "" {
			name = kebab(field.Name)
		}
		shown := value.Interface()
		if field.Tag.Get("secret") != "" && !value.IsZero() {
			shown = "[redacted]"
		}
		if d, ok := shown.(time.Duration); ok {
			shown = d.String()
		}
		out[name] = shown
	}
}

// kebab spells a Go name as kong spells its flag.
func kebab(s string) string {
	var b strings.Builder
	for i, r := range s {
		if r >= 'A' && r <= 'Z' {
			if i > 0 && (s[i-1] < 'A' || s[i-1] > 'Z') {
				b.WriteByte('-')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
