package millrace_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"millrace/services/millrace/client"
)

// TestKill kills the all-in-one at 20 random moments of an import of 500 files and starts it again each time. In the end
// it is as if nothing had happened. MILLRACE_SEED repeats the moments of a run that failed, as far as a clock can.
func TestKill(t *testing.T) {
	t.Parallel()
	const files, kills = 500, 20
	seed := rand.Uint64()
	if s := os.Getenv("MILLRACE_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("MILLRACE_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))

	nats := freeAddr(t)
	up := newUp(t, "--executor", "exec="+countBytes, "--workers", "2", "--nats-listen", nats)
	up.start()
	up.waitReady(up.url)
	p := wire(t, up.api, up.inbox)
	p.automate(p.index, "1s", nil)
	p.pause() // so that all of them are one window, however slow the machine
	want := map[string]string{}
	for i := range files {
		name := fmt.Sprintf("%03d.png", i)
		p.drop(name, picture(t, rnd, i))
		want[name] = "imported"
	}
	p.pending(files)
	p.resume()
	j := p.nthJob(1)

	done := 0
	for n := range kills {
		// A life is short: half of them end while it still starts.
		if n%2 == 0 {
			up.waitReady(up.url)
			var now client.Job
			must(t, p.api.Get(t.Context(), "/import-jobs/"+j.ID, &now))
			if settled(now) < done {
				t.Errorf("kill %d took the progress back from %d to %d", n, done, settled(now))
			}
			done = settled(now)
		}
		life := time.Duration(20+rnd.IntN(381)) * time.Millisecond
		select {
		case <-time.After(life):
		case <-up.exited:
			t.Fatal(up.ended())
		}
		up.restart()
	}
	t.Logf("%d files were settled when the last of %d kills came", done, kills)
	up.waitReady(up.url)

	j = p.follow(j.ID, 2*patience) // what was in hand at a kill may have to wait until a lease has run out
	if got := p.outcomes(j); !maps.Equal(got, want) {
		t.Errorf("%d files came in, want %d", len(got), len(want))
	}
	media := p.media(p.index)
	if len(media) != files {
		t.Errorf("%d media, want %d", len(media), files)
	}
	p.genuine(up.library, j.Videos)
	p.followRun(p.nthRun(1), j, 2*patience)
	p.nthJob(1)
	atRest(t, dial(t, "nats://"+nats), "millrace")
	up.stop()
	nothingHalfDone(t, up.library, media)
}

// picture is one that is like no other: some small, some so large that they are copied in pieces.
func picture(t testing.TB, rnd *rand.Rand, i int) []byte {
	t.Helper()
	size := rnd.IntN(100_000)
	if i%50 == 0 {
		size = 2<<20 + rnd.IntN(1<<20)
	}
	tail := make([]byte, size)
	for k := range tail {
		tail[k] = byte(rnd.Uint32())
	}
	return fmt.Appendf(sample(t, "photo.png"), "%d %s", i, tail)
}
