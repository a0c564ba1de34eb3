package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"
)

// figure is one thing to be measured.
type figure struct {
	name, about string
	measure     func(context.Context, *lab) ([]Row, error)
}

// figures is the table, in the order in which a file travels.
var figures = []figure{
	{"match", "notifications decoded and matched", matching},
	{"arrivals", "notifications to stored arrivals", arrivals},
	{"list", "names of a large bucket listed", lists},
	{"rescan", "a scan of a large bucket that holds nothing new", rescan},
	{"reference", "small files registered by reference, from window close to published run", reference},
	{"small", "small files copied into a folder library", small},
	{"large", "large files copied into a folder library", large},
	{"rivals", "the same files through what one would use instead", rivals},
	{"kills", "what one kill -9 costs in the middle of a copy", kills},
	{"curves", "what a file costs as there are more of them, and more automations", curves},
	{"importers", "files out of storage that is far away, by 1 to 4 importer processes", importers},
	{"clouds", "files copied out of an S3 server, into a folder and into another bucket", clouds},
	{"windows", "windows that are all due in the same second", windows},
	{"webhooks", "events delivered to many webhooks", webhooks},
	{"idle", "automations with nothing to do", idle},
	{"start", "cold start with an empty store and with a full one", coldStart},
	{"page", "a page of an index in a full store", pages},
	{"nats", "requests for a record over NATS", answers},
	{"post", "import jobs asked for over HTTP", newJobs},
	{"get", "jobs and pages read over HTTP from a full store", reads},
}

// Scale says how much is measured.
type Scale string

// The scales. Small shows that the bench works; its numbers mean nothing.
const (
	Small Scale = "small"
	Full  Scale = "full"
)

// sizes are the numbers behind a scale.
type sizes struct {
	rounds        int
	notifications int
	objects       int   // of a bucket that is listed
	files         int   // of reference and small
	curve         []int // files of one job; the second is what the others are held against
	large         int64 // bytes of one large file
	middling      int   // files out of a bucket
	huge          int64 // bytes of one large file out of a bucket
	windows       int
	automations   int           // idle ones
	idle          time.Duration // how long they are watched
	media         int           // records of a full store
	requests      int           // for one page
	jobFiles      int           // of one large job
	webhooks      int
	events        int // for each of them
}

var scales = map[Scale]sizes{
	Small: {rounds: 1, notifications: 2_000, objects: 5_000, files: 200, curve: []int{50, 100, 200}, large: 8 << 20, middling: 40, huge: 24 << 20, windows: 500, automations: 200, idle: 3 * time.Second, media: 20_000, requests: 10, jobFiles: 1_000, webhooks: 50, events: 10},
	Full:  {rounds: 3, notifications: 100_000, objects: 1_000_000, files: 10_000, curve: []int{1_000, 10_000, 100_000, 1_000_000}, large: 512 << 20, middling: 1_000, huge: 1 << 30, windows: 100_000, automations: 10_000, idle: time.Minute, media: 1_000_000, requests: 100, jobFiles: 100_000, webhooks: 1_000, events: 100},
}

// lab is what a figure is measured in.
type lab struct {
	size    sizes
	dir     string // of this figure, empty
	run     string // of the whole run: what figures share
	program string
}

// say tells how far it is.
func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  "+format+"\n", args...)
}

// Rounds are repeated while they are quick: up to maxRounds, and no more than these times.
const (
	maxRounds = 5
	quick     = 20 * time.Second // for one more pair than there must be
	slow      = time.Minute      // for a second pair at all
)

// pairs are what rounds of product and yardstick gave.
type pairs struct{ ours, theirs []float64 }

// ratio is the median of the ratios of the rounds: what slows the machine down for a while slows down both halves of a
// pair.
func (p pairs) ratio() float64 {
	list := make([]float64, len(p.ours))
	for i := range list {
		list[i] = p.ours[i] / p.theirs[i]
	}
	return median(list)
}

// into puts the medians into a row.
func (p pairs) into(r *Row, unit string) {
	r.Measured, r.Yardstick, r.Paired = Quantity{median(p.ours), unit}, Quantity{median(p.theirs), unit}, p.ratio()
	r.Also = append(r.Also, fmt.Sprintf("rounds: %s %s; yardstick: %s %s", spread(p.ours), unit, spread(p.theirs), unit))
}

// alternate measures product and yardstick in turns, so that a machine that gets slower or faster meanwhile does so for
// both.
func (l *lab) alternate(product, yardstick func(round int) (float64, error)) (p pairs, err error) {
	for round := range maxRounds {
		start := time.Now()
		theirs, err := yardstick(round)
		if err != nil {
			return p, fmt.Errorf("yardstick, round %d: %w", round+1, err)
		}
		ours, err := product(round)
		if err != nil {
			return p, fmt.Errorf("round %d: %w", round+1, err)
		}
		p.ours, p.theirs = append(p.ours, ours), append(p.theirs, theirs)
		l.say("round %d: %s, yardstick %s", round+1, digits(ours), digits(theirs))
		if took := time.Since(start); took > slow || round+1 >= l.size.rounds && (l.size.rounds == 1 || took > quick) {
			break
		}
	}
	return p, nil
}

// median of at least one value.
func median(list []float64) float64 { return quantile(list, 0.5) }

// quantile returns the value below which a share q of the list lies.
func quantile(list []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// spread shows the single rounds.
func spread(list []float64) string {
	s := ""
	for i, v := range list {
		if i > 0 {
			s += ", "
		}
		s += digits(v)
	}
	return s
}
