package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"golang.org/x/sync/errgroup"

	"millrace/shared/bucket"
)

// ErrNoQueue means that the SQS queue does not exist.
var ErrNoQueue = errors.New("queue does not exist")

// PullConfig says which notifications to pull. Only Queue is required, and the region if the queue's address does not
// tell it.
type PullConfig struct {
	Queue  string // https://sqs.REGION.amazonaws.com/ACCOUNT/NAME
	Region string // default: as in Queue

	// AccessKeyID and SecretAccessKey are as in Config.
	AccessKeyID, SecretAccessKey string

	// Transport makes all requests to the queue. Default: one of the driver's own.
	Transport http.RoundTripper

	// Receivers is how many requests wait for messages at a time, up to ten of which are handed on by each. Default 4.
	Receivers int
}

// Pull hands the bodies of a queue's messages to handle until ctx ends; it then returns the context's error, once all calls
// of handle have returned. handle runs in up to ten goroutines for each receiver, and its context ends with ctx.
//
// A message is removed from the queue only after handle returned nil for it. After an error it is left, and comes again
// when the queue's visibility time-out has passed. It may come more than once in any case, and in any order.
//
// Pull returns earlier for what will not pass by itself, among it ErrNoQueue, bucket.ErrPermission and
// bucket.ErrCredentials, and for an outage that outlasts a few attempts.
func Pull(ctx context.Context, cfg PullConfig, handle func(ctx context.Context, body []byte) error) error {
	err := pull(ctx, cfg, handle)
	return fmt.Errorf("pull %s: %w", cfg.Queue, cmp.Or(ctx.Err(), err))
}

func pull(ctx context.Context, cfg PullConfig, handle func(context.Context, []byte) error) error {
	client, err := newQueue(ctx, cfg)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for range cmp.Or(max(cfg.Receivers, 0), 4) {
		g.Go(func() error {
			for {
				if err := receive(ctx, client, cfg.Queue, handle); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

func newQueue(ctx context.Context, cfg PullConfig) (*sqs.Client, error) {
	u, err := url.Parse(cfg.Queue)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil {
		return nil, fmt.Errorf("want the URL of a queue: %w", bucket.ErrName)
	}
	provider, region, err := credentialsOf(ctx, Config{AccessKeyID: cfg.AccessKeyID, SecretAccessKey: cfg.SecretAccessKey})
	if err != nil {
		return nil, err
	}
	transport := cfg.Transport
	if transport == nil {
		transport = defaultTransport()
	}
	return sqs.New(sqs.Options{
		Region:       cmp.Or(regionOf(u.Hostname()), cfg.Region, region, "us-east-1"),
		Credentials:  provider,
		BaseEndpoint: aws.String(u.Scheme + "://" + u.Host),
		Retryer:      newRetryer(),
		AppID:        "millrace",
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}), nil
}

// regionOf returns the region that the host of a queue names: sqs.REGION.amazonaws.com.
func regionOf(host string) string {
	parts := strings.Split(host, ".")
	if len(parts) >= 4 && parts[0] == "sqs" && parts[2] == "amazonaws" {
		return parts[1]
	}
	return ""
}

// Times and sizes of a request, which SQS does not let grow.
const (
	longPoll = 20 // seconds
	perPull  = 10
)

// receive waits for messages once, and deals with those that come.
func receive(ctx context.Context, client *sqs.Client, queue string, handle func(context.Context, []byte) error) error {
	out, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &queue, MaxNumberOfMessages: perPull, WaitTimeSeconds: longPoll,
	})
	if err != nil {
		return queueError(ctx, "receive", "sqs:ReceiveMessage", queue, err)
	}
	var (
		mu   sync.Mutex
		done []types.DeleteMessageBatchRequestEntry
		wg   sync.WaitGroup
	)
	for i, m := range out.Messages {
		wg.Go(func() {
			if handle(ctx, []byte(aws.ToString(m.Body))) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			done = append(done, types.DeleteMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), ReceiptHandle: m.ReceiptHandle})
		})
	}
	wg.Wait()
	if len(done) == 0 {
		return ctx.Err()
	}
	// One that is not removed comes again, which does no harm.
	_, err = client.DeleteMessageBatch(context.WithoutCancel(ctx), &sqs.DeleteMessageBatchInput{QueueUrl: &queue, Entries: done})
	return queueError(ctx, "remove from", "sqs:DeleteMessage", queue, err)
}

func queueError(ctx context.Context, op, action, queue string, err error) error {
	var gone *types.QueueDoesNotExist
	if errors.As(err, &gone) {
		return fmt.Errorf("%s %q: %w", op, queue, ErrNoQueue)
	}
	return wrap(ctx, op, action, queue, err)
}
