// Command onebyone is the pipeline that one writes first: a consumer of watermill-nats that handles one file at a time. It reads
// each file of a folder, checksums it and publishes what it found, on a broker whose every acknowledged write is on disk, and
// says in JSON how many seconds that took once all paths were in the queue.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats-server/v2/server"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: onebyone STORE FOLDER")
		os.Exit(2)
	}
	took, err := run(context.Background(), os.Args[1], os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(took.Seconds())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Topics.
const arrived, imported = "arrived", "imported"

func run(ctx context.Context, store, folder string) (time.Duration, error) {
	broker, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: store, SyncAlways: true})
	if err != nil {
		return 0, err
	}
	broker.Start()
	defer broker.Shutdown()
	if !broker.ReadyForConnections(10 * time.Second) {
		return 0, errors.New("the broker does not start")
	}
	js := nats.JetStreamConfig{AutoProvision: true, DurablePrefix: "onebyone"}
	pub, err := nats.NewPublisher(nats.PublisherConfig{URL: broker.ClientURL(), JetStream: js}, watermill.NopLogger{})
	if err != nil {
		return 0, err
	}
	defer func() { _ = pub.Close() }()
	sub, err := nats.NewSubscriber(nats.SubscriberConfig{
		URL: broker.ClientURL(), QueueGroupPrefix: "onebyone", SubscribersCount: 1, AckWaitTimeout: 30 * time.Second, JetStream: js,
	}, watermill.NopLogger{})
	if err != nil {
		return 0, err
	}
	defer func() { _ = sub.Close() }()
	left, err := announce(pub, folder)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	messages, err := sub.Subscribe(ctx, arrived)
	if err != nil {
		return 0, err
	}
	for m := range messages {
		if err := handle(pub, string(m.Payload)); err != nil {
			return 0, err
		}
		m.Ack()
		if left--; left == 0 {
			return time.Since(start), nil
		}
	}
	return 0, errors.New("the subscription ended")
}

// announce publishes the path of each file below folder and returns how many there are.
func announce(pub message.Publisher, folder string) (n int, err error) {
	err = filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		n++
		return pub.Publish(arrived, message.NewMessage(watermill.NewUUID(), message.Payload(path)))
	})
	return n, err
}

func handle(pub message.Publisher, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return err
	}
	data, err := json.Marshal(map[string]any{"path": path, "size": n, "sha256": fmt.Sprintf("%x", sum.Sum(nil))})
	if err != nil {
		return err
	}
	return pub.Publish(imported, message.NewMessage(watermill.NewUUID(), data))
}
