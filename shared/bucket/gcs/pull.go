package gcs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/pubsub/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"millrace/shared/bucket"
)

// ErrNoSubscription means that the Pub/Sub subscription does not exist.
var ErrNoSubscription = errors.New("subscription does not exist")

// PullConfig says which notifications to pull. Only Subscription is required.
type PullConfig struct {
	Subscription string // projects/P/subscriptions/S

	// CredentialsJSON is a service account key, as in Config.
	CredentialsJSON []byte

	// Transport makes the requests for tokens, whose address the key names. Default: one of the driver's own.
	Transport http.RoundTripper

	// Endpoint is the host:port of an emulator. It is spoken to without credentials and without TLS.
	Endpoint string

	// MaxOutstanding is how many notifications may be in hand at once, and so how many callbacks run at a time.
	// Default 100.
	MaxOutstanding int
}

// Notification is a message of a Pub/Sub subscription.
type Notification struct {
	Subscription string // projects/P/subscriptions/S
	ID           string // unique within its topic; the same in every delivery
	Attributes   map[string]string
	Data         []byte
	PublishTime  time.Time
}

// Envelope returns the notification as JSON in the form in which Pub/Sub pushes it, so that it looks the same however it
// came.
func (n Notification) Envelope() ([]byte, error) {
	type message struct {
		Attributes  map[string]string `json:"attributes"`
		Data        []byte            `json:"data"` // base64
		MessageID   string            `json:"messageId"`
		PublishTime time.Time         `json:"publishTime"`
	}
	e := struct {
		Message      message `json:"message"`
		Subscription string  `json:"subscription"`
	}{message{n.Attributes, n.Data, n.ID, n.PublishTime.UTC()}, n.Subscription}
	if e.Message.Attributes == nil {
		e.Message.Attributes = map[string]string{}
	}
	if e.Message.Data == nil {
		e.Message.Data = []byte{}
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode notification %s: %w", n.ID, err)
	}
	return b, nil
}

const scopePubSub = "https://www.googleapis.com/auth/pubsub"

// Pull hands the notifications of a subscription to handle until ctx ends; it then returns the context's error, once all
// calls of handle have returned. handle runs in up to MaxOutstanding goroutines at a time, and its context ends with
// ctx.
//
// A notification is acknowledged only after handle returned nil for it. After an error it is given back, and comes again
// at once, or as the subscription's retry policy says. It may come more than once in any case, and in any order.
//
// Broken connections and a service that is unavailable are waited out. Pull returns earlier for what will not pass by
// itself: ErrNoSubscription, bucket.ErrPermission, and bucket.ErrCredentials, also for a key that is malformed. If it
// cannot get a token at its start because nobody answers, it says so at once; that may pass.
func Pull(ctx context.Context, cfg PullConfig, handle func(context.Context, Notification) error) error {
	if err := pull(ctx, cfg, handle); err != nil {
		return fmt.Errorf("pull %s: %w", cfg.Subscription, err)
	}
	return fmt.Errorf("pull %s: %w", cfg.Subscription, cmp.Or(ctx.Err(), errPullEnded))
}

var errPullEnded = errors.New("subscription was closed by the server")

func pull(ctx context.Context, cfg PullConfig, handle func(context.Context, Notification) error) error {
	parts := strings.Split(cfg.Subscription, "/")
	if len(parts) != 4 || parts[0] != "projects" || parts[1] == "" || parts[2] != "subscriptions" || parts[3] == "" {
		return fmt.Errorf("want projects/P/subscriptions/S: %w", bucket.ErrName)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	creds, opts, err := pullOptions(cfg)
	if err != nil {
		return err
	}
	if creds != nil {
		// Asked for here a refusal can be told from an outage; below they look alike.
		if _, err := creds.Token(ctx); err != nil {
			return tokenError(err)
		}
	}
	client, err := pubsub.NewClient(ctx, parts[1], opts...)
	if err != nil {
		return fmt.Errorf("pub/sub client: %w", err)
	}
	defer client.Close()
	sub := client.Subscriber(cfg.Subscription)
	sub.ReceiveSettings.NumGoroutines = 1
	sub.ReceiveSettings.MaxOutstandingMessages = cmp.Or(max(cfg.MaxOutstanding, 0), 100)
	sub.ReceiveSettings.MaxExtension = 10 * time.Minute
	err = sub.Receive(ctx, func(ctx context.Context, m *pubsub.Message) {
		err := handle(ctx, Notification{
			Subscription: cfg.Subscription, ID: m.ID, Attributes: m.Attributes, Data: m.Data, PublishTime: m.PublishTime,
		})
		if err != nil {
			m.Nack()
			return
		}
		m.Ack()
	})
	return pullError(ctx, err, creds)
}

func pullOptions(cfg PullConfig) (*auth.Credentials, []option.ClientOption, error) {
	if cfg.Endpoint != "" {
		return nil, []option.ClientOption{
			option.WithEndpoint(cfg.Endpoint), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
		}, nil
	}
	var (
		creds *auth.Credentials
		err   error
	)
	transport := cfg.Transport
	if transport == nil {
		transport = defaultTransport()
	}
	if len(cfg.CredentialsJSON) > 0 {
		creds, err = serviceAccount(cfg.CredentialsJSON, scopePubSub, transport)
	} else {
		creds, err = detect(scopePubSub, transport)
	}
	if err != nil {
		return nil, nil, err
	}
	return creds, []option.ClientOption{option.WithAuthCredentials(creds)}, nil
}

func pullError(ctx context.Context, err error, creds *auth.Credentials) error {
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	code := status.Code(err)
	if code == codes.Unauthenticated && creds != nil {
		if _, terr := creds.Token(ctx); terr != nil {
			return tokenError(terr)
		}
	}
	says := map[codes.Code]error{
		codes.NotFound:         ErrNoSubscription,
		codes.PermissionDenied: bucket.ErrPermission,
		codes.Unauthenticated:  bucket.ErrCredentials,
	}[code]
	if says == nil {
		return err
	}
	return fmt.Errorf("%w: %w", says, err)
}
