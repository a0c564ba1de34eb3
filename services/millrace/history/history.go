// Package history is what a run of chaos writes down, and what must hold of it. The checker knows nothing but the entries:
// neither the product's programs nor its broker.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// Entry is one thing that was seen from outside. What says which, and so which of the others mean something.
type Entry struct {
	At   time.Time `json:"at,omitzero"`
	What string    `json:"what"`

	Connector string        `json:"connector,omitempty"`
	Index     string        `json:"index,omitempty"`
	Path      string        `json:"path,omitempty"`
	Version   string        `json:"version,omitempty"`
	SHA256    string        `json:"sha256,omitempty"`
	Job       string        `json:"job,omitempty"`
	Run       string        `json:"run,omitempty"`
	Video     string        `json:"video,omitempty"`
	Videos    []string      `json:"videos,omitempty"`
	Hook      string        `json:"hook,omitempty"`
	Event     string        `json:"event,omitempty"`
	Delivery  string        `json:"delivery,omitempty"`
	State     string        `json:"state,omitempty"`
	Detail    string        `json:"detail,omitempty"`
	Size      int64         `json:"size,omitempty"`
	N         int           `json:"n,omitempty"`
	Total     int           `json:"total,omitempty"`
	Interval  time.Duration `json:"interval,omitempty"`
}

// The kinds of entries. Those of the second half are how things are in the end.
const (
	Wired    = "wired"    // an automation: index, connector, prefix (path), interval; state "runs" when it has a preset
	Wrote    = "wrote"    // a version of an object, about to be there: connector, path, version, sha256, size
	Hook     = "hook"     // a webhook: hook; state "steady" when all are to be told to it
	Removed  = "removed"  // an object: connector, path
	Notified = "notified" // a notification that was answered 200
	Acked    = "acked"    // an index (index) or a one-time job (job) that the API said is there
	Paused   = "paused"   // a pause was answered: index
	Resuming = "resuming" // a resume is about to be asked for: index
	Seen     = "seen"     // a job as the API showed it: job, state, n files settled
	Prompted = "prompted" // the prompt service was asked: run, video
	Told     = "told"     // a webhook's receiver was asked: hook, event, delivery, n answered; state "signed", or not; job, run
	Fault    = "fault"    // something begins to go wrong: detail
	Healed   = "healed"   // and ends: detail
	Died     = "died"     // a process ended by itself: detail; state "panic" when it says so

	There    = "source"   // an object: connector, path, version, sha256
	Index    = "index"    // index
	Job      = "job"      // job, index, state, detail (origin), at (created), n (settled), total, videos
	File     = "file"     // of a job: job, index, connector, path, version, state, detail (reason), video
	Medium   = "medium"   // video, index, connector, path, version, job, sha256, size
	Kept     = "kept"     // what lies in the library: video, sha256
	Run      = "run"      // run, job, state, videos
	Delivery = "delivery" // delivery, hook, state, detail (error)
	Dead     = "dead"     // a letter: detail (reason), state (the beginning of the message)
	Window   = "window"   // an open one: index
	Unrest   = "unrest"   // what did not come to rest: detail
	Leaked   = "leaked"   // a secret, and where: detail
)

// Poison marks notifications that nobody can read, which belong among the dead.
const Poison = "poison"

// Log is a history, a line an entry. Others may append to it as well.
type Log struct {
	Path string

	mu sync.Mutex
	f  *os.File
}

// Create begins a history.
func Create(path string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &Log{Path: path, f: f}, err
}

// Close ends it.
func (h *Log) Close() error { return h.f.Close() }

// Add notes an entry, as of now unless it says when. It panics when that cannot be done: a history with holes proves nothing.
func (h *Log) Add(e Entry) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	line, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.f.Write(append(line, '\n')); err != nil {
		panic(err)
	}
}

// Read reads a history.
func Read(path string) (list []Entry, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("line %d of %s: %w", len(list)+1, path, err)
		}
		list = append(list, e)
	}
	return list, lines.Err()
}
