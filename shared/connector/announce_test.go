package connector

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/shared/bucket"
	"millrace/shared/store"
)

// A shell takes what it is told to run as it is meant: tools stand in that note their arguments.
func TestAnnouncedCommands(t *testing.T) {
	t.Parallel()
	tools, noted := t.TempDir(), filepath.Join(t.TempDir(), "noted")
	script := "#!/bin/sh\nfor a in \"${0##*/}\" \"$@\"; do printf '%s\\n' \"$a\" >>'" + noted + "'; done\nprintf '\\n' >>'" + noted + `'
case "$*" in
*create-queue*) echo https://sqs.eu-west-1.amazonaws.com/1/q ;;
*QueueArn*) echo arn:aws-cn:sqs:eu-west-1:1:q ;;
key*) echo the-key ;;
storage*) echo /subscriptions/s/a ;;
esac
`
	for _, tool := range []string{"aws", "mc", "az", "millrace"} {
		if err := os.WriteFile(filepath.Join(tools, tool), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o, err := New(Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	run := func(c store.Connector) (calls [][]string) {
		t.Helper()
		c.ID = "conn_1"
		told, err := o.Announce(t.Context(), c, "", true)
		if err != nil || told.Done() {
			t.Fatalf("%+v, %v", told, err)
		}
		_ = os.Remove(noted)
		var script strings.Builder
		for _, s := range told.Steps {
			script.WriteString(s.Command + " || exit\n")
		}
		sh := exec.CommandContext(t.Context(), "sh", "-c", script.String())
		sh.Env = []string{"PATH=" + tools + ":" + os.Getenv("PATH"), "MILLRACE_URL=https://m.example.com", "USER_NAME=reader"}
		if out, err := sh.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, script.String())
		}
		data, err := os.ReadFile(noted)
		if err != nil {
			t.Fatal(err)
		}
		for call := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n\n") {
			calls = append(calls, strings.Split(call, "\n"))
		}
		return calls
	}
	after := func(call []string, flag string) string { return call[slices.Index(call, flag)+1] }

	calls := run(store.Connector{Provider: "s3", Bucket: "9drops", Region: "eu-west-1"})
	var outer struct{ Policy string }
	var policy struct {
		Statement []struct {
			Resource  string
			Condition struct{ ArnEquals map[string]string }
		}
	}
	if err := errors.Join(json.Unmarshal([]byte(after(calls[2], "--attributes")), &outer), json.Unmarshal([]byte(outer.Policy), &policy)); err != nil ||
		policy.Statement[0].Resource != "arn:aws-cn:sqs:eu-west-1:1:q" ||
		policy.Statement[0].Condition.ArnEquals["aws:SourceArn"] != "arn:aws-cn:s3:::9drops" {
		t.Errorf("%q: %v", calls[2], err)
	}
	var reader struct{ Statement []struct{ Resource string } }
	if err := json.Unmarshal([]byte(after(calls[3], "--policy-document")), &reader); err != nil || reader.Statement[0].Resource != "arn:aws-cn:sqs:eu-west-1:1:q" {
		t.Errorf("%q: %v", calls[3], err)
	}
	var events struct {
		QueueConfigurations []struct{ QueueArn string }
	}
	if err := json.Unmarshal([]byte(after(calls[4], "--notification-configuration")), &events); err != nil || events.QueueConfigurations[0].QueueArn != "arn:aws-cn:sqs:eu-west-1:1:q" {
		t.Errorf("%q: %v", calls[4], err)
	}
	if last := strings.Join(calls[5], " "); last != "millrace connector notify conn_1 --subscription https://sqs.eu-west-1.amazonaws.com/1/q" {
		t.Errorf("%s", last)
	}

	calls = run(store.Connector{Provider: "s3", Bucket: "drops", EndpointURL: "https://minio.example.com/$(x)'s"})
	if got := calls[0]; got[4] != "https://minio.example.com/$(x)'s" {
		t.Errorf("%q", got)
	}
	if got := strings.Join(calls[2], " "); got != "mc admin config set millrace-conn-1 notify_webhook:millrace-conn-1 "+
		"endpoint=https://m.example.com/api/v2/notifications/conn_1 auth_token=the-key" {
		t.Errorf("%s", got)
	}
	calls = run(store.Connector{Provider: "azure", StorageAccount: "acct", Container: "c"})
	if grid := calls[3]; after(grid, "--endpoint") != "https://m.example.com/api/v2/notifications/conn_1" ||
		after(grid, "--source-resource-id") != "/subscriptions/s/a" || after(grid, "static") != "the-key" ||
		after(grid, "--deadletter-endpoint") != "/subscriptions/s/a/blobServices/default/containers/undelivered" {
		t.Errorf("%q", grid)
	}
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	o, err := New(Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if told, err := o.Announce(ctx, store.Connector{ID: "c", Provider: "dir"}, "", true); err != nil || !told.Done() {
		t.Errorf("a folder: %+v, %v", told, err)
	}
	for name, c := range map[string]store.Connector{
		"":     {Provider: "gcs", Bucket: "b", Project: "p; rm"},
		"a b":  {Provider: "gcs", Bucket: "b", Project: "p"},
		"$(x)": {Provider: "azure", StorageAccount: "a", Container: "c"},
		"x":    {Provider: "s3", Bucket: "b", Region: "'"},
	} {
		c.ID = "c"
		if _, err := o.Announce(ctx, c, name, false); !errors.Is(err, bucket.ErrName) {
			t.Errorf("%q %+v: %v", name, c, err)
		}
	}
	// The machine's own credentials are for connectors only where the operator said so.
	if _, err := o.Announce(ctx, store.Connector{ID: "c", Provider: "gcs", Bucket: "b", Project: "p"}, "", true); !errors.Is(err, bucket.ErrCredentials) {
		t.Errorf("without credentials: %v", err)
	}
}
