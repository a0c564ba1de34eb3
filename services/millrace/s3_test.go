package millrace_test

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
	"millrace/shared/bucket/s3/s3test"
)

// A bucket on versitygw, which publishes its own notifications straight to our broker, and a library in a bucket of another
// server: a drop of 200 files with difficult names, a part of it found by a scan, some overwritten and some deleted while
// it is under way, is one job and one run with exactly what is there in the end.
func TestS3(t *testing.T) {
	const prefix, files = "s3story", 200
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretAccessKey)
	shelf := s3test.Fake(t, "shelf")
	listen := freeAddr(t)
	o := millrace.Options{
		Data: filepath.Join(t.TempDir(), "data"), HTTP: freeAddr(t), APIKey: apiKey, ExtraDebounceIntervals: []string{"5s"},
		Executor: "nats", NATSListen: listen,
	}
	o.Prefix, o.AllowEndpoint = prefix, []string{"127.0.0.1"}
	o.Library.Library = "s3://shelf/media?region=us-east-1&endpoint=" + url.QueryEscape(shelf.URL)
	up, _ := inProcess(t, o)
	up()

	// The gateway has to know the subject, which names the connector, which has to know the gateway.
	front, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	p := &pipeline{t: t, api: client.New("http://"+o.HTTP, apiKey), exists: map[string][]byte{}}
	p.connector = p.create("/connectors/s3", "connector_id", obj{
		"name": "Drops", "bucket": "drops", "endpoint_url": "http://" + front.Addr().String(), "import_mode": "new_only",
		"aws_access_key_id": s3test.AccessKeyID, "aws_secret_access_key": s3test.SecretAccessKey,
	})
	p.index = p.create("/indexes", "index_id", obj{"name": "Main"})
	p.prompt = p.create("/prompts", "prompt_id", obj{"name": "See", "prompt_text": "What is it?", "json_schema": obj{"type": "object"}})
	gateway := s3test.Gateway(t, "--event-nats-url", "nats://"+listen, "--event-nats-topic", prefix+".notification."+p.connector)
	target, err := url.Parse(gateway.URL)
	must(t, err)
	server := &httptest.Server{Listener: front, Config: &http.Server{Handler: httputil.NewSingleHostReverseProxy(target)}}
	server.Start()
	t.Cleanup(server.Close)
	gateway.CreateBucket(t, "drops")

	png, jpg := sample(t, "photo.png"), sample(t, "photo.jpg")
	hostile := append(slices.Clip(hostile), `back\slash`)
	names := make([]string, files)
	for i := range names {
		names[i] = fmt.Sprintf("cams/%s/%03d.png", hostile[i%len(hostile)], i)
	}
	var mu sync.Mutex
	put := func(name string, data []byte) {
		gateway.Put(t, "drops", name, data)
		mu.Lock()
		defer mu.Unlock()
		p.exists[name] = data
	}
	each := func(names []string, do func(i int, name string)) {
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := w; i < len(names); i += 8 {
					do(i, names[i])
				}
			})
		}
		wg.Wait()
	}
	content := func(data []byte, i int) []byte { return fmt.Appendf(slices.Clip(data), "file %d", i) }

	each(names[:20], func(i int, name string) { put(name, content(png, i)) }) // before anybody wants them: for the scan
	p.automate(p.index, "5s", obj{"source_prefix": "cams/"})
	each(names[20:120], func(i int, name string) { put(name, content(png, i)) })
	p.pending(120)
	each(names[:30], func(i int, name string) { put(name, content(jpg, i)) }) // overwritten
	each(names[30:35], func(_ int, name string) {
		gateway.Delete(t, "drops", name)
		mu.Lock()
		defer mu.Unlock()
		delete(p.exists, name)
	})
	each(names[120:], func(i int, name string) { put(name, content(png, i)) })

	j := p.follow(p.nthJob(1).ID, patience)
	want := map[string]string{}
	for name := range p.exists {
		want[name] = "imported"
	}
	got := p.outcomes(j)
	// What was deleted was withdrawn before the window closed, or is reported as gone.
	maps.DeleteFunc(got, func(name, what string) bool { return p.exists[name] == nil && what == "skipped: object gone" })
	if !maps.Equal(got, want) || len(j.Failed) != 0 {
		t.Errorf("%+v of %d: %v", j.Progress, len(want), got)
	}
	p.genuine("", j.Videos)
	for _, m := range p.media(p.index) {
		key, ok := strings.CutPrefix(m.URI, "s3://shelf/")
		kept, there := shelf.Get(t, "shelf", key)
		if !ok || !there || hash(kept) != hash(p.exists[m.Path]) {
			t.Errorf("%q lies in %s with %d bytes", m.Path, m.URI, len(kept))
		}
	}
	p.nthRun(1)

	// One more version of a file, told by a notification: a job of its own.
	put(names[50], content(jpg, 50))
	j = p.follow(p.nthJob(2).ID, patience)
	if got := p.outcomes(j); !maps.Equal(got, map[string]string{names[50]: "imported"}) {
		t.Errorf("after an overwrite: %v", got)
	}
	var story struct {
		Steps []struct {
			Step string `json:"step"`
		} `json:"steps"`
	}
	must(t, p.api.Get(t.Context(), "/explain?connector_id="+p.connector+"&path="+url.QueryEscape(names[50]), &story))
	told := 0
	for _, s := range story.Steps {
		if s.Step == "notification" {
			told++
		}
	}
	if told != 2 {
		t.Errorf("the bucket told of %q %d times, want twice", names[50], told)
	}
	var dead client.Page[any]
	must(t, p.api.Get(t.Context(), "/dead", &dead))
	if len(dead.Data) != 0 {
		t.Errorf("dead letters: %v", dead)
	}
}
