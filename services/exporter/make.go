package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bus"
	"millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/failpoint"
	"millrace/shared/store"
)

// carryOut makes one attempt at an export.
func (e *Exporter) carryOut(ctx context.Context, d *bus.Delivery) error {
	var req event.ExportRequested
	if err := d.Decode(&req); err != nil {
		return err
	}
	if !event.IsToken(req.Export) || !event.IsToken(req.Target) {
		return bus.Poison(fmt.Errorf("%q of %q: not the ids of an export and of what it is of", req.Export, req.Target))
	}
	x, err := e.begin(ctx, req)
	if err != nil {
		return err
	}
	if !x.Status.Terminal() {
		started := time.Now()
		limited, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
		cause := failpoint.Here("exporter.begun")
		var made file
		if cause == nil {
			made, cause = e.make(limited, x)
		}
		cancel()
		if cause == nil {
			cause = failpoint.Here("exporter.written")
		}
		if ctx.Err() != nil && cause != nil {
			return errors.Join(ctx.Err(), e.giveBack(context.WithoutCancel(ctx), x))
		}
		// What is left are a few writes. A shutdown that begins now does not stop them: else a file that is whole would
		// have cost an attempt and be made again.
		ctx = context.WithoutCancel(ctx)
		if x, err = e.end(ctx, x, made, cause); err != nil {
			return err
		}
		e.metrics.took.Observe(time.Since(started).Seconds())
	}
	if err := failpoint.Here("exporter.ended"); err != nil {
		return err
	}
	return e.settle(ctx, x)
}

// begin counts the attempt, on record before it has any effect: one that kills the process counts as well.
func (e *Exporter) begin(ctx context.Context, req event.ExportRequested) (store.Export, error) {
	now := time.Now().UTC()
	x, _, err := e.exports.records.Modify(ctx, req.Export, func(x *store.Export) error {
		if x.ID == "" {
			*x = recordOf(req)
		}
		switch {
		case x.Status.Terminal():
			return store.ErrUnchanged
		case x.Attempts >= x.MaxAttempts:
			x.Status, x.EndedAt, x.UpdatedAt = store.ExportFailed, now, now
			if x.LastError == "" {
				x.LastError = "no attempt came to its end"
			}
			return nil
		}
		x.Status, x.UpdatedAt = store.ExportProcessing, now
		x.Attempts++
		if x.StartedAt.IsZero() {
			x.StartedAt = now
		}
		return nil
	})
	return x, err
}

// giveBack takes back an attempt that was ended by a shutdown, which says nothing about the export.
func (e *Exporter) giveBack(ctx context.Context, x store.Export) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, _, err := e.exports.records.Modify(ctx, x.ID, func(x *store.Export) error {
		if x.Status != store.ExportProcessing {
			return store.ErrUnchanged
		}
		x.Status, x.UpdatedAt = store.ExportPending, time.Now().UTC()
		x.Attempts = max(0, x.Attempts-1)
		return nil
	})
	return err
}

// file is what an attempt has written.
type file struct {
	size     int64
	uri      string
	document string
}

// end records how an attempt ended. Of an export that will be tried again it returns a bus.RetryError.
func (e *Exporter) end(ctx context.Context, x store.Export, made file, cause error) (store.Export, error) {
	now := time.Now().UTC()
	over := permanent(cause) || x.Attempts >= x.MaxAttempts
	delay := e.cfg.Backoff
	for range x.Attempts - 1 {
		delay *= 3
	}
	x, _, err := e.exports.records.Modify(ctx, x.ID, func(x *store.Export) error {
		if x.ID == "" || x.Status.Terminal() {
			return store.ErrUnchanged
		}
		x.UpdatedAt = now
		switch {
		case cause == nil:
			x.Status, x.EndedAt = store.ExportCompleted, now
			x.Size, x.URI, x.Document = made.size, made.uri, made.document
		case over:
			x.Status, x.EndedAt, x.LastError = store.ExportFailed, now, shortened(cause)
		default:
			x.Status, x.AvailableAt, x.LastError = store.ExportPending, now.Add(delay), shortened(cause)
		}
		return nil
	})
	if err == nil && !x.Status.Terminal() {
		e.metrics.retried.Inc()
		err = bus.RetryAfter(delay, cause)
	}
	return x, err
}

// permanent reports whether another attempt would end the same way.
func permanent(err error) bool {
	var poison *bus.PoisonError
	return errors.As(err, &poison) || bucket.Permanent(err)
}

// maxCause bounds what is kept of an error, in bytes.
const maxCause = 400

func shortened(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > maxCause {
		s = strings.ToValidUTF8(s[:maxCause], "") + "…"
	}
	return s
}

// settle announces the end of an export, once it is on record. A crash in between announces it again under the same id.
// What a download that failed has left, of an attempt that died between file and record, is removed first: later nobody
// would know of it.
func (e *Exporter) settle(ctx context.Context, x store.Export) error {
	if x.Settled || x.ID == "" {
		return nil
	}
	if x.Status == store.ExportFailed && x.Connector == "" {
		if err := e.documents.Delete(ctx, documentOf(x)); err != nil {
			return err
		}
	}
	typ := event.ExportReady
	data := event.ExportEvent{
		Export: x.ID, Type: x.Type, Target: x.Target, Index: x.Index, Automation: x.Automation, Status: string(x.Status),
	}
	if x.Status == store.ExportFailed {
		typ, data.Error = event.ExportFailed, x.LastError
	}
	ev, err := bus.NewEvent(typ, cmp.Or(x.Index, bus.NoIndex), x.ID, x.EndedAt, data)
	if err != nil {
		return err
	}
	if err := e.env.Bus.PublishEvent(ctx, ev); err != nil {
		return err
	}
	if err := failpoint.Here("exporter.announced"); err != nil {
		return err
	}
	_, _, err = e.exports.records.Modify(ctx, x.ID, func(x *store.Export) error {
		if x.ID == "" || x.Settled {
			return store.ErrUnchanged
		}
		x.Settled = true
		return nil
	})
	if err == nil {
		e.metrics.ended.WithLabelValues(string(x.Status)).Inc()
	}
	return err
}

// FileName is what the file of an export is called: the same for each attempt.
func FileName(x store.Export) string { return x.Target + "-" + x.ID + "." + string(x.Format) }

// documentOf is where the file of a download is kept.
func documentOf(x store.Export) string { return "exports/" + FileName(x) }

// ContentTypes are what the formats are on the wire.
var ContentTypes = map[event.ExportFormat]string{
	event.FormatJSON:  "application/json",
	event.FormatLines: "application/x-ndjson",
	event.FormatCSV:   "text/csv; charset=utf-8",
}

// make writes the file. It is whole and durable when make returns, or it is not there.
func (e *Exporter) make(ctx context.Context, x store.Export) (file, error) {
	if x.Connector != "" {
		return e.deliver(ctx, x)
	}
	f := file{document: documentOf(x), uri: "millrace://" + documentOf(x)}
	r := e.content(ctx, x)
	defer func() { _ = r.Close() }()
	var err error
	f.size, err = e.documents.Write(ctx, f.document, r)
	return f, err
}

// deliver writes the file into the storage of the connector, where it is still allowed to be.
func (e *Exporter) deliver(ctx context.Context, x store.Export) (f file, err error) {
	c, _, err := e.connectors.Get(ctx, x.Connector)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return f, bus.Poison(fmt.Errorf("the connector %s does not exist any more", x.Connector))
	case err != nil:
		return f, err
	case !c.HasScope("export"):
		return f, bus.Poison(fmt.Errorf("the connector %s lacks the scope export", c.ID))
	}
	base, err := connector.CheckExportPath(c.ExportBasePath)
	if err != nil {
		return f, bus.Poison(fmt.Errorf("the export_base_path of the connector %s %w", c.ID, err))
	}
	if base != x.BasePath {
		return f, bus.Poison(fmt.Errorf("the export_base_path of the connector %s was changed after the export was asked for", c.ID))
	}
	sub, err := connector.CheckExportPath(x.Subpath)
	if err != nil {
		return f, bus.Poison(fmt.Errorf("destination_subpath %w", err))
	}
	w, err := e.destinations.Writer(ctx, c)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	key := connector.ExportKey(base, sub, FileName(x))
	r := e.content(ctx, x)
	defer func() { _ = r.Close() }()
	stored, err := w.Put(ctx, key, r, bucket.Want{Size: -1, ContentType: ContentTypes[x.Format]})
	if err == nil {
		err = w.Sync(ctx, key)
	}
	return file{size: stored.Size, uri: c.URI(key)}, err
}

// content is the export as bytes, made while they are read. Closing it ends that.
func (e *Exporter) content(ctx context.Context, x store.Export) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(e.write(ctx, w, x)) }()
	return r
}
