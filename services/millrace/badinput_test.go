package millrace_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"millrace/services/millrace/client"
	"millrace/shared/bucket/gcs/gcstest"
)

// Each kind of bad input once, through the real program. What the API and each package refuse in detail is tested there;
// here it is that the error arrives, says what to do, and that nothing is left half done. A broker that is too old is
// refused in shared/broker (TestCheckVersion).

// TestBadFlags: what cannot start says why and what to do, and leaves alone what runs.
func TestBadFlags(t *testing.T) {
	t.Parallel()
	natsAddr := freeAddr(t)
	up := startUp(t, "--nats-listen", natsAddr)
	other := filepath.Join(t.TempDir(), "data")
	httpAddr := strings.TrimPrefix(up.url, "http://")
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"data folder in use": {[]string{"up", "--data", up.data, "--http", "127.0.0.1:0"}, []string{up.data, "in use", "--data"}},
		"HTTP port in use":   {[]string{"up", "--data", other, "--http", httpAddr}, []string{httpAddr, "in use", "--http"}},
		"NATS port in use": {
			[]string{"up", "--data", other, "--http", "127.0.0.1:0", "--nats-listen", natsAddr},
			[]string{natsAddr, "in use", "--nats-listen"},
		},
		"allowed folder that is not there": {
			[]string{"up", "--data", other, "--http", "127.0.0.1:0", "--allow-dir", other + "-nowhere"}, []string{"nowhere", "--allow-dir"},
		},
		"unknown interval": {
			[]string{"up", "--data", other, "--http", "127.0.0.1:0", "--extra-debounce-intervals", "soon"},
			[]string{"--extra-debounce-intervals", "soon"},
		},
		"unknown executor": {[]string{"up", "--data", other, "--executor", "magic"}, []string{"--executor", "magic", "nats", "exec=CMD"}},
		"unknown library":  {[]string{"up", "--data", other, "--http", "127.0.0.1:0", "--library", "ftp://x/y"}, []string{"--library", "gs://"}},
		"library of no folder": {
			[]string{"importer", "--secrets-key", other + ".key", "--nats-url", "nats://" + natsAddr}, []string{"--library"},
		},
		"unknown flag": {[]string{"up", "--colour", "red"}, []string{"--colour"}},
		"no broker": {
			[]string{"up", "--data", other, "--http", "127.0.0.1:0", "--nats-url", "nats://127.0.0.1:1"}, []string{"127.0.0.1:1", "--nats-url"},
		},
		"missing topology": {
			[]string{"job", "get", "job_1", "--url", "http://127.0.0.1:1", "--api-key", apiKey}, []string{"127.0.0.1:1", "--url"},
		},
		"wrong key": {[]string{"job", "get", "job_1", "--url", up.url, "--api-key", "wrong-key-of-some-length"}, []string{"API key"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, c.args...)
			eventually(t, "it gives up", func() error {
				if p.ended() == nil {
					return errors.New("it runs")
				}
				return nil
			})
			if p.cmd.ProcessState.ExitCode() < 1 {
				t.Errorf("ended with %v", p.cmd.ProcessState)
			}
			for _, w := range c.want {
				if !strings.Contains(p.output(), w) {
					t.Errorf("says nothing of %q:\n%s", w, p.output())
				}
			}
			if strings.Contains(p.output(), "goroutine ") {
				t.Errorf("panics:\n%s", p.output())
			}
		})
	}
	must(t, ready(t.Context(), up.url))
	up.stop()
}

// TestBadRequests: what cannot be done is refused with the field and what is allowed, and changes nothing.
func TestBadRequests(t *testing.T) {
	storage := gcstest.Start(t, "bucket")
	up := startUp(t)
	p := wire(t, up.api, up.inbox)
	p.automate(p.index, "1s", nil)
	credentials := storage.Credentials(t)

	gcs := func(bucket string, credentials []byte) (response, string) {
		res := postForm(t, up.url, map[string]string{
			"name": "Cloud", "bucket": bucket, "gcp_project_id": "test", "endpoint_url": storage.URL,
		}, credentials)
		var c struct {
			ID string `json:"connector_id"`
		}
		must(t, json.Unmarshal(res.body, &c))
		return res, c.ID
	}
	_, good := gcs("bucket", credentials)
	_, lost := gcs("no-such-bucket", credentials)

	automation := func(change obj) obj {
		body := obj{"connector_id": p.connector, "debounce_interval": "1s", "prompt_preset": obj{"prompt_id": p.prompt}}
		maps.Copy(body, change)
		return body
	}
	at := "/indexes/" + p.index + "/automations/import"
	before := snapshot(t, p)
	for name, c := range map[string]struct {
		method, path string
		body         any // []byte is sent as it is
		status       int
		want         []string
	}{
		"folder outside": {"POST", "/connectors/dir", obj{"name": "x", "path": filepath.Dir(up.inbox)}, 422, []string{"path", "--allow-dir"}},
		"link to the outside": {
			"POST", "/connectors/dir", obj{"name": "x", "path": filepath.Join(up.inbox, "out")}, 422, []string{"path", "--allow-dir"},
		},
		"bad glob":             {"PUT", at, automation(obj{"file_pattern": "*.{mp4"}), 422, []string{"file_pattern"}},
		"bad glob of a job":    {"POST", "/import-jobs", obj{"connector_id": p.connector, "index_id": p.index, "file_pattern": "[a"}, 422, []string{"file_pattern"}},
		"unknown interval":     {"PUT", at, automation(obj{"debounce_interval": "7m"}), 422, []string{"debounce_interval", "5m", "1d", "1s"}},
		"preset without id":    {"PUT", at, automation(obj{"prompt_preset": obj{}}), 422, []string{"prompt_preset.prompt_id"}},
		"no preset":            {"PUT", at, obj{"connector_id": p.connector, "debounce_interval": "1s"}, 422, []string{"prompt_preset"}},
		"unknown prompt":       {"PUT", at, automation(obj{"prompt_preset": obj{"prompt_id": "prm_x"}}), 404, []string{"prompt", "prm_x"}},
		"unknown connector":    {"PUT", at, automation(obj{"connector_id": "conn_x"}), 404, []string{"connector", "conn_x"}},
		"unknown index":        {"PUT", "/indexes/idx_x/automations/import", automation(nil), 404, []string{"index", "idx_x"}},
		"job for no index":     {"POST", "/import-jobs", obj{"connector_id": p.connector, "index_id": "idx_x"}, 404, []string{"index", "idx_x"}},
		"not JSON":             {"PUT", at, []byte(`{"enabled": tru`), 400, []string{"not JSON", "byte"}},
		"not an object":        {"PUT", at, []byte(`[1]`), 400, []string{"object"}},
		"wrong types":          {"PUT", at, automation(obj{"enabled": "yes", "source_prefix": 7}), 422, []string{"enabled", "source_prefix", "boolean", "string"}},
		"too large":            {"PUT", at, automation(obj{"source_prefix": strings.Repeat("x", 2<<20)}), 413, []string{"1048576"}},
		"unknown route":        {"GET", "/nowhere", nil, 404, []string{"/nowhere"}},
		"no such job":          {"GET", "/import-jobs/job_x", nil, 404, []string{"job_x"}},
		"push to no one":       {"POST", "/notifications/conn_x", []byte(`{}`), 404, []string{"conn_x"}},
		"browse a lost bucket": {"POST", "/connectors/" + lost + "/browse", obj{}, 502, []string{"no-such-bucket", "does not exist"}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "link to the outside" {
				must(t, os.Symlink("/", filepath.Join(up.inbox, "out")))
				defer func() { must(t, os.Remove(filepath.Join(up.inbox, "out"))) }()
			}
			data, raw := c.body.([]byte)
			if !raw && c.body != nil {
				var err error
				data, err = json.Marshal(c.body)
				must(t, err)
			}
			refused(t, request(t, up.url, c.method, c.path, data), c.status, c.want...)
		})
	}
	t.Run("too large, from a client that listens only once it has said all", func(t *testing.T) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(up.url, "http://"))
		must(t, err)
		defer func() { _ = conn.Close() }()
		must(t, conn.SetDeadline(time.Now().Add(patience)))
		const size = 16 << 20 // more than the buffers between us hold
		_, err = fmt.Fprintf(conn, "PUT /api/v2%s HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n", at, apiKey, size)
		must(t, err)
		_, err = conn.Write(bytes.Repeat([]byte(" "), size))
		must(t, err)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must(t, err)
		body, err := io.ReadAll(res.Body)
		must(t, errors.Join(err, res.Body.Close()))
		refused(t, response{status: res.StatusCode, body: body}, 413, "1048576")
	})
	for name, c := range map[string]struct {
		data   []byte
		status int
		want   []string
	}{
		"not JSON":  {[]byte("-----BEGIN"), 422, []string{"credentials_file", "JSON"}},
		"empty":     {[]byte("{}"), 422, []string{"credentials_file", "service_account"}},
		"too large": {bytes.Repeat([]byte("x"), 64<<10+1), 422, []string{"credentials_file", "65536"}},
	} {
		t.Run("credentials "+name, func(t *testing.T) {
			res, _ := gcs("bucket", c.data)
			refused(t, res, c.status, c.want...)
		})
	}
	if after := snapshot(t, p); before != after {
		t.Errorf("something changed:\n%s\n%s", before, after)
	}

	try := func(connector, word string) {
		t.Helper()
		var test struct {
			Success bool
			Error   *string `json:"error_message"`
		}
		must(t, p.api.Do(t.Context(), http.MethodPost, "/connectors/"+connector+"/test", nil, &test))
		if test.Success != (word == "") || word != "" && !strings.Contains(*test.Error, word) {
			t.Errorf("test: %+v, want %q", test, word)
		}
	}
	try(good, "")
	try(lost, "does not exist")
	var j client.Job
	must(t, p.api.Do(t.Context(), http.MethodPost, "/import-jobs", obj{"connector_id": lost, "index_id": p.index}, &j))
	eventually(t, "a job from a bucket that is not there fails", func() error {
		must(t, p.api.Get(t.Context(), "/import-jobs/"+j.ID, &j))
		if j.Status != "failed" || j.Error == nil || !strings.Contains(*j.Error, lost+" does not exist") {
			return fmt.Errorf("%s: %v", j.Status, value(j.Error))
		}
		return nil
	})
	storage.Revoke()
	try(good, "new key")
}

// postForm makes a connector as the clients do.
func postForm(t testing.TB, url string, text map[string]string, credentials []byte) response {
	t.Helper()
	body, kind := form(t, text, credentials)
	res, err := send(t.Context(), http.MethodPost, url+"/api/v2/connectors/gcs", http.Header{"X-Api-Key": {apiKey}, "Content-Type": {kind}}, body)
	must(t, err)
	return res
}

// form is the body of a request for a connector, and its content type.
func form(t testing.TB, text map[string]string, credentials []byte) (body []byte, kind string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for k, v := range text {
		must(t, w.WriteField(k, v))
	}
	part, err := w.CreateFormFile("credentials_file", "key.json")
	must(t, err)
	_, err = part.Write(credentials)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes(), w.FormDataContentType()
}

func request(t testing.TB, url, method, path string, body []byte) response {
	t.Helper()
	res, err := send(t.Context(), method, url+"/api/v2"+path, http.Header{"X-Api-Key": {apiKey}, "Content-Type": {"application/json"}}, body)
	must(t, err)
	return res
}

// refused holds an answer against the envelope of errors, and its sentence against what it must say.
func refused(t testing.TB, res response, status int, words ...string) {
	t.Helper()
	var e struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(res.body, &e); err != nil || res.status != status || e.Error.Code == "" {
		t.Fatalf("%d, want %d: %s", res.status, status, res.body)
	}
	for _, w := range words {
		if !strings.Contains(e.Error.Message, w) {
			t.Errorf("says nothing of %q: %s", w, e.Error.Message)
		}
	}
}

func value(s *string) string {
	if s == nil {
		return "null"
	}
	return *s
}

// snapshot is all that a refused request could have changed.
func snapshot(t testing.TB, p *pipeline) string {
	t.Helper()
	var all strings.Builder
	for _, path := range []string{"/connectors", "/indexes", "/prompts", "/import-jobs", "/prompt-runs", "/indexes/" + p.index + "/automations/import"} {
		var raw json.RawMessage
		must(t, p.api.Get(t.Context(), path, &raw))
		all.Write(raw)
	}
	return all.String()
}

// TestBadNotifications: what is not what a provider sends is kept among the dead and counted, and the service lives.
func TestBadNotifications(t *testing.T) {
	listen := freeAddr(t)
	up := startUp(t, "--nats-listen", listen, "--executor", "exec="+countBytes)
	p := wire(t, up.api, up.inbox)
	p.automate(p.index, "1s", nil)
	nc := dial(t, "nats://"+listen)

	bad := []string{
		"not JSON", `{}`, `[]`, `"text"`, `{"op":"renamed","path":"a.mp4"}`, `{"op":"created","path":""}`,
		`{"op":"created","path":"a.mp4","size":-1}`, "{\"op\":\"created\",\"path\":\"\xff.mp4\"}",
		`{"op":"created","path":"` + strings.Repeat("x", 5000) + `"}`, strings.Repeat("[", 100_000),
	}
	for _, body := range bad {
		if res := request(t, up.url, http.MethodPost, "/notifications/"+p.connector, []byte(body)); res.status != http.StatusOK {
			t.Fatalf("%.40q: %d %s", body, res.status, res.body)
		}
	}
	// The broker lets a header stand twice, and a library below takes that for impossible.
	msg := nats.NewMsg("millrace.notification." + p.connector)
	msg.Header = nats.Header{"Twice": {"one", "two"}, "Ce-Id": {"a", "b"}, "Nats-Msg-Id-": {"x", "y"}}
	msg.Data = []byte("not JSON either")
	must(t, nc.PublishMsg(msg))
	must(t, nc.Publish("millrace.notification.conn_nobody", []byte(`{}`)))
	must(t, nc.Flush())

	want := len(bad) + 2
	eventually(t, "all of them are dead", func() error {
		if n := len(deadLetters(t, nc, "millrace")); n != want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
	for _, d := range deadLetters(t, nc, "millrace") {
		var l struct{ Service, Consumer, Reason, Subject string }
		if err := json.Unmarshal(d, &l); err != nil || l.Service != "scanner" || l.Reason == "" || !strings.Contains(l.Subject, ".notification.") {
			t.Errorf("dead letter %.300s: %v", d, err)
		}
	}
	metrics, err := send(t.Context(), http.MethodGet, up.url+"/metrics", nil, nil)
	must(t, err)
	if line := fmt.Sprintf(`scanner_notifications_total{outcome="poison",service="scanner"} %d`, want); !strings.Contains(string(metrics.body), line) {
		t.Errorf("not counted: no %s", line)
	}

	p.drop("good.mp4", sample(t, "video.mp4"))
	j := p.nthJob(1)
	j = p.follow(j.ID, patience)
	p.followRun(p.nthRun(1), j, patience)
	must(t, up.ended())
}

// TestUnreadableFile: a file that this server may not read fails with the reason and holds nobody up. One whose name is
// not text cannot be a path of the API and is left out, which the automation says.
func TestUnreadableFile(t *testing.T) {
	up := newUp(t, "--executor", "exec="+countBytes)
	if os.Geteuid() == 0 { // may read everything
		const nobody = 65534
		up.user = &syscall.Credential{Uid: nobody, Gid: nobody}
		dir := filepath.Dir(up.inbox)
		must(t, os.Chmod(filepath.Dir(dir), 0o755))
		must(t, errors.Join(os.Chown(dir, nobody, nobody), os.Chown(up.inbox, nobody, nobody)))
		up.env = []string{"HOME=" + filepath.Dir(up.inbox)}
	}
	up.start()
	up.waitReady(up.url)
	p := wire(t, up.api, up.inbox)

	p.drop("secret.mp4", sample(t, "video.mp4"))
	must(t, os.Chmod(filepath.Join(up.inbox, "secret.mp4"), 0))
	p.drop("open.mp4", sample(t, "video.mp4"))
	must(t, os.WriteFile(filepath.Join(up.inbox, "not text \xff.mp4"), sample(t, "video.mp4"), 0o600))
	p.automate(p.index, "1s", nil)

	j := p.nthJob(1)
	j = p.follow(j.ID, patience)
	got := p.outcomes(j)
	if len(got) != 2 || got["open.mp4"] != "imported" || !strings.HasPrefix(got["secret.mp4"], "failed: ") {
		t.Errorf("%q", got)
	}
	if len(j.Failed) != 1 || !strings.Contains(j.Failed[0]["error"], "permission") {
		t.Errorf("the reason is not given: %q", j.Failed)
	}
	p.followRun(p.nthRun(1), j, patience)
	eventually(t, "the automation says what it left out", func() error {
		a, err := p.automation()
		if err != nil {
			return err
		}
		if a.LastError == nil || !strings.Contains(*a.LastError, "UTF-8") {
			return fmt.Errorf("last_error: %s", value(a.LastError))
		}
		return nil
	})
}
