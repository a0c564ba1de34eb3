package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"millrace/shared/egress"
	"millrace/shared/secret"
	"millrace/shared/webhook"
)

// The vector of the contract (§16.6), from the data to the header.
func TestVector(t *testing.T) {
	t.Parallel()
	const want = `{"api_version":"2024-01","created_at":"2026-03-01T10:05:00Z","data":{"index_id":"idx_7f3a","job_id":"job_51c2","status":"completed","title":"Café & Co"},"event":"import_job.completed","id":"evt_0192"}`
	body, err := webhook.Canonical([]byte(`{ "id":"evt_0192", "event":"import_job.completed", "created_at":"2026-03-01T10:05:00Z", "api_version":"2024-01",
		"data": {"title":"Caf\u00e9 \u0026 Co","status":"completed","job_id":"job_51c2","index_id":"idx_7f3a"} }`))
	if err != nil || string(body) != want || len(body) != 201 {
		t.Fatalf("%v, %d bytes:\n%s", err, len(body), body)
	}
	got := webhook.Signature(secret.NewString("whsec_example_do_not_use"), body)
	if got != "sha256=d95f1d3374ffce4784dd6562ffc8c55194a650f090a9737a5afcfd0fd39ded5b" {
		t.Error(got)
	}
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"b":1,"a":{"d":[ ],"c":{ }}}`:               `{"a":{"c":{},"d":[]},"b":1}`,
		"\"\u2028<\\u003e\\/\\u0001\\n\\\"\\\\\"":     "\"\u2028<>/\\u0001\\n\\\"\\\\\"",
		`[1.0, 1e3, 1.5E-3, -0, 12345678901234567]`:   `[1.0,1000,0.0015,-0,12345678901234567]`,
		`[true,false,null]`:                           `[true,false,null]`,
		`{"\u00e9":"\ud83d\ude00","z":"\ud800","":0}`: "{\"\":0,\"z\":\"\uFFFD\",\"é\":\"😀\"}",
	} {
		got, err := webhook.Canonical([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n got %s\nwant %s", in, err, got, want)
		}
		if again, err := webhook.Canonical(got); err != nil || string(again) != string(got) {
			t.Errorf("%s: not stable: %v %s", in, err, again)
		}
	}
	for _, bad := range []string{"", "{", "1 2", `{"a":}`} {
		if _, err := webhook.Canonical([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestBody(t *testing.T) {
	t.Parallel()
	env, err := webhook.NewEnvelope("evt_1", "export.ready", time.Date(2026, 3, 1, 10, 5, 0, 7e6, time.FixedZone("", 3600)), map[string]any{"b": "<&>", "a": nil})
	if err != nil {
		t.Fatal(err)
	}
	const plain = `{"api_version":"2024-01","created_at":"2026-03-01T09:05:00.007Z","data":{"a":null,"b":"<&>"},"event":"export.ready","id":"evt_1"`
	if string(env) != plain+"}" {
		t.Errorf("%s", env)
	}
	body, err := webhook.Body(env, json.RawMessage(`{"z":1,"n8n":"<x>"}`))
	if err != nil || string(body) != plain+`,"metadata":{"n8n":"<x>","z":1}}` {
		t.Errorf("%v %s", err, body)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	names := webhook.Events()
	slices.Sort(names)
	if len(slices.Compact(names)) != 17 {
		t.Error(names)
	}
}

// receiver answers as handle does, and hands out what it got.
func receiver(t *testing.T, handle http.HandlerFunc) (url string, got <-chan *received) {
	t.Helper()
	seen := make(chan *received, 16)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen <- &received{r, body}
		handle(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, seen
}

type received struct {
	*http.Request
	body []byte
}

func client(t *testing.T, timeout time.Duration, allow ...string) *webhook.Client {
	t.Helper()
	g, err := egress.New(allow)
	if err != nil {
		t.Fatal(err)
	}
	return webhook.NewClient(g, webhook.ClientConfig{Timeout: timeout})
}

// What is sent is signed over the very bytes, in both ways, and an independent implementation agrees.
func TestSend(t *testing.T) {
	t.Parallel()
	url, got := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "thank you\xff")
	})
	now, old := webhook.NewSecret(), webhook.NewSecret()
	body := []byte(`{"a":"é"}`)
	send := func() *received {
		t.Helper()
		a := client(t, 0, "127.0.0.1").Send(t.Context(), webhook.Request{
			URL: url + "/x%2Fy?z=%20", Webhook: "wh_1", Delivery: "dlv_1", EventID: "evt_1", Event: "test", Body: body, Secrets: []secret.String{now, old},
		})
		if !a.Delivered() || a.Code != 202 || a.Body != "thank you\uFFFD" || a.Error != "" || a.At.IsZero() {
			t.Errorf("%+v", a)
		}
		return <-got
	}
	r := send()
	if string(r.body) != string(body) || r.Method != http.MethodPost || r.RequestURI != "/x%2Fy?z=%20" {
		t.Errorf("%s %s %s", r.Method, r.RequestURI, r.body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "X-Webhook-ID": "wh_1", "X-Delivery-ID": "dlv_1", "X-Event-Type": "test",
		"Idempotency-Key": "evt_1", "X-Webhook-Signature": webhook.Signature(now, body),
	} {
		if r.Header.Get(name) != want {
			t.Errorf("%s: %q", name, r.Header.Get(name))
		}
	}
	for _, s := range []secret.String{now, old} {
		v, err := standard.NewWebhook(s.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Verify(r.body, r.Header); err != nil {
			t.Errorf("Standard Webhooks: %v", err)
		}
		if v.Verify(append(r.body, ' '), r.Header) == nil {
			t.Error("a changed body verifies")
		}
	}
	if again := send(); again.Header.Get("X-Delivery-Attempt-ID") == r.Header.Get("X-Delivery-Attempt-ID") {
		t.Error("two attempts have one id")
	}
}

// Whatever a receiver does, an attempt ends in time, with little in hand, and says what was wrong.
func TestReceivers(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	hang := func(r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	}
	elsewhere, arrived := receiver(t, func(http.ResponseWriter, *http.Request) {})
	for name, c := range map[string]struct {
		handle http.HandlerFunc
		code   int
		error  string
		after  time.Duration
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere, http.StatusTemporaryRedirect)
		}, 307, "redirects are not followed", 0},
		"gone": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) }, 410, "receiver answered 410", 0},
		"busy": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, 503, "receiver answered 503", 2 * time.Minute},
		"nonsense": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "-1e9")
			w.WriteHeader(http.StatusTooManyRequests)
		}, 429, "receiver answered 429", 0},
		"silent": {func(_ http.ResponseWriter, r *http.Request) { hang(r) }, 0, "did not answer within 2s", 0},
		"slow body": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
			hang(r)
		}, 200, "", 0},
		"huge": {func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i < 10<<20 && r.Context().Err() == nil; i += 1 << 10 {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<10)); err != nil {
					return
				}
			}
		}, 200, "", 0},
		"huge header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, 0, "request failed", 0},
		"hangs up": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_ = conn.Close()
		}, 0, "request failed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, _ := receiver(t, c.handle)
			start := time.Now()
			a := client(t, 2*time.Second, "127.0.0.0/8").Send(t.Context(), webhook.Request{URL: url, Body: []byte("{}")})
			if a.Code != c.code || !strings.Contains(a.Error, c.error) || (c.error == "") != (a.Error == "") || a.RetryAfter != c.after || len(a.Body) > 4096 {
				t.Errorf("%d %q %s, %d bytes", a.Code, a.Error, a.RetryAfter, len(a.Body))
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
	t.Cleanup(func() {
		select {
		case <-arrived:
			t.Error("a redirect was followed")
		default:
		}
	})
}

// Nothing that the guard refuses is reached, and what is said about it tells nothing of the network here.
func TestRefused(t *testing.T) {
	t.Parallel()
	url, got := receiver(t, func(http.ResponseWriter, *http.Request) {})
	port := strconv.Itoa(portOf(t, url))
	for _, target := range []string{url, "https://127.0.0.1:" + port, "https://localhost:" + port, "http://localhost:" + port, "https://[::ffff:127.0.0.1]:" + port} {
		a := client(t, 0).Send(t.Context(), webhook.Request{URL: target, Body: []byte("{}")})
		if a.Code != 0 || !strings.Contains(a.Error, "--allow-endpoint") || strings.Contains(target, "localhost") && strings.Contains(a.Error, "127.") {
			t.Errorf("%s: %+v", target, a)
		}
	}
	select {
	case <-got:
		t.Error("something arrived")
	default:
	}
}

func portOf(t *testing.T, url string) (port int) {
	t.Helper()
	if _, err := fmt.Sscanf(url, "http://127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	return port
}

func TestGivesUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a := client(t, 0, "127.0.0.1").Send(ctx, webhook.Request{URL: "http://127.0.0.1:1/"}); a.Delivered() || a.Error == "" {
		t.Errorf("%+v", a)
	}
}
