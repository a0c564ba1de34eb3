package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"millrace/services/admin"
	"millrace/services/millrace/client"
	"millrace/services/run"
	"millrace/shared/broker"
	"millrace/shared/bus"
	"millrace/shared/store"
)

type keyCommand struct {
	Create keyCreate `cmd:"" help:"Make an API key. It is shown this once."`
	Ls     keyList   `cmd:"" help:"List API keys, revoked ones too."`
	Revoke keyRevoke `cmd:"" help:"End an API key, at once and for ever."`
}

// operator are the flags of commands for which an API key is not enough. Who can read the data folder of a running
// server is its operator, and so is who can reach the broker.
type operator struct {
	Data    string `help:"Data folder of the running server." default:"./data" type:"path" placeholder:"DIR"`
	NATSURL string `name:"nats-url" help:"Broker of the deployment, in place of a data folder." placeholder:"URL" secret:"yes"`
	run.Names
	Output string `short:"o" help:"How to show it: json, table or wide." enum:"json,table,wide" default:"table"`
}

// keys is what an operator does with API keys.
type keys interface {
	Create(context.Context, admin.KeyRequest) (admin.APIKey, error)
	List(context.Context) ([]admin.APIKey, error)
	Revoke(ctx context.Context, id string) (admin.APIKey, error)
}

// open reaches the keys through the broker or through the server beside this command.
func (o operator) open(ctx context.Context) (_ keys, closed func(), err error) {
	if o.NATSURL == "" {
		door, err := o.door()
		return throughDoor{door}, func() {}, err
	}
	b, closed, err := o.broker("key")
	if err != nil {
		return nil, nil, err
	}
	k, err := admin.OpenKeys(ctx, b)
	if err != nil {
		closed()
		return nil, nil, err
	}
	return k, closed, nil
}

// door returns a client of the server beside this command.
func (o operator) door() (*client.Client, error) {
	door, err := admin.ReadDoor(o.Data)
	if errors.Is(err, admin.ErrNoDoor) {
		err = fmt.Errorf("%w: start `millrace up` on it, name another one with --data, or a broker with --nats-url", err)
	}
	if err != nil {
		return nil, err
	}
	return client.New(door.URL, door.Token), nil
}

// broker connects to the broker of the deployment.
func (o operator) broker(as string) (_ *bus.Bus, closed func(), err error) {
	nc, err := broker.Dial(o.NATSURL, "millrace "+as)
	if err != nil {
		return nil, nil, fmt.Errorf("--nats-url: %w", err)
	}
	b, err := bus.New(nc, o.Topology(), as, slog.New(slog.DiscardHandler))
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return b, nc.Close, nil
}

// throughDoor has a running server do it.
type throughDoor struct{ *client.Client }

func (d throughDoor) Create(ctx context.Context, want admin.KeyRequest) (k admin.APIKey, err error) {
	return k, d.Do(ctx, http.MethodPost, "/operator/keys", want, &k)
}

func (d throughDoor) List(ctx context.Context) (list []admin.APIKey, err error) {
	return list, d.Get(ctx, "/operator/keys", &list)
}

func (d throughDoor) Revoke(ctx context.Context, id string) (k admin.APIKey, err error) {
	return k, d.Do(ctx, http.MethodDelete, "/operator/keys/"+id, nil, &k)
}

type keyCreate struct {
	operator `embed:""`
	Name     string   `arg:"" help:"What it is for."`
	Scope    []string `help:"What it allows: search, read, write or admin, each with those before it. Repeatable." default:"read" placeholder:"SCOPE"`
	Expires  string   `help:"How long it is good, such as 12h or 90d (default: until it is revoked)." placeholder:"TIME"`
}

// Run makes a key.
func (c *keyCreate) Run(ctx context.Context) error {
	want := admin.KeyRequest{Name: c.Name, Scopes: c.Scope}
	if c.Expires != "" {
		d, err := store.ParseInterval(c.Expires)
		if err != nil {
			return fmt.Errorf("--expires: %w", err)
		}
		want.ExpiresAt = time.Now().Add(d).UTC()
	}
	keys, closed, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer closed()
	k, err := keys.Create(ctx, want)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return showJSON(k)
	}
	fmt.Fprintln(os.Stderr, "Shown this once; only its hash is kept.")
	_, err = fmt.Println(k.Key) // alone, so that it can be put into a variable
	return err
}

type keyList struct {
	operator `embed:""`
}

// Run lists the keys.
func (c *keyList) Run(ctx context.Context) error {
	keys, closed, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer closed()
	list, err := keys.List(ctx)
	if err != nil {
		return err
	}
	return c.show(list)
}

type keyRevoke struct {
	operator `embed:""`
	ID       string `arg:"" help:"The key, as ls shows it."`
}

// Run revokes a key.
func (c *keyRevoke) Run(ctx context.Context) error {
	keys, closed, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer closed()
	k, err := keys.Revoke(ctx, c.ID)
	if err != nil {
		return err
	}
	return c.show(k)
}

func showJSON(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return printJSON(raw)
}

var (
	keyColumns = []column{{"KEY", "key_id"}, {"NAME", "name"}, {"BEGINS", "key_prefix"}, {"SCOPES", "scopes"}, {"ACTIVE", "is_active"}, {"EXPIRES", "expires_at"}}
	keyWide    = []column{{"CREATED", "created_at"}, {"LAST USED", "last_used_at"}, {"REVOKED", "revoked_at"}}
)

func (o operator) show(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return shown{Output: o.Output}.show(raw, keyColumns, keyWide)
}
