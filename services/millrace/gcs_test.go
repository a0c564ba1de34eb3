package millrace_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/media/samples"
	"millrace/shared/service/servicetest"
)

// A bucket on Google Cloud Storage with Pub/Sub notifications, its library in another bucket: notified objects come in
// as one job, each generation once, and what no notification told is found by the scan of the next automation change.
func TestGoogleCloudStorage(t *testing.T) {
	const topic, subscription = "projects/p/topics/t", "projects/p/subscriptions/s"
	source, shelf := gcstest.Start(t, "drops"), gcstest.Start(t, "shelf")
	pubsub := pstest.NewServer()
	t.Cleanup(func() { _ = pubsub.Close() })
	if _, err := pubsub.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: topic}); err != nil {
		t.Fatal(err)
	}
	sub := &pubsubpb.Subscription{Name: subscription, Topic: topic, AckDeadlineSeconds: 60}
	if _, err := pubsub.GServer.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}

	o := millrace.Options{
		Data: filepath.Join(t.TempDir(), "data"), HTTP: "127.0.0.1:0", ExtraDebounceIntervals: []string{"1s"}, Executor: "nats",
	}
	o.PubSubEndpoint = pubsub.Addr
	o.Prefix, o.Library.Library, o.LibraryEndpoint = "t", "gs://shelf/media", shelf.URL
	o.AllowEndpoint = []string{"127.0.0.1"}
	app, err := millrace.New(t.Context(), o, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := app.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := client.New(app.URL(), app.Key)

	connector := gcsConnector(t, app, map[string]string{
		"name": "Drops", "bucket": "drops", "gcp_project_id": "p", "endpoint_url": source.URL, "subscription": subscription,
		"import_mode": "new_only",
	}, source.Credentials(t))
	var tested struct {
		Success bool    `json:"success"`
		Error   *string `json:"error_message"`
	}
	call(t, c, http.MethodPost, "/connectors/"+connector+"/test", nil, &tested)
	if !tested.Success {
		t.Fatalf("connector test: %v", *tested.Error)
	}
	var index struct {
		ID string `json:"index_id"`
	}
	call(t, c, http.MethodPost, "/indexes", map[string]any{"name": "Cloud"}, &index)

	// There before the automation, told by nobody.
	source.Put("drops", "cams/old.jpg", sampleOf(t, "photo.jpg"))
	call(t, c, http.MethodPut, "/indexes/"+index.ID+"/automations/import", map[string]any{
		"connector_id": connector, "source_prefix": "cams/", "file_pattern": "*", "debounce_interval": "1s", "prompt_preset": nil,
	}, nil)
	videos := func(n int) []client.Video {
		t.Helper()
		var list []client.Video
		servicetest.Eventually(t, fmt.Sprintf("%d media", n), func() (err error) {
			if list, err = c.Videos(t.Context(), index.ID); err == nil && len(list) != n {
				err = fmt.Errorf("%d", len(list))
			}
			return err
		})
		return list
	}
	videos(1)

	// Each notification comes three times, the deletion that is part of an overwrite among them.
	tell := func(event, name string, generation int64, more ...string) {
		attributes := map[string]string{
			"eventType": event, "bucketId": "drops", "objectId": name, "objectGeneration": fmt.Sprint(generation),
			"payloadFormat": "NONE",
		}
		for i := 0; i < len(more); i += 2 {
			attributes[more[i]] = more[i+1]
		}
		for range 3 {
			pubsub.Publish(topic, []byte("{}"), attributes)
		}
	}
	first := source.Put("drops", "cams/a b#%.mp4", sampleOf(t, "video.mp4"))
	tell("OBJECT_FINALIZE", "cams/a b#%.mp4", first)
	tell("OBJECT_FINALIZE", "elsewhere.mp4", 1)
	tell("OBJECT_FINALIZE", "cams/never-was.mp4", 7)
	videos(2)
	second := source.Put("drops", "cams/a b#%.mp4", sampleOf(t, "video.webm"))
	tell("OBJECT_DELETE", "cams/a b#%.mp4", first, "overwrittenByGeneration", fmt.Sprint(second))
	tell("OBJECT_FINALIZE", "cams/a b#%.mp4", second, "overwroteGeneration", fmt.Sprint(first))
	list := videos(3)

	for _, v := range list {
		key, ok := strings.CutPrefix(v.URI, "gs://shelf/")
		if !ok || !strings.HasPrefix(key, "media/"+index.ID+"/") {
			t.Errorf("%s lies in %s", v.Title, v.URI)
			continue
		}
		data, _, ok := shelf.Get("shelf", key)
		if !ok || !slices.ContainsFunc([]string{"photo.jpg", "video.mp4", "video.webm"}, func(s string) bool { return bytes.Equal(data, sampleOf(t, s)) }) {
			t.Errorf("%s: the library has %d other bytes", v.Title, len(data))
		}
	}
	servicetest.Eventually(t, "the jobs count each import once", func() error {
		var jobs []client.Job
		imported := 0
		err := c.Get(t.Context(), "/import-jobs", &jobs)
		for _, j := range jobs {
			imported += j.Progress.Imported
		}
		if err == nil && (imported != 3 || len(jobs) != 3) {
			err = fmt.Errorf("%d imports in %d jobs", imported, len(jobs))
		}
		return err
	})
}

func sampleOf(t *testing.T, name string) []byte {
	t.Helper()
	data, err := samples.FS.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func call(t *testing.T, c *client.Client, method, path string, in, out any) {
	t.Helper()
	if err := c.Do(t.Context(), method, path, in, out); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
}

// gcsConnector makes a connector by multipart, as clients do, and returns its id.
func gcsConnector(t *testing.T, app *millrace.App, fields map[string]string, key []byte) string {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for k, v := range fields {
		if err := form.WriteField(k, v); err != nil {
			t.Fatal(err)
		}
	}
	file, err := form.CreateFormFile("credentials_file", "key.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(key); err != nil {
		t.Fatal(err)
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, app.URL()+"/api/v2/connectors/gcs", &body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", app.Key)
	req.Header.Set("Content-Type", form.FormDataContentType())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	var made struct {
		ID string `json:"connector_id"`
	}
	if err != nil || res.StatusCode != http.StatusCreated || json.Unmarshal(data, &made) != nil {
		t.Fatalf("%d: %s (%v)", res.StatusCode, data, err)
	}
	return made.ID
}

// connectGCS makes the pipeline's connector, to the bucket drops of a storage.
func (p *pipeline) connectGCS(s *gcstest.Server, key []byte) {
	p.t.Helper()
	must(p.t, p.api.PostForm(p.t.Context(), "/connectors/gcs", map[string][]string{
		"name": {"Drops"}, "bucket": {"drops"}, "gcp_project_id": {"p"}, "endpoint_url": {s.URL}, "import_mode": {"new_only"},
	}, "credentials_file", key, &struct {
		ID *string `json:"connector_id"`
	}{&p.connector}))
}

// gcsMessage is a notification as Pub/Sub pushes it. A successor is the generation that took the place of this one.
func gcsMessage(event, name string, generation, successor int64) string {
	more := ""
	if successor != 0 {
		more = fmt.Sprintf(`,"overwrittenByGeneration":"%d"`, successor)
	}
	id, _ := json.Marshal(name)
	return fmt.Sprintf(`{"message":{"attributes":{"eventType":%q,"bucketId":"drops","objectId":%s,"objectGeneration":"%d"%s}}}`,
		event, id, generation, more)
}

// A copy inside the storage that takes several requests goes on after a kill -9 where it was.
func TestCopyGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	storage := gcstest.Start(t, "drops", "shelf")
	storage.Rewrites = 4
	up := startUp(t, "--library", "gs://shelf/media", "--library-endpoint", storage.URL)
	p := &pipeline{t: t, api: up.api, exists: map[string][]byte{}}
	p.connectGCS(storage, gcstest.Start(t).Credentials(t))
	p.index = p.create("/indexes", "index_id", obj{"name": "Main"})
	storage.Put("drops", "large.png", append(slices.Clip(sample(t, "photo.png")), make([]byte, 2<<20)...))

	third := func(r *http.Request) bool {
		return gcstest.Rewrites(r) && r.URL.Query().Get("rewriteToken") == "token-2"
	}
	storage.Inject(-1, third, gcstest.Stalled)
	j := client.Job{ID: p.create("/import-jobs", "job_id", obj{"connector_id": p.connector, "index_id": p.index})}
	eventually(t, "two of four requests", func() error {
		if n := storage.Requests(third); n == 0 {
			return fmt.Errorf("%d so far", storage.Requests(gcstest.Rewrites))
		}
		return nil
	})
	up.kill()
	storage.Heal()
	up.start()
	up.waitReady(up.url)
	j = p.follow(j.ID, 2*patience)
	if got := p.outcomes(j); got["large.png"] != "imported" {
		t.Errorf("%v", got)
	}
	if n := storage.Requests(gcstest.Begun); n != 1 {
		t.Errorf("begun %d times", n)
	}
}
