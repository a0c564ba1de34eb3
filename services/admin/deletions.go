package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/store"
)

// Deletion is how far a deletion is. Older clients read the message alone. Exported, as huma looks into embedded
// types only if they are.
type Deletion struct {
	ID         string `json:"deletion_id" doc:"the same however often it is asked for"`
	Status     string `json:"status" enum:"draining,deleting,deleted"`
	RetryAfter *int   `json:"retry_after_seconds" doc:"when to look again; null when it is done"`
	Message    string `json:"message"`
}

type indexDeletion struct {
	Index string `json:"index_id"`
	Deletion
}

type videoDeletion struct {
	Video string `json:"video_id"`
	Deletion
}

func viewDeletion(thing, id string, status store.DeletionStatus) Deletion {
	d := Deletion{ID: event.DeletionOf(id), Status: string(status), Message: thing + " deleted."}
	if status != store.Gone {
		again := 1
		d.RetryAfter, d.Message = &again, thing+" is being deleted."
	}
	return d
}

func (a *Admin) deletionRoutes() {
	register(a, route{
		method: "DELETE", path: "/indexes/{index_id}", scope: admin, tag: "Indexes", summary: "Delete an index",
		about: "With its media, their bytes and its automations; jobs and runs that are under way are cancelled. The index is " +
			"gone at once, what was in it soon after: see its deletion.",
	}, a.deleteIndex)
	register(a, route{
		method: "GET", path: "/indexes/{index_id}/deletion", scope: admin, tag: "Indexes", summary: "Get how far the deletion of an index is",
		about: "Answers also when the index is gone.",
	}, a.getIndexDeletion)
	register(a, route{
		method: "DELETE", path: "/videos/{video_id}", scope: admin, tag: "Media", summary: "Delete a medium",
		about: "With its bytes, unless it was registered by reference. The source object stays, and this version of it is not " +
			"imported again by an automation.",
	}, a.deleteVideo)
	register(a, route{
		method: "GET", path: "/videos/{video_id}/deletion", scope: admin, tag: "Media", summary: "Get how far the deletion of a medium is",
		about: "Answers also when the medium is gone.",
	}, a.getVideoDeletion)
}

// clearAway asks for what is deleted to be cleared away. From then on it will be, whatever happens to us.
func (a *Admin) clearAway(ctx context.Context, thing string, req event.DeletionRequested) error {
	req.Deletion, req.RequestedAt = event.DeletionOf(thing), time.Now().UTC()
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	_, err = a.bus.Publish(ctx, bus.Message{Subject: a.bus.Subject("delete", thing), Data: data, ID: req.Deletion})
	return err
}

// deleteIndex asks for the deletion first; what it does besides is for this answer and the next requests to be right,
// and would be done without it.
func (a *Admin) deleteIndex(ctx context.Context, in *indexPath) (*body[indexDeletion], error) {
	if d, err := a.getIndexDeletion(ctx, in); err == nil {
		return d, nil // under way or over
	} else if p := (*problemError)(nil); !errors.As(err, &p) {
		return nil, err
	}
	x, err := lookUp(ctx, a.indexes, "index", in.ID)
	if err != nil {
		if d, derr := a.getIndexDeletion(ctx, in); derr == nil {
			return d, nil // somebody was faster, just now
		}
		return nil, err
	}
	if err := a.clearAway(ctx, x.ID, event.DeletionRequested{Index: x.ID}); err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	d, _, err := a.deletions.Modify(ctx, x.ID, func(d *store.Deletion) error {
		if d.ID != "" {
			return store.ErrUnchanged
		}
		*d = store.Deletion{ID: event.DeletionOf(x.ID), Index: x.ID, Status: store.Draining, RequestedAt: now}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := a.indexes.Delete(ctx, x.ID); err != nil {
		return nil, err
	}
	return &body[indexDeletion]{indexDeletion{Index: x.ID, Deletion: viewDeletion("Index", x.ID, d.Status)}}, nil
}

func (a *Admin) getIndexDeletion(ctx context.Context, in *indexPath) (*body[indexDeletion], error) {
	none := newProblem(http.StatusNotFound, "resource_index_deletion_not_found", "Nobody has deleted an index with the id %s.", in.ID).
		with("index_id", in.ID)
	if !event.IsToken(in.ID) {
		return nil, none
	}
	d, _, err := a.deletions.Get(ctx, in.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, none
	}
	if err != nil {
		return nil, err
	}
	return &body[indexDeletion]{indexDeletion{Index: d.Index, Deletion: viewDeletion("Index", d.Index, d.Status)}}, nil
}

// settled returns the ledger entry of a medium that is or was one: imported, or deleted by a person.
func (a *Admin) settled(ctx context.Context, video string) (store.Entry, error) {
	id, err := event.ParseMediumID(video)
	if err != nil {
		return store.Entry{}, notFound("video", video)
	}
	found, err := a.ledger.Find(ctx, id)
	if err != nil {
		return store.Entry{}, err
	}
	for _, e := range found {
		if e.State == event.MediumImported || e.State == event.MediumDeleted {
			return e, nil
		}
	}
	return store.Entry{}, notFound("video", video)
}

// medium returns a medium that is there.
func (a *Admin) medium(ctx context.Context, video string) (event.Medium, error) {
	e, err := a.settled(ctx, video)
	if err == nil && e.State != event.MediumImported {
		err = notFound("video", video)
	}
	return e.Medium, err
}

func (a *Admin) deleteVideo(ctx context.Context, in *videoPath) (*body[videoDeletion], error) {
	for asked := false; ; {
		e, err := a.settled(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if e.State == event.MediumDeleted {
			return viewVideoDeletion(e), nil
		}
		if !asked {
			if err := a.clearAway(ctx, in.ID, event.DeletionRequested{Index: e.Index, Video: in.ID}); err != nil {
				return nil, err
			}
			asked = true
		}
		e.State = event.MediumDeleted // with its URI: the bytes are still there
		err = a.ledger.Write(ctx, []store.Entry{e})[0]
		if err == nil {
			return viewVideoDeletion(e), nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return nil, err
		}
	}
}

func viewVideoDeletion(e store.Entry) *body[videoDeletion] {
	status := store.Gone
	if e.URI != "" {
		status = store.Deleting
	}
	id := e.ID.String()
	return &body[videoDeletion]{videoDeletion{Video: id, Deletion: viewDeletion("Video", id, status)}}
}

func (a *Admin) getVideoDeletion(ctx context.Context, in *videoPath) (*body[videoDeletion], error) {
	e, err := a.settled(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if e.State != event.MediumDeleted {
		return nil, newProblem(http.StatusNotFound, "resource_video_deletion_not_found", "Nobody has deleted the medium %s.", in.ID).
			with("video_id", in.ID)
	}
	return viewVideoDeletion(e), nil
}
