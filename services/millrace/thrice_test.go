package millrace_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"millrace/services/millrace"
	"millrace/services/millrace/client"
	"millrace/shared/bucket/gcs/gcstest"
)

// A bucket whose every notification comes three times, in any order, those of long ago after those of now: each version that
// is there in the end is imported once (I1, I2), each job has one run (I3) of exactly what it imported (I4), with the bytes
// that the bucket has (I5).
func TestNotificationsThriceInAnyOrder(t *testing.T) {
	const prefix, count = "thrice", 24
	storage := gcstest.Start(t, "drops")
	listen, library := freeAddr(t), filepath.Join(t.TempDir(), "library")
	o := millrace.Options{
		Data: filepath.Join(t.TempDir(), "data"), HTTP: freeAddr(t), APIKey: apiKey, ExtraDebounceIntervals: []string{"1s"},
		Executor: "exec=" + countBytes, NATSListen: listen,
	}
	o.Prefix, o.AllowEndpoint, o.Library.Library = prefix, []string{"127.0.0.1"}, library
	up, _ := inProcess(t, o)
	up()
	server := "http://" + o.HTTP
	p := &pipeline{t: t, api: client.New(server, apiKey), exists: map[string][]byte{}}
	p.connectGCS(storage, storage.Credentials(t))
	p.index = p.create("/indexes", "index_id", obj{"name": "Main"})
	p.prompt = p.create("/prompts", "prompt_id", obj{"name": "Count", "prompt_text": "Count the bytes.", "json_schema": obj{"type": "object"}})
	p.automate(p.index, "1s", obj{"source_prefix": "cams/"})

	var told []string // all notifications there are
	tell := func(event, name string, generation, successor int64) {
		told = append(told, gcsMessage(event, name, generation, successor))
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	bring := func() {
		t.Helper()
		all := slices.Concat(told, told, told)
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := w; i < len(all); i += 8 {
					if res := request(t, server, http.MethodPost, "/notifications/"+p.connector, []byte(all[i])); res.status != http.StatusOK {
						t.Errorf("%d %s", res.status, res.body)
					}
				}
			})
		}
		wg.Wait()
	}

	png := sample(t, "photo.png")
	generations := make([]int64, count)
	name := func(i int) string { return fmt.Sprintf("cams/%02d.png", i) }
	put := func(i, version int) {
		p.exists[name(i)] = fmt.Appendf(slices.Clip(png), "file %d, version %d", i, version)
		was := generations[i]
		generations[i] = storage.Put("drops", name(i), p.exists[name(i)])
		tell("OBJECT_FINALIZE", name(i), generations[i], 0)
		if was != 0 {
			tell("OBJECT_DELETE", name(i), was, generations[i])
		}
	}
	for i := range count {
		put(i, 1)
	}
	bring()
	p.follow(firstJob(p).ID, 2*patience) // so that some of what changes now was imported
	for i := range count {
		switch {
		case i < 10:
			put(i, 2)
		case i < 15:
			put(i, 2)
			put(i, 3)
		case i < 20:
			storage.Delete("drops", name(i))
			delete(p.exists, name(i))
			tell("OBJECT_DELETE", name(i), generations[i], 0)
		}
	}
	bring()

	within(t, 2*patience, "what the bucket has is imported", func() error {
		imported := map[string]bool{}
		for _, m := range p.media(p.index) {
			imported[m.Path+" "+m.SHA256] = true
		}
		for path, data := range p.exists {
			if !imported[path+" "+hash(data)] {
				return fmt.Errorf("%s is missing as it is now", path)
			}
		}
		return nil
	})
	atRest(t, dial(t, "nats://"+listen), prefix)

	media, kept := p.media(p.index), files(t, library)
	once := map[string]string{}
	for id, m := range media {
		if other := once[m.Path+" "+m.SHA256]; other != "" {
			t.Errorf("%s is %s and %s", m.Path, other, id)
		}
		once[m.Path+" "+m.SHA256] = id
		if kept[id] != m.SHA256 {
			t.Errorf("%s: the library has %q, its record says %s", m.Path, kept[id], m.SHA256)
		}
	}
	jobs, err := p.jobs(p.index)
	must(t, err)
	runs, err := p.runs()
	must(t, err)
	imports := 0
	want := map[string]int{} // media of the runs there must be
	for _, j := range jobs {
		j = p.follow(j.ID, patience)
		p.outcomes(j)
		if imports += len(j.Videos); len(j.Videos) > 0 {
			slices.Sort(j.Videos)
			want[fmt.Sprint(j.Videos)]++
		}
	}
	if imports != len(media) {
		t.Errorf("%d media, and jobs with %d", len(media), imports)
	}
	for _, r := range runs {
		must(t, p.api.Get(t.Context(), "/prompt-runs/"+r.ID, &r))
		slices.Sort(r.Context.Videos)
		if want[fmt.Sprint(r.Context.Videos)]--; want[fmt.Sprint(r.Context.Videos)] != 0 {
			t.Errorf("run %s is of what no job imported, or the second of one: %v", r.ID, r.Context.Videos)
		}
	}
	for videos, n := range want {
		if n != 0 {
			t.Errorf("a job of %s is without its run", videos)
		}
	}
}

// firstJob waits for a job.
func firstJob(p *pipeline) (first client.Job) {
	p.t.Helper()
	eventually(p.t, "a job", func() error {
		list, err := p.jobs(p.index)
		if err == nil && len(list) == 0 {
			err = errors.New("none")
		}
		if err == nil {
			first = list[len(list)-1]
		}
		return err
	})
	return first
}
