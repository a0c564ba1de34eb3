package admin

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/store"
	"millrace/shared/window"
)

// watchedAutomation is an import automation with its open window.
type watchedAutomation struct {
	ImportAutomation importAutomation `json:"automation"`
	Window           *openWindow      `json:"window" doc:"null: nothing has arrived since the last one closed"`
}

// openWindow is the batch that an automation is gathering.
type openWindow struct {
	OpenedAt      string `json:"opened_at" format:"date-time"`
	LastArrivalAt string `json:"last_arrival_at" format:"date-time"`
	Deadline      string `json:"deadline" format:"date-time" doc:"when it closes, unless more arrives or it is held"`
	SecondsLeft   int    `json:"seconds_left" doc:"until the deadline, rounded up; 0 when it has passed"`
	Files         int    `json:"files"`
	Bytes         int64  `json:"bytes"`
	Held          bool   `json:"held" doc:"the automation is paused: it grows and does not close"`
}

func viewWindow(r window.Record, now time.Time) *openWindow {
	o := r.Open
	if o == nil {
		return nil
	}
	return &openWindow{
		OpenedAt: stamp(o.OpenedAt), LastArrivalAt: stamp(o.LastArrivalAt), Deadline: stamp(o.Deadline),
		SecondsLeft: max(0, int(math.Ceil(o.Deadline.Sub(now).Seconds()))), Held: r.Held,
	}
}

type listAutomations struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
	Cursor string `query:"cursor" maxLength:"512" doc:"pagination.next_cursor of the page before"`
}

type extendWindow struct {
	Index string `path:"index_id"`
	Body  struct {
		By    string `json:"by,omitempty" doc:"how much later than its deadline the window closes: 30s, 10m, 1h, 1d"`
		Until string `json:"until,omitempty" doc:"or the time it closes at, RFC 3339"`
	}
}

// maxExtension is how far ahead a window may be kept open: a slip of the keyboard must not bury what has arrived.
const maxExtension = 30 * 24 * time.Hour

func (a *Admin) windowRoutes() {
	const tag, path = "Automations", "/indexes/{index_id}/automations/import"
	register(a, route{
		method: "GET", path: "/automations", scope: read, tag: tag, summary: "List the import automations of all indexes",
		about: "In order of creation, each with its open window: files, bytes, time left, held or not.",
	}, a.listAutomations)
	register(a, route{
		method: "GET", path: path + "/plan", scope: read, tag: tag, timeout: browseTimeout,
		summary: "Show what an import automation would import now",
		about: "Lists the storage as a scan does, without importing anything. What is no medium by its content is only seen by " +
			"the import, which then skips it.",
	}, a.planAutomation)
	register(a, route{
		method: "POST", path: path + "/flush", scope: write, tag: tag, summary: "Close the open window now",
		about: "What has arrived becomes a job at once. Nothing open is no error. 409 while the automation is paused or disabled.",
	}, a.flushWindow)
	register(a, route{
		method: "POST", path: path + "/extend", scope: write, tag: tag, summary: "Keep the window open longer",
		about: "Give by or until, at most 30 days ahead. Arrivals, also beyond the longest wait, do not close it sooner; a " +
			"flush does. 409 when no window is open.",
	}, a.extendWindow)
	register(a, route{
		method: "POST", path: path + "/drop", scope: write, tag: tag, timeout: browseTimeout, summary: "Drop what is in the open window",
		about: "The object versions in it are not imported by this automation, now or later; newer versions of them arrive as " +
			"ever, and an import job can still import them.",
	}, a.dropWindow)
}

func (a *Admin) listAutomations(ctx context.Context, in *listAutomations) (*body[page[watchedAutomation]], error) {
	const list = "automations"
	position, err := openCursor(list, in.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := all(ctx, a.automations)
	if err != nil {
		return nil, err
	}
	key := func(at store.Automation) string { return at.CreatedAt.UTC().Format(time.RFC3339Nano) + " " + at.ID }
	slices.SortFunc(found, func(x, y store.Automation) int {
		return cmp.Or(x.CreatedAt.Compare(y.CreatedAt), cmp.Compare(x.ID, y.ID))
	})
	if position != "" {
		i := slices.IndexFunc(found, func(at store.Automation) bool { return key(at) == position })
		if i < 0 {
			return nil, badCursor()
		}
		found = found[i+1:]
	}
	next := ""
	if len(found) > in.Limit {
		found = found[:in.Limit]
		next = key(found[in.Limit-1])
	}
	views := make([]watchedAutomation, len(found))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelReads)
	for i, at := range found {
		g.Go(func() error {
			v, err := a.watched(gctx, at)
			views[i] = v
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return &body[page[watchedAutomation]]{newPage(views, in.Limit, sealCursor(list, next))}, nil
}

func (a *Admin) watched(ctx context.Context, at store.Automation) (watchedAutomation, error) {
	w, err := a.windows.Get(ctx, at.ID)
	if err != nil {
		return watchedAutomation{}, err
	}
	v, err := a.viewAutomationWith(ctx, at, w)
	if err != nil {
		return watchedAutomation{}, err
	}
	open := viewWindow(w, time.Now())
	if open != nil {
		open.Files, open.Bytes = v.Body.PendingFiles, v.Body.PendingBytes
	}
	return watchedAutomation{ImportAutomation: v.Body, Window: open}, nil
}

func (a *Admin) answerWatched(ctx context.Context, at store.Automation) (*body[watchedAutomation], error) {
	v, err := a.watched(ctx, at)
	return &body[watchedAutomation]{v}, err
}

func (a *Admin) flushWindow(ctx context.Context, in *automationPath) (*body[watchedAutomation], error) {
	at, err := a.automation(ctx, in.Index)
	switch {
	case err != nil:
		return nil, err
	case !at.Enabled:
		return nil, idle(in.Index, "import_automation_disabled", "is disabled: enable it first")
	case at.Paused:
		return nil, idle(in.Index, "import_automation_paused", "is paused and starts no job: resume it first")
	}
	op, _ := operationOf(ctx)
	if err := a.windows.Flush(ctx, at.ID, op.id); err != nil {
		return nil, err
	}
	return a.answerWatched(ctx, at)
}

func idle(index, code, why string) error {
	return newProblem(http.StatusConflict, code, "The import automation of %s %s.", index, why).with("index_id", index)
}

func (a *Admin) extendWindow(ctx context.Context, in *extendWindow) (*body[watchedAutomation], error) {
	at, err := a.automation(ctx, in.Index)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if _, err := in.until(now, now); err != nil { // whether a window is open or not
		return nil, err
	}
	op, _ := operationOf(ctx)
	err = a.windows.Extend(ctx, at.ID, op.id, func(deadline time.Time) (time.Time, error) { return in.until(deadline, now) })
	if errors.Is(err, window.ErrNotOpen) {
		return nil, idle(in.Index, "import_window_not_open", "has no open window to extend")
	}
	if err != nil {
		return nil, err
	}
	return a.answerWatched(ctx, at)
}

// until is when a window with this deadline shall close. What is overdue counts from now.
func (in *extendWindow) until(deadline, now time.Time) (until time.Time, err error) {
	var f fieldErrors
	field := "by"
	switch by, at := in.Body.By, in.Body.Until; {
	case by == "" && at == "":
		f.add("by", "is required, or until: such as 10m, 1h or 1d")
	case by != "" && at != "":
		f.add("by", "must not come together with until")
	case by != "":
		d, err := store.ParseInterval(by)
		if err != nil {
			f.add("by", "must be a time such as 30s, 10m, 1h or 1d")
		}
		if deadline.Before(now) {
			deadline = now
		}
		until = deadline.Add(d)
	default:
		field = "until"
		if until, err = time.Parse(time.RFC3339, at); err != nil {
			f.add("until", "must be a time such as 2026-03-01T10:00:00Z")
		}
	}
	if len(f) == 0 && until.After(now.Add(maxExtension)) {
		f.add(field, "must be at most 30 days ahead")
	}
	return until, f.err()
}

func (a *Admin) dropWindow(ctx context.Context, in *automationPath) (*body[watchedAutomation], error) {
	at, err := a.automation(ctx, in.Index)
	if err != nil {
		return nil, err
	}
	op, _ := operationOf(ctx)
	if _, err := a.windows.Discard(ctx, at.ID, op.id, a.ledger); err != nil {
		return nil, err
	}
	return a.answerWatched(ctx, at)
}
