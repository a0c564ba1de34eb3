package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/services/admin"
	"millrace/shared/secret"
	"millrace/shared/topology"
)

// run runs an admin until the test ends or stop is called.
func (w *world) run() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.admin.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			must(w.t, <-ended)
		}
	}
	w.t.Cleanup(stop)
	eventually(w.t, "ready", func() bool { return w.admin.Ready() == nil })
	return stop
}

func TestKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	w.run()
	keys, err := admin.OpenKeys(ctx, w.bus)
	must(t, err)
	status := func(key string) int { return w.do("GET", "/auth/validate", nil, request{key: key}).status }

	made, err := keys.Create(ctx, admin.KeyRequest{Name: "ci"})
	must(t, err)
	if !secret.ValidKey(made.Key) || made.Prefix != made.Key[:12] || !made.Active || strings.Join(made.Scopes, " ") != "read" || made.LastUsedAt != nil {
		t.Errorf("%+v", made)
	}
	w.do("GET", "/connectors", nil, request{key: made.Key}).want(200)
	w.do("POST", "/indexes", obj{"name": "n"}, request{key: made.Key}).refused(403, "authorization_insufficient_scope")
	// A use is noted, once in a while.
	var used string
	eventually(t, "its use was noted", func() bool {
		for _, k := range list(t, keys) {
			if k.ID == made.ID && k.LastUsedAt != nil {
				used = *k.LastUsedAt
			}
		}
		return used != ""
	})
	before, err := w.keyring.Last(ctx)
	must(t, err)
	for range 20 {
		w.do("GET", "/connectors", nil, request{key: made.Key}).want(200)
	}

	// Revoked: at once here, where the watch brings it, and in a process that does not watch.
	revoked, err := keys.Revoke(ctx, made.ID)
	must(t, err)
	if revoked.Active || revoked.RevokedAt == nil || revoked.Key != "" {
		t.Errorf("%+v", revoked)
	}
	if after, err := w.keyring.Last(ctx); err != nil || after != before+1 {
		t.Errorf("%d writes for twenty uses and a revocation: %v", after-before, err)
	}
	eventually(t, "revoked", func() bool { return status(made.Key) == 401 })
	if w.again("other").do("GET", "/auth/validate", nil, request{key: made.Key}).status != 401 {
		t.Error("another process lets the key in")
	}
	if again, err := keys.Revoke(ctx, made.ID); err != nil || *again.RevokedAt != *revoked.RevokedAt {
		t.Errorf("revoked twice: %+v, %v", again, err)
	}
	if _, err := keys.Revoke(ctx, "key_nothing"); err == nil || !strings.Contains(err.Error(), "key_nothing") {
		t.Errorf("revoked nothing: %v", err)
	}
	if _, err := w.admin.EnsureKey(ctx, made.Key); !errors.Is(err, admin.ErrKeyRevoked) {
		t.Errorf("a restart brings a revoked key back: %v", err)
	}

	// Expired, by its own time.
	short, err := keys.Create(ctx, admin.KeyRequest{Name: "short", Scopes: []string{"write", "read", "write"}, ExpiresAt: time.Now().Add(300 * time.Millisecond)})
	must(t, err)
	if status(short.Key) != 204 || strings.Join(short.Scopes, " ") != "read write" {
		t.Errorf("%+v", short)
	}
	eventually(t, "expired", func() bool { return status(short.Key) == 401 })

	for _, bad := range []admin.KeyRequest{
		{}, {Name: strings.Repeat("x", 101)}, {Name: "n", Scopes: []string{"all"}}, {Name: "n", Scopes: []string{"public"}},
		{Name: "n", Scopes: []string{"any key"}}, {Name: "n", ExpiresAt: time.Now().Add(-time.Second)},
	} {
		if _, err := keys.Create(ctx, bad); err == nil {
			t.Errorf("made %+v", bad)
		}
	}
	for k, err := range w.keyring.All(ctx) {
		must(t, err)
		raw, err := json.Marshal(k)
		must(t, err)
		for _, secret := range []string{made.Key[12:], short.Key[12:]} {
			if bytes.Contains(raw, []byte(secret)) {
				t.Errorf("the key is stored: %s", raw)
			}
		}
	}
	if log := w.log.String(); strings.Contains(log, made.Key[12:]) || strings.Contains(log, short.Key[12:]) {
		t.Error("a key is in the log")
	}
}

func list(t *testing.T, keys *admin.Keys) []admin.APIKey {
	t.Helper()
	l, err := keys.List(t.Context())
	must(t, err)
	return l
}

// A watch that has missed a change is noticed, and keys are asked for again.
func TestSilentWatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run()
	key := w.keys["read"]
	w.do("GET", "/auth/validate", nil, request{key: key}).want(204)
	// A consumer that is paused sends heartbeats and no messages, so its client suspects nothing.
	stream, err := w.bus.JetStream().Stream(t.Context(), "KV_"+w.bus.Bucket(topology.Keys))
	must(t, err)
	for name := range stream.ConsumerNames(t.Context()).Name() {
		_, err := stream.PauseConsumer(t.Context(), name, time.Now().Add(time.Hour))
		must(t, err)
	}
	must(t, w.keyring.Delete(t.Context(), secret.HashKey(key)))
	eventually(t, "the revocation has come through", func() bool {
		return w.do("GET", "/auth/validate", nil, request{key: key}).status == 401
	})
	eventually(t, "watching again", func() bool { return w.admin.Ready() == nil })
}

// The door lets in who can read the folder, as long as the server runs.
func TestDoor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := admin.ReadDoor(dir); !errors.Is(err, admin.ErrNoDoor) {
		t.Errorf("no server: %v", err)
	}
	w := newWorld(t, func(c *admin.Config) { c.Addr, c.Door = "0.0.0.0:0", filepath.Join(dir, admin.DoorFile) })
	stop := w.run()
	info, err := os.Stat(filepath.Join(dir, admin.DoorFile))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	door, err := admin.ReadDoor(dir)
	must(t, err)
	if !strings.HasPrefix(door.URL, "http://127.0.0.1:") {
		t.Errorf("door at %s", door.URL)
	}
	call := func(method, path, token, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, door.URL+base+path, strings.NewReader(body))
		must(t, err)
		r.Header.Set("X-API-Key", token)
		res, err := http.DefaultClient.Do(r)
		must(t, err)
		defer func() { _ = res.Body.Close() }()
		said, err := io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, string(said)
	}
	// Not for keys, not even those with all scopes; and the token is no key.
	for _, token := range []string{"", w.keys["admin"], door.Token + "x", door.Token[:len(door.Token)-1]} {
		if status, said := call("GET", "/operator/keys", token, ""); status != 401 {
			t.Errorf("%q: %d %s", token, status, said)
		}
	}
	if status, _ := call("GET", "/indexes", door.Token, ""); status != 401 {
		t.Errorf("the operator's token is a key: %d", status)
	}
	status, said := call("POST", "/operator/keys", door.Token, `{"name":"n","scopes":["write"]}`)
	var made admin.APIKey
	must(t, json.Unmarshal([]byte(said), &made))
	if status != 200 || !secret.ValidKey(made.Key) {
		t.Fatalf("%d %s", status, said)
	}
	w.do("POST", "/indexes", obj{"name": "n"}, request{key: made.Key}).want(201)
	if _, said := call("GET", "/operator/keys", door.Token, ""); strings.Contains(said, made.Key) || !strings.Contains(said, made.ID) {
		t.Errorf("list: %s", said)
	}
	for _, bad := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/operator/keys", "", 400}, {"POST", "/operator/keys", "[]", 400}, {"POST", "/operator/keys", `{"name":""}`, 422},
		{"POST", "/operator/keys", `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, 413},
		{"DELETE", "/operator/keys/key_x", "", 404}, {"DELETE", "/operator/keys/*", "", 404},
	} {
		if status, said := call(bad.method, bad.path, door.Token, bad.body); status != bad.status || !strings.Contains(said, `"error"`) {
			t.Errorf("%+v: %d %s", bad, status, said)
		}
	}
	if status, said := call("DELETE", "/operator/keys/"+made.ID, door.Token, ""); status != 200 || !strings.Contains(said, `"is_active":false`) {
		t.Errorf("revoke: %d %s", status, said)
	}
	stop()
	if _, err := os.Stat(filepath.Join(dir, admin.DoorFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the door stays: %v", err)
	}
	if strings.Contains(w.log.String(), door.Token) {
		t.Error("the token is in the log")
	}
}

// There are no sessions, so nobody may manage keys over the public routes.
func TestPublicKeyRoutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, route := range []string{"GET /api-keys", "POST /api-keys", "GET /api-keys/key_1", "DELETE /api-keys/key_1", "POST /api-keys/key_1/revoke", "POST /api-keys/key_1/rotate"} {
		method, path, _ := strings.Cut(route, " ")
		w.do(method, path, nil).refused(403, "authorization_session_required", "millrace key")
		w.do(method, path, nil, request{key: "-"}).refused(401, "authentication_invalid_api_key")
	}
	w.do("GET", "/operator/keys", nil).refused(404, "route_not_found") // there is no door here
}

// A key that asks too often hears so and for how long; others do not.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *admin.Config) {
		c.Limits = admin.Limits{WriteLimit: admin.Limit{Minute: 1000, Hour: 3}, ReadLimit: admin.Limit{Minute: 1000, Hour: 1}}
	})
	index := func(key string, headers ...string) answer {
		header := map[string]string{}
		for i := 0; i < len(headers); i += 2 {
			header[headers[i]] = headers[i+1]
		}
		return w.do("POST", "/indexes", obj{"name": "n"}, request{key: key, header: header})
	}
	w.admin.StopLimits(time.Now()) // or the hour could end meanwhile
	index(w.keys["admin"]).want(201)
	index(w.keys["admin"]).want(201)
	index("-", "Authorization", "Bearer "+w.keys["admin"]).want(201)
	a := index(w.keys["admin"]).refused(429, "rate_limit_exceeded", "hour", "write") // and Retry-After, which do checks
	if a.at("error", "details", "limit") != 3.0 {
		t.Errorf("%s", a.raw)
	}
	index(w.keys["admin"], "Idempotency-Key", "k").refused(429, "rate_limit_exceeded")
	index(w.keys["write"]).want(201)
	w.do("GET", "/indexes", nil).want(200)
	w.do("GET", "/indexes", nil).refused(429, "rate_limit_exceeded", "read")
	w.do("GET", "/auth/validate", nil).want(204) // is not counted
	for _, route := range [][2]string{{"GET", "/rate-limit/status"}, {"POST", "/rate-limit/refresh"}} {
		s := w.do(route[0], route[1], nil).want(200)
		if s.at("categories", "write", "hour_used") != 3.0 || s.at("categories", "write", "hour_remaining") != 0.0 ||
			s.at("categories", "write", "minute_limit") != 1000.0 || s.at("categories", "read", "hour_used") != 1.0 || s.at("categories", "notification") != nil {
			t.Errorf("%s", s.raw)
		}
	}
}
