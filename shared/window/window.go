// Package window is the debounce window of an automation.
//
// A window collects the arrivals of one automation until they have been quiet for an interval, and then becomes one
// job. Its truth is one record per automation, changed only by compare-and-set:
//
//	          arrival                  due                  job requested
//	idle ───────────────▶ open ───────────────▶ closing ───────────────▶ idle
//	                     │    ▲
//	                     └────┘ arrival: the deadline moves on, at most to OpenedAt + MaxWait
//
// Arrivals during closing open the next window beside it. While the automation is paused the record is held: windows
// open and grow, and none closes. Whoever knows the record knows from its deadline when to look at it; what is then to
// be done is decided here, by functions of values.
package window

import (
	"time"

	"millrace/shared/event"
)

// Config is what an automation says about its windows.
type Config struct {
	Interval time.Duration // quiet period
	MaxWait  time.Duration // longest life of a window; 0: six intervals
	Rev      int           // of the automation's configuration
}

// Record is the register of one automation.
type Record struct {
	Automation string    `json:"automation_id"`
	Open       *Open     `json:"open,omitempty"`
	Closing    *Closing  `json:"closing,omitempty"`
	Held       bool      `json:"held,omitempty"`
	LastJob    string    `json:"last_job_id,omitempty"` // of the window that closed last
	LastClosed time.Time `json:"last_closed_at,omitzero"`
	// ClosedSeq: arrivals up to here belong to windows that have closed, and are their jobs' to purge.
	ClosedSeq uint64 `json:"closed_seq,omitempty"`
	// Turn is the pause or resume that the record followed last; see Steer.
	Turn int64 `json:"turn,omitempty"`
	// LastRequest is the request that last flushed, extended or dropped a window here; see commands.go.
	LastRequest string `json:"last_request,omitempty"`
}

// Open is a window that takes arrivals.
type Open struct {
	Epoch         string    `json:"epoch"` // random; names this window and its job
	OpenedAt      time.Time `json:"opened_at"`
	LastArrivalAt time.Time `json:"last_arrival_at"` // as the broker stored it
	LastSeq       uint64    `json:"last_seq"`        // arrivals up to here are in the window
	Deadline      time.Time `json:"deadline"`
	Count         int       `json:"count"` // for people; the arrivals themselves decide
	Bytes         int64     `json:"bytes"`
	ConfigRev     int       `json:"config_rev"` // under which the deadline was set
	// What a person wishes; see commands.go.
	NotBefore time.Time `json:"not_before,omitzero"`
	FlushedAt time.Time `json:"flushed_at,omitzero"`
}

// Closing is a window whose job is being requested.
type Closing struct {
	Epoch   string             `json:"epoch"`
	Request event.JobRequested `json:"request"`
}

// Arrival is what a window needs to know of an arrival.
type Arrival struct {
	Seq    uint64
	Stored time.Time
	Size   int64
}

// Merge adds arrivals to the window, opening one under epoch if need be. Those up to ClosedSeq are not new: they come again
// when their acknowledgement got lost, and are their jobs'. In what decides (times, LastSeq, deadline) it is commutative
// and idempotent, so redelivery, reordering and several writers do no harm; Count may miss an arrival that was merged out
// of order.
func Merge(r Record, arrivals []Arrival, cfg Config, epoch string) Record {
	o := Open{Epoch: epoch}
	if r.Open != nil {
		o = *r.Open
	}
	counted, news := o.LastSeq, false
	for _, a := range arrivals {
		if a.Seq <= r.ClosedSeq {
			continue
		}
		if a.Seq > counted {
			o.Count++
			o.Bytes += max(a.Size, 0)
		}
		if o.OpenedAt.IsZero() || a.Stored.Before(o.OpenedAt) {
			o.OpenedAt = a.Stored
		}
		if a.Stored.After(o.LastArrivalAt) {
			o.LastArrivalAt = a.Stored
		}
		o.LastSeq = max(o.LastSeq, a.Seq)
		news = true
	}
	if news {
		r.Open = plan(o, cfg)
	}
	return r
}

// Adopt is Merge of arrivals that lie there although no window has them and no job takes them. What ClosedSeq says of them
// is wrong then: sequences can be handed out again after a restore.
func Adopt(r Record, arrivals []Arrival, cfg Config, epoch string) Record {
	for _, a := range arrivals {
		r.ClosedSeq = min(r.ClosedSeq, a.Seq-1)
	}
	return Merge(r, arrivals, cfg, epoch)
}

// plan sets the deadline.
func plan(o Open, cfg Config) *Open {
	wait := cfg.MaxWait
	if wait <= 0 {
		wait = 6 * cfg.Interval
	}
	o.ConfigRev = cfg.Rev
	o.Deadline = o.LastArrivalAt.Add(cfg.Interval)
	if last := o.OpenedAt.Add(wait); last.Before(o.Deadline) {
		o.Deadline = last
	}
	o.Deadline = o.commanded(o.Deadline)
	return &o
}

// Due reports whether the window is to be closed at now.
func Due(r Record, now time.Time) bool {
	return r.Open != nil && !r.Held && !now.Before(r.Open.Deadline)
}

// StartClosing moves the open window to closing. request is the job it becomes; its id, epoch and last sequence are
// filled in here. The record must have an open window and no closing one.
func StartClosing(r Record, request event.JobRequested, now time.Time) Record {
	request.Job = event.JobOfWindow(r.Automation, r.Open.Epoch)
	request.Automation = r.Automation
	request.Epoch = r.Open.Epoch
	request.LastSeq = r.Open.LastSeq
	request.RequestedAt = now.UTC()
	r.Closing = &Closing{Epoch: r.Open.Epoch, Request: request}
	r.Open = nil
	r.LastJob, r.LastClosed = request.Job, now.UTC()
	r.ClosedSeq = max(r.ClosedSeq, request.LastSeq)
	return r
}

// EndClosing ends the closing of epoch; the job is requested.
func EndClosing(r Record, epoch string) Record {
	if r.Closing != nil && r.Closing.Epoch == epoch {
		r.Closing = nil
	}
	return r
}

// Hold keeps windows from closing.
func Hold(r Record) Record {
	r.Held = true
	return r
}

// Release lets windows close again. The deadline of one that was held open becomes its interval after its last arrival,
// or now if that has passed.
func Release(r Record, cfg Config, now time.Time) Record {
	if !r.Held {
		return r
	}
	r.Held = false
	if r.Open == nil {
		return r
	}
	o := *r.Open
	o.ConfigRev = cfg.Rev
	o.Deadline = o.commanded(o.LastArrivalAt.Add(cfg.Interval))
	if o.Deadline.Before(now) {
		o.Deadline = now.UTC()
	}
	r.Open = &o
	return r
}

// Steer applies a pause or resume to the record, unless it has followed a later one: whoever was held up between the
// automation's record and this one must not undo what was answered meanwhile.
func Steer(r Record, turn int64, change func(Record) Record) Record {
	if turn < r.Turn {
		return r
	}
	r.Turn = turn
	return change(r)
}

// Reconfigure judges an open window anew under cfg.
func Reconfigure(r Record, cfg Config) Record {
	if r.Open == nil || r.Open.ConfigRev == cfg.Rev {
		return r
	}
	r.Open = plan(*r.Open, cfg)
	return r
}

// Drop forgets an open window. Its arrivals are the caller's to purge.
func Drop(r Record) Record {
	r.Open = nil
	return r
}
