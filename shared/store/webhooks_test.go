package store_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// What is forgotten is what stood there when that was decided: a webhook may have been created again under its id since.
func TestForgetDeliveries(t *testing.T) {
	t.Parallel()
	ds := store.NewDeliveries(openOne(t))
	hook := event.WebhookOfKey("test", "h")
	queue := func(eventID string) string {
		t.Helper()
		d := event.Delivery{
			ID: event.DeliveryOf(hook, eventID), Webhook: hook, Event: eventID, State: event.DeliveryPending, CreatedAt: time.Now(),
		}
		if err := ds.Queue(t.Context(), eventID, json.RawMessage(`{}`), []event.Delivery{d}); err != nil {
			t.Fatal(err)
		}
		return d.ID
	}
	last := func() store.Revision {
		t.Helper()
		rev, err := ds.Last(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	nothing := last()
	former := queue("evt_1")
	before := last()
	later := queue("evt_2")
	for _, c := range []struct {
		upTo          store.Revision
		former, later bool // is there
	}{{nothing, true, true}, {before, false, true}, {last(), false, false}} {
		if err := ds.Forget(t.Context(), hook, "*", c.upTo); err != nil {
			t.Fatal(err)
		}
		for id, want := range map[string]bool{former: c.former, later: c.later} {
			_, _, err := ds.Get(t.Context(), id)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
			if there := err == nil; there != want {
				t.Errorf("up to %d: %s is there: %t", c.upTo, id, there)
			}
		}
	}
}
