package millrace_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"millrace/shared/secret"
)

// TestKeys makes and revokes API keys with the command line: beside a running server, by its data folder alone, and
// against a broker.
func TestKeys(t *testing.T) {
	listen := freeAddr(t)
	up := startUp(t, "--nats-listen", listen)
	key := func(args ...string) string {
		t.Helper()
		p := start(t, append([]string{"key"}, args...)...)
		if <-p.exited; !p.cmd.ProcessState.Success() {
			t.Fatalf("key %v: %s", args, p.output())
		}
		return p.output()
	}
	status := func(apiKey, method, path string, body []byte) int {
		t.Helper()
		res, err := send(t.Context(), method, up.url+"/api/v2"+path, http.Header{"X-Api-Key": {apiKey}, "Content-Type": {"application/json"}}, body)
		must(t, err)
		return res.status
	}
	for where, flags := range map[string][]string{
		"data folder": {"--data", up.data},
		"broker":      {"--nats-url", "nats://" + listen},
	} {
		out := key(append([]string{"create", "ci", "--scope", "write", "--expires", "90d", "-o", "json"}, flags...)...)
		var made struct {
			ID  string `json:"key_id"`
			Key string `json:"key"`
		}
		must(t, json.Unmarshal([]byte(out), &made))
		if !secret.ValidKey(made.Key) {
			t.Fatalf("%s: %s", where, out)
		}
		if got := status(made.Key, "POST", "/indexes", []byte(`{"name":"n"}`)); got != 201 {
			t.Errorf("%s: a new key is answered %d", where, got)
		}
		if list := key(append([]string{"ls"}, flags...)...); !strings.Contains(list, made.ID) || strings.Contains(list, made.Key) {
			t.Errorf("%s: %s", where, list)
		}
		key(append([]string{"revoke", made.ID}, flags...)...)
		eventually(t, "revoked", func() error {
			if got := status(made.Key, "GET", "/auth/validate", nil); got != 401 {
				return fmt.Errorf("%s: a revoked key is answered %d", where, got)
			}
			return nil
		})
	}
	plain := key("create", "plain", "--data", up.data)
	if fields := strings.Fields(plain); !secret.ValidKey(fields[len(fields)-1]) {
		t.Errorf("printed %q", plain)
	}
	up.stop()
	p := start(t, "key", "ls", "--data", up.data)
	if <-p.exited; p.cmd.ProcessState.Success() || !strings.Contains(p.output(), "millrace up") {
		t.Errorf("without a server: %s", p.output())
	}
}
