package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var quiet = slog.New(slog.DiscardHandler)

func TestLoggerEscapes(t *testing.T) {
	const name = "a\x1b[31mb\nc\u009b2Jd\u202egpj.exe\x7f é 🎬"
	for _, format := range []string{"json", "text", ""} {
		var out bytes.Buffer
		log, err := NewLogger(format, "", &out)
		if err != nil {
			t.Fatal(err)
		}
		log.Info(name, "path", name, "err", errors.New(name), name, "key") //nolint:sloglint // hostile keys, too
		log.Debug("not at this level")
		line, rest, _ := strings.Cut(out.String(), "\n")
		if rest != "" {
			t.Errorf("%s: more than one line: %q", format, rest)
		}
		for _, bad := range "\x1b\n\u009b\u202e\x7f" {
			if strings.ContainsRune(line, bad) {
				t.Errorf("%s: %U reaches the terminal: %q", format, bad, line)
			}
		}
		if !strings.Contains(line, "é 🎬") {
			t.Errorf("%s: harmless text was escaped: %s", format, line)
		}
		if format == "json" {
			var rec map[string]any
			if err := json.Unmarshal([]byte(line), &rec); err != nil || rec["path"] != name {
				t.Errorf("does not decode to what was logged: %v, %q", err, rec["path"])
			}
		}
	}
}

func TestLoggerRefuses(t *testing.T) {
	if _, err := NewLogger("xml", "info", io.Discard); err == nil || !strings.Contains(err.Error(), "json or text") {
		t.Errorf("format: %v", err)
	}
	if _, err := NewLogger("json", "loud", io.Discard); err == nil || !strings.Contains(err.Error(), "debug, info, warn") {
		t.Errorf("level: %v", err)
	}
}

func TestGroupEndsTogether(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name  string
		first error // of the actor that returns on its own
		other error // of the one that is told to; nil: the context's
		want  []string
	}{
		{"nil stops the others", nil, nil, nil},
		{"error", boom, nil, []string{"first: boom"}},
		{"error while stopping", boom, errors.New("bang"), []string{"first: boom", "other: bang"}},
		{"nil, error while stopping", nil, errors.New("bang"), []string{"other: bang"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, settled := NewGroup(t.Context()), false
				g.Go("other", func(ctx context.Context) error {
					<-ctx.Done()
					time.Sleep(time.Hour) // takes its time, and is waited for
					settled = true
					if c.other != nil {
						return c.other
					}
					return ctx.Err()
				})
				g.Go("first", func(context.Context) error { return c.first })
				err := g.Wait()
				if !settled {
					t.Error("did not wait for all")
				}
				if (err != nil) != (c.want != nil) || err != nil && err.Error() != strings.Join(c.want, "\n") {
					t.Errorf("got %v, want %q", err, c.want)
				}
				if c.first != nil && !errors.Is(err, c.first) {
					t.Errorf("%v does not hold the cause", err)
				}
			})
		})
	}
}

func TestGroupEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := NewGroup(ctx)
	g.Go("a", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if err := NewGroup(t.Context()).Wait(); err != nil {
		t.Errorf("without actors: %v", err)
	}
}

func TestStack(t *testing.T) {
	var out bytes.Buffer
	s := NewStack(slog.New(slog.NewTextHandler(&out, nil)), time.Minute)
	var order []string
	bang := errors.New("bang")
	for _, name := range []string{"broker", "http", "services"} {
		s.Push(name, func(context.Context) error {
			order = append(order, name)
			if name != "broker" {
				return bang
			}
			return nil
		})
	}
	err := s.Stop()
	if want := []string{"services", "http", "broker"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if !errors.Is(err, bang) || err.Error() != "stop services: bang\nstop http: bang" {
		t.Errorf("error %v", err)
	}
	if n := strings.Count(out.String(), "level=ERROR"); n != 2 || !strings.Contains(out.String(), "step=http") {
		t.Errorf("log:\n%s", &out)
	}
	if err := s.Stop(); err != nil || len(order) != 3 {
		t.Errorf("stopped twice: %v, %v", err, order)
	}
}

func TestStackTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s, began := NewStack(quiet, 10*time.Second), time.Now()
		brokerStopped := false
		s.Push("broker", func(context.Context) error {
			time.Sleep(overtime / 2) // longer than what is left of the timeout, which is nothing
			brokerStopped = true
			return nil
		})
		s.Push("deaf", func(context.Context) error { <-release; return nil })
		s.Push("obedient", func(ctx context.Context) error {
			time.Sleep(4 * time.Second)
			return ctx.Err()
		})
		err := s.Stop()
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("took %s with a timeout of 10 s", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "deaf") {
			t.Errorf("error %v, want one about the deaf step", err)
		}
		if !brokerStopped {
			t.Error("the step below a deaf one was not run")
		}
		close(release)
	})
}

func TestSignals(t *testing.T) {
	ctx, stop := Signals(t.Context())
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("a signal did not end the context")
	}
	if cause := context.Cause(ctx); !strings.Contains(cause.Error(), "terminated") {
		t.Errorf("cause %v does not name the signal", cause)
	}
}

func TestVersion(t *testing.T) {
	if Version() == "" {
		t.Error("empty")
	}
	set := func(kv ...string) (s []debug.BuildSetting) {
		for i := 0; i < len(kv); i += 2 {
			s = append(s, debug.BuildSetting{Key: kv[i], Value: kv[i+1]})
		}
		return s
	}
	for want, info := range map[string]*debug.BuildInfo{
		"devel":              {Main: debug.Module{Version: "(devel)"}},
		"v1.2.3":             {Main: debug.Module{Version: "v1.2.3"}},
		"0123456789ab":       {Settings: set("vcs.revision", "0123456789abcdef")},
		"0123456789ab-dirty": {Settings: set("vcs.revision", "0123456789abcdef", "vcs.modified", "true")},
	} {
		if got := buildVersion(info); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestOps(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "answer"}, func() float64 { return 42 }))
	o := NewOps(quiet, reg)
	get := func(path string) (int, string) {
		t.Helper()
		rec := httptest.NewRecorder()
		o.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		return rec.Code, strings.TrimSpace(rec.Body.String())
	}
	want := func(path string, code int, body string) {
		t.Helper()
		if c, b := get(path); c != code || !strings.Contains(b, body) {
			t.Errorf("%s: %d %s, want %d %s", path, c, b, code, body)
		}
	}
	want("/healthz", 200, `"status":"ok"`)
	want("/readyz", 200, `{"status":"ready","checks":{}}`)
	want("/metrics", 200, "answer 42")
	want("/other", 404, "")

	var failing error
	o.AddCheck("broker", func(context.Context) error { return nil })
	o.AddCheck("scanner", func(context.Context) error { return failing })
	want("/readyz", 200, `{"status":"ready","checks":{"broker":"ok","scanner":"ok"}}`)
	failing = errors.New("no consumer")
	want("/readyz", 503, `{"status":"not ready","checks":{"broker":"ok","scanner":"no consumer"}}`)
	if err := o.Ready(t.Context()); !errors.Is(err, failing) || err.Error() != "scanner: no consumer" {
		t.Errorf("ready: %v", err)
	}
	failing = nil
	o.Stopping()
	want("/readyz", 503, "shutting down")
	want("/healthz", 200, "ok") // not a reason to kill it
	if err := o.Ready(t.Context()); !errors.Is(err, ErrStopping) {
		t.Errorf("ready while stopping: %v", err)
	}
}

func TestOpsCheckHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		o := NewOps(quiet, prometheus.NewRegistry())
		o.AddCheck("deaf", func(context.Context) error { calls.Add(1); <-release; return nil })
		for range 3 {
			began := time.Now()
			if err := o.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer within 1s") {
				t.Errorf("ready: %v", err)
			}
			if took := time.Since(began); took > checkTimeout {
				t.Errorf("a probe took %s", took)
			}
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls hang, want 1", n)
		}
		close(release)
		synctest.Wait()
		if err := o.Ready(t.Context()); err != nil {
			t.Errorf("after it came back: %v", err)
		}
	})
}

func TestOpsServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := NewOps(quiet, prometheus.NewRegistry())
	if err := o.Serve(t.Context(), l.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("port in use: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- o.serve(ctx, l) }()
	res, err := http.Get("http://" + l.Addr().String() + "/readyz")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", res, err)
	}
	_ = res.Body.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}
