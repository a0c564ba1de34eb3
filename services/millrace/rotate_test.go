package millrace_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"path/filepath"
	"testing"

	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/secret"
)

// TestRotateSecrets replaces the key under a running server, beside it and through its broker, from the start and where
// an earlier run was killed: credentials, webhooks and kept answers are as good as before, and one key is left.
func TestRotateSecrets(t *testing.T) {
	t.Parallel()
	storage := gcstest.Start(t, "bucket")
	listen := freeAddr(t)
	up := startUp(t, "--nats-listen", listen)
	file := filepath.Join(up.data, "secrets.key")
	call := func(method, path, key string, kind string, body []byte) response {
		t.Helper()
		res, err := send(t.Context(), method, up.url+"/api/v2"+path, http.Header{
			"X-Api-Key": {apiKey}, "Content-Type": {kind}, "Idempotency-Key": {key},
		}, body)
		must(t, err)
		if res.status >= 300 {
			t.Fatalf("%s %s: %d %s", method, path, res.status, res.body)
		}
		return res
	}
	body, kind := form(t, map[string]string{
		"name": "Cloud", "bucket": "bucket", "gcp_project_id": "test", "endpoint_url": storage.URL,
	}, storage.Credentials(t))
	first := call("POST", "/connectors/gcs", "make", kind, body)
	var c struct {
		ID string `json:"connector_id"`
	}
	must(t, json.Unmarshal(first.body, &c))
	hook := call("POST", "/webhooks", "hook", "application/json", []byte(`{"name":"n","url":"https://example.com/hook","events":["import_job.completed"]}`))

	check := func(when string) {
		t.Helper()
		if again := call("POST", "/connectors/gcs", "make", kind, body); !bytes.Equal(again.body, first.body) {
			t.Errorf("%s: the repetition of a request is answered %s", when, again.body)
		}
		if again := call("POST", "/webhooks", "hook", "application/json",
			[]byte(`{"name":"n","url":"https://example.com/hook","events":["import_job.completed"]}`)); !bytes.Equal(again.body, hook.body) {
			t.Errorf("%s: the repetition of a request is answered %s", when, again.body)
		}
		test := call("POST", "/connectors/"+c.ID+"/test", "", "application/json", nil)
		if !bytes.Contains(test.body, []byte(`"success":true`)) {
			t.Errorf("%s: %s", when, test.body)
		}
		content, err := secret.Content(file)
		must(t, err)
		if s, err := secret.StateOf(content); err != nil || s.Keys != 1 || s.Waiting {
			t.Errorf("%s: %+v, %v", when, s, err)
		}
	}
	check("before")
	before, err := secret.Content(file)
	must(t, err)
	for _, flags := range [][]string{
		{"--data", up.data},
		{"--nats-url", "nats://" + listen, "--secrets-key", file},
	} {
		if flags[0] == "--nats-url" { // killed after the new key began to seal
			for _, step := range []secret.Step{secret.Add, secret.Promote} {
				_, err := secret.Rotate(file, step)
				must(t, err)
			}
		}
		p := start(t, append([]string{"secrets", "rotate", "--grace", "0s", "-o", "json"}, flags...)...)
		if <-p.exited; !p.cmd.ProcessState.Success() {
			t.Fatalf("rotate %v: %s", flags, p.output())
		}
		after, err := secret.Content(file)
		must(t, err)
		if bytes.Equal(before, after) {
			t.Errorf("%v: the key is the old one", flags)
		}
		before = after
		check(flags[0])
	}
	// From now on the old keys are worth nothing, and a restart finds what it needs.
	up.stop()
	up.start()
	up.waitReady(up.url)
	check("after a restart")
}
