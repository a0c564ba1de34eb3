package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/shared/process/processtest"
)

// program is versitygw, built from its module at the version in tools.mod. Go keeps the program in its build cache, so
// only the first test that needs it on a machine waits for that, a minute or two.
var program = sync.OnceValues(func() (string, error) {
	root, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(root, "tools.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			err = errors.New("tools.mod is in none of the folders above")
			return "", err
		}
		root = filepath.Dir(root)
	}
	var out, errs bytes.Buffer
	cmd := exec.Command("go", "tool", "-modfile=../tools.mod", "-n", "versitygw")
	cmd.Dir = filepath.Join(root, "schemas") // a modfile works in the folder of some module, outside of a workspace
	// The flags are those of the Makefile, so that what both need is compiled once.
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-trimpath -buildvcs=false", "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build versitygw: %w\n%s", err, errs.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
})

// Gateway runs versitygw until the test ends. Arguments are for the program, such as where to send events.
func Gateway(t testing.TB, args ...string) *Server {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	// Short, as addresses of sockets have to be.
	dir, err := os.MkdirTemp("", "s3-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	for _, d := range []string{"data", "old", "meta"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	events := args
	args = append([]string{"--port", socket, "--access", AccessKeyID, "--secret", SecretAccessKey, "--region", Region, "--quiet",
		"--health", "/health"}, args...)
	args = append(args, "posix", "--versioning-dir", filepath.Join(dir, "old"), "--sidecar", filepath.Join(dir, "meta"),
		filepath.Join(dir, "data"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), path, args...) // ended by the clean-up, when nothing uses it any more
	cmd.Stdout, cmd.Stderr = log, log
	ended, err := processtest.Start(cmd)
	if err != nil {
		t.Fatalf("start versitygw: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = log.Close()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("versitygw said:\n%s", said[max(0, len(said)-3000):])
		}
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	var transport http.RoundTripper = &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 64, DisableCompression: true}
	if len(events) > 0 {
		transport = unshared{t, transport.(*http.Transport)}
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "gateway"})
			r.Out.Host = r.In.Host // it is part of what was signed
		},
		Transport:    transport,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	s := serve(t, proxy)
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	for deadline := time.Now().Add(30 * time.Second); ; {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://gateway/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err == nil {
			res.Body.Close()
			return s
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("versitygw ended:\n%s", said)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("versitygw does not listen: %v", err)
		}
	}
}

// unshared gives each request that changes something a connection of its own, which stays open until the test ends.
//
// The program writes notifications behind its answers, out of memory that the next request of the connection is read to: under
// load some name what never was.
type unshared struct {
	t      testing.TB
	shared *http.Transport
}

func (u unshared) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return u.shared.RoundTrip(r)
	}
	own := u.shared.Clone()
	u.t.Cleanup(own.CloseIdleConnections)
	return own.RoundTrip(r)
}
