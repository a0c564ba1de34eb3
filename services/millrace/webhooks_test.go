package millrace_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestWebhooksSurviveKill: what happens is told to a webhook, signed, also when everything dies between a request and
// the note that it was made: then it is told again, as the same delivery (I10).
func TestWebhooksSurviveKill(t *testing.T) {
	type told struct {
		header http.Header
		body   []byte
	}
	var mu sync.Mutex
	var got []told
	deaf, asked := make(chan struct{}), make(chan struct{}, 64) // until the kill nobody is answered
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		got = append(got, told{r.Header, body})
		mu.Unlock()
		asked <- struct{}{}
		select {
		case <-deaf:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(receiver.Close)

	up := startUp(t, "--allow-endpoint", "127.0.0.0/8")
	p := wire(t, up.api, up.inbox)
	var hook struct {
		ID     string `json:"webhook_id"`
		Secret string `json:"secret"`
	}
	must(t, p.api.Do(t.Context(), http.MethodPost, "/webhooks", obj{
		"name": "test", "url": receiver.URL, "events": []string{"import_job.completed", "media.created"}, "index_ids": []string{p.index},
	}, &hook))
	p.automate(p.index, "2s", nil)
	p.drop("here.mp4", sample(t, "video.mp4"))
	for range 2 {
		<-asked
	}
	up.restart()
	close(deaf)
	up.waitReady(up.url)

	var list []struct {
		ID       string          `json:"delivery_id"`
		Event    string          `json:"event_type"`
		Status   string          `json:"status"`
		Attempts int             `json:"attempts"`
		Payload  json.RawMessage `json:"payload"`
	}
	eventually(t, "both deliveries are delivered", func() error {
		if err := p.api.Get(t.Context(), "/webhooks/"+hook.ID+"/deliveries?status=delivered", &list); err != nil {
			return err
		}
		if len(list) != 2 {
			return fmt.Errorf("%d are", len(list))
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	for _, d := range list {
		n := 0
		for _, r := range got {
			mac := hmac.New(sha256.New, []byte(hook.Secret))
			mac.Write(r.body)
			if r.header.Get("X-Webhook-Signature") != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
				t.Errorf("a request is not signed: %v", r.header)
			}
			if r.header.Get("X-Delivery-ID") == d.ID {
				n++
				if string(r.body) != string(d.Payload) {
					t.Errorf("told\n%s\nkept\n%s", r.body, d.Payload)
				}
			}
		}
		if n != 2 {
			t.Errorf("%s was told %d times", d.Event, n)
		}
	}
	if len(got) != 4 {
		t.Errorf("%d requests", len(got))
	}
	j := p.nthJob(1)
	if len(j.Videos) != 1 || !strings.Contains(string(got[0].body)+string(got[1].body), `"video_ids":["`+j.Videos[0]+`"]`) {
		t.Errorf("the job is told as %s, %s", got[0].body, got[1].body)
	}

	up.stop()
	if strings.Contains(up.output(), hook.Secret) {
		t.Error("the secret is in the log")
	}
	must(t, filepath.WalkDir(up.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if strings.Contains(string(data), hook.Secret) {
			t.Errorf("the secret is in %s", filepath.Base(path))
		}
		return err
	}))
}
