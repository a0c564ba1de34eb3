package millrace_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"millrace/services/millrace/client"
	"millrace/shared/bucket/azure/azuretest"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/bucket/s3/s3test"
	"millrace/shared/event"
	"millrace/shared/topology"
)

// few and many are how many files TestBulkDrops drops. It drops many on a folder, and with MILLRACE_BULK set on the buckets
// too, which takes minutes.
const few, many = 200, 10_000

// hostile are parts of names that every storage takes.
var hostile = []string{
	"with space", "a+b", "a#b", "a?b", "100%", "%2e%2e", "a&b=c;d", "quote'\"", "*", "media.>", "{a,b}", "-rf", "a..b", "$HOME", "`id`",
	"🎬", "日本語", "\u202egpj", "caf\u00e9", "cafe\u0301",
}

// bulk is where many files are dropped.
type bulk struct {
	*pipeline
	files  int
	worse  []string // hostile names that not every storage takes
	listen string   // the broker
	prefix string
	put    func(name string, data []byte) // and tell of it, several at a time
}

// tell publishes a notification as a storage does that knows our broker.
func (b *bulk) tell(js jetstream.JetStream, notification []byte) {
	if _, err := js.Publish(b.t.Context(), b.prefix+".notification."+b.connector, notification); err != nil {
		b.t.Error(err)
	}
}

var bulks = map[string]func(*testing.T, *bulk, *allInOne, jetstream.JetStream){
	"folder": func(t *testing.T, b *bulk, up *allInOne, _ jetstream.JetStream) {
		b.files, b.worse = many, []string{`back\slash`, "line\nfeed", "\x1b[31mred"}
		b.connector = b.create("/connectors/dir", "connector_id", obj{"name": "Inbox", "path": up.inbox, "import_mode": "new_only"})
		b.put = func(name string, data []byte) {
			if err := os.WriteFile(filepath.Join(up.inbox, name), data, 0o644); err != nil {
				t.Error(err)
			}
		}
	},
	"gcs": func(t *testing.T, b *bulk, _ *allInOne, js jetstream.JetStream) {
		s := gcstest.Start(t, "drops")
		b.worse = []string{`back\slash`, "tab\there", "\x1b[31mred"}
		b.connectGCS(s, s.Credentials(t))
		b.put = func(name string, data []byte) {
			b.tell(js, []byte(gcsMessage("OBJECT_FINALIZE", name, s.Put("drops", name, data), 0)))
		}
	},
	"s3": func(t *testing.T, b *bulk, _ *allInOne, js jetstream.JetStream) {
		s := s3test.Gateway(t)
		s.CreateBucket(t, "drops")
		b.worse = []string{`back\slash`}
		b.connector = b.create("/connectors/s3", "connector_id", obj{
			"name": "Drops", "bucket": "drops", "endpoint_url": s.URL, "import_mode": "new_only",
			"aws_access_key_id": s3test.AccessKeyID, "aws_secret_access_key": s3test.SecretAccessKey,
		})
		b.put = func(name string, data []byte) {
			s.Put(t, "drops", name, data)
			sum := md5.Sum(data)
			b.tell(js, fmt.Appendf(nil, `{"EventName":"s3:ObjectCreated:Put","Records":[{"eventVersion":"2.0","eventSource":"minio:s3",`+
				`"eventName":"s3:ObjectCreated:Put","s3":{"bucket":{"name":"drops"},"object":{"key":%q,"size":%d,"eTag":"%x"}}}]}`,
				url.QueryEscape(name), len(data), sum))
		}
	},
	"azure": func(t *testing.T, b *bulk, _ *allInOne, js jetstream.JetStream) {
		s := azuretest.Start(t, "drops")
		b.worse = []string{"tab\there", "\x1b[31mred"}
		b.connector = b.create("/connectors/azure", "connector_id", obj{
			"name": "Drops", "storage_account": s.Account, "container": "drops", "endpoint_url": s.URL, "account_key": s.Key, "import_mode": "new_only",
		})
		var sequence atomic.Int64
		b.put = func(name string, data []byte) {
			tag := s.Put("drops", name, data)
			event, err := json.Marshal([]obj{gridEvent(s.Account, "BlobCreated", name, tag, len(data), int(sequence.Add(1)))})
			if err != nil {
				t.Error(err)
			}
			b.tell(js, event)
		}
	},
}

// TestBulkDrops drops many files with difficult names on each kind of storage, and 200 more while the window is open: one job
// with every one of them, one run with exactly these media. The run is carried out by an executor in another language, as
// far as the broker can tell: one that speaks the protocol and nothing else.
func TestBulkDrops(t *testing.T) {
	t.Parallel()
	png, jpg := sample(t, "photo.png"), sample(t, "photo.jpg")
	for provider, connect := range bulks {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			b := &bulk{files: few, listen: freeAddr(t), prefix: "bulk"}
			if os.Getenv("MILLRACE_BULK") != "" {
				b.files = many
			}
			up := startUp(t, "--prefix", b.prefix, "--library", "none", "--extra-debounce-intervals", "5s", "--nats-listen", b.listen)
			b.pipeline = &pipeline{t: t, api: up.api, exists: map[string][]byte{}}
			nc := dial(t, "nats://"+b.listen)
			js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(many+few))
			must(t, err)
			connect(t, b, up, js)
			b.index = b.create("/indexes", "index_id", obj{"name": "Main"})
			b.prompt = b.create("/prompts", "prompt_id", obj{"name": "See", "prompt_text": "What is it?", "json_schema": obj{"type": "object"}})
			// Five seconds: a machine under load may take that long between two files. A bucket takes longer for all of them
			// than a window lasts, so it is held until they are there.
			b.automate(b.index, "5s", nil)
			held := provider != "folder"
			if held {
				b.pause()
			}

			kinds := slices.Concat(hostile, b.worse)
			drop := func(from, to int) {
				names := make(chan string, to-from)
				for i := from; i < to; i++ {
					data, ext := png, "png"
					if i%10 == 0 {
						data, ext = jpg, "jpg"
					}
					// Bytes behind the end of an image make it another file and the same picture.
					name := fmt.Sprintf("%s %05d.%s", kinds[i%len(kinds)], i/len(kinds), ext)
					b.exists[name] = fmt.Appendf(slices.Clip(data), "file %d", i)
					names <- name
				}
				close(names)
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						for name := range names {
							b.put(name, b.exists[name])
						}
					})
				}
				wg.Wait()
			}
			all := b.files + few
			drop(0, b.files)
			b.pending(b.files)
			drop(b.files, all)
			if held {
				b.pending(all)
				b.resume()
			}

			j := b.follow(b.nthJob(1).ID, 5*patience)
			want := map[string]string{}
			for name := range b.exists {
				want[name] = "imported"
			}
			if got := b.outcomes(j); !maps.Equal(got, want) || j.Progress.Imported != all {
				t.Errorf("%d files imported, %d in all: %+v; skipped %v, failed %v", j.Progress.Imported, len(got), j.Progress, j.Skipped, j.Failed)
			}
			b.genuine("", j.Videos)

			id := b.nthRun(1)
			got := carryOut(t, js, topology.Topology{Prefix: b.prefix}, id)
			slices.Sort(got)
			slices.Sort(j.Videos)
			if !slices.Equal(got, j.Videos) {
				t.Errorf("the run has %d media, and they are not those %d of its job", len(got), len(j.Videos))
			}
			var r struct {
				client.Run
				TotalImages     int `json:"total_images"`
				CompletedImages int `json:"completed_images"`
			}
			eventually(t, "the run ends", func() error {
				must(t, b.api.Get(t.Context(), "/prompt-runs/"+id, &r))
				if !r.Done() {
					return fmt.Errorf("%s, %d of %d", r.Status, r.CompletedImages, r.TotalImages)
				}
				return nil
			})
			if r.Status != "completed" || r.TotalImages != all || r.CompletedImages != all {
				t.Errorf("run: %s, %d of %d", r.Status, r.CompletedImages, r.TotalImages)
			}
			if jobs, err := b.jobs(b.index); err != nil || len(jobs) != 1 {
				t.Errorf("%d jobs, %v: %+v", len(jobs), err, jobs)
			}
			b.nthRun(1)
			atRest(t, nc, b.prefix)
			if i := strings.IndexFunc(up.output(), func(r rune) bool { return r < ' ' && r != '\n' || r == '\u202e' }); i >= 0 {
				t.Errorf("a name is in the log as it is: %q", up.output()[max(0, i-200):])
			}
		})
	}
}

// carryOut takes the next run off the queue as the documentation of the worker says, reports every medium of it, and
// returns them.
func carryOut(t *testing.T, js jetstream.JetStream, top topology.Topology, want string) (videos []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cons, err := js.Consumer(ctx, top.Stream(topology.Runs), topology.WorkerRuns)
	must(t, err)
	msg, err := cons.Next(jetstream.FetchMaxWait(30 * time.Second))
	must(t, err)
	var req event.RunRequested
	must(t, json.Unmarshal(msg.Data(), &req))
	objects, err := js.ObjectStore(ctx, top.Bucket(topology.Documents))
	must(t, err)
	list, err := objects.GetBytes(ctx, req.MediaObject)
	must(t, err)
	var acks []jetstream.PubAckFuture
	for line := range bytes.Lines(list) {
		var m event.RunMedium
		must(t, json.Unmarshal(line, &m))
		videos = append(videos, m.Video)
		report, err := json.Marshal(event.Report{
			Run: req.Run, Video: m.Video, State: event.Successful, Result: json.RawMessage(`{}`), ReportedAt: time.Now(),
		})
		must(t, err)
		ack, err := js.PublishAsync(top.Subject("run", "report", req.Run, m.Video), report)
		must(t, err)
		acks = append(acks, ack)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			t.Fatal("report:", err)
		case <-ctx.Done():
			t.Fatal("the reports are not acknowledged")
		}
	}
	must(t, msg.DoubleAck(ctx))
	inline := 0
	if len(videos) <= event.MaxInlineMedia {
		inline = len(videos)
	}
	if req.Run != want || req.MediaCount != len(videos) || len(req.Media) != inline {
		t.Errorf("request of run %s (want %s): %d media, of which %d listed; the object has %d", req.Run, want, req.MediaCount, len(req.Media), len(videos))
	}
	return videos
}
