package millrace_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"millrace/services/millrace/history"
)

// TestSoak is chaos for long, with faults now and then that end no service: what each of them holds in memory, its
// goroutines and its descriptors, must be in the last quarter what they were in the first, and the brokers' disks must not
// grow faster than what there is to keep.
//
//	make soak FOR=1h
func TestSoak(t *testing.T) {
	lasts, seeds := chaosFor(t, "MILLRACE_SOAK")
	t.Logf("again: make soak SEED=%d FOR=%s", seeds[0], lasts)
	c := newChaos(t, seeds[0], false)
	ctx, stop := context.WithCancel(t.Context())
	measured := make(chan []measurement)
	go func() { measured <- c.measure(ctx, max(lasts/200, time.Second)) }()
	c.rage(lasts, c.faults(false), 5*time.Second)
	stop()
	samples := <-measured
	c.judge()
	entries, err := history.Read(c.log.Path)
	must(t, err)
	for _, e := range entries {
		if e.What == history.Died {
			t.Errorf("what was measured came to an end: %s", e.Detail)
		}
	}

	n := len(samples) / 4
	if n < 5 {
		t.Fatalf("%d samples are too few", len(samples))
	}
	median := func(of []measurement, key string) float64 {
		var all []float64
		for _, s := range of {
			if v, ok := s[key]; ok {
				all = append(all, v)
			}
		}
		if len(all) == 0 {
			t.Fatalf("nothing was measured of %s", key)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	for name := range c.procs {
		for _, m := range []struct {
			metric       string
			factor, more float64
		}{
			{"go_memstats_next_gc_bytes", 1.5, 8 << 20}, // twice what was in use after the last collection
			{"go_goroutines", 1.25, 20},
			{"process_open_fds", 1.25, 40}, // connections to the storage are kept, some tens of them
			{"process_resident_memory_bytes", 1.5, 32 << 20},
		} {
			key := name + " " + m.metric
			first, last := median(samples[:n], key), median(samples[len(samples)-n:], key)
			t.Logf("%s: %.0f, then %.0f", key, first, last)
			if last > first*m.factor+m.more {
				t.Errorf("%s grew from %.0f to %.0f", key, first, last)
			}
		}
	}
	grew := func(from, to measurement) float64 {
		return (to["disk"] - from["disk"]) / max(to["written"]-from["written"], 1)
	}
	before, after := grew(samples[n], samples[2*n]), grew(samples[3*n], samples[len(samples)-1])
	t.Logf("the brokers' disks grew by %.0f bytes for each version written, then by %.0f", before, after)
	if after > before*1.5+20_000 {
		t.Error("the brokers' disks grow faster and faster")
	}
}

// measurement is what was measured at one moment.
type measurement map[string]float64

// measure looks at everything again and again until ctx ends.
func (c *chaos) measure(ctx context.Context, every time.Duration) (all []measurement) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return all
		}
		s := measurement{"written": float64(c.written.Load())}
		for i := range c.nodes.Len() {
			_ = filepath.WalkDir(c.nodes.Dir(i), func(_ string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) || d.IsDir() {
					return nil
				}
				if info, err := d.Info(); err == nil {
					s["disk"] += float64(info.Size())
				}
				return nil
			})
		}
		for name, url := range c.ops {
			res, err := send(ctx, http.MethodGet, url+"/metrics", nil, nil)
			if err != nil {
				continue
			}
			for lines := bufio.NewScanner(bytes.NewReader(res.body)); lines.Scan(); {
				metric, value, _ := strings.Cut(lines.Text(), " ")
				if v, err := strconv.ParseFloat(value, 64); err == nil {
					s[name+" "+metric] = v
				}
			}
		}
		all = append(all, s)
	}
}
