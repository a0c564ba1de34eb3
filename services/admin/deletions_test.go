package admin_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"millrace/shared/event"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// A medium is gone when its deletion is answered; its bytes are for the importer, which is asked once.
func TestDeleteVideo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/videos/" + f.video
	w.do("GET", path+"/deletion", nil).refused(404, "resource_video_deletion_not_found")
	var several sync.WaitGroup
	for range 6 {
		several.Go(func() {
			a := w.do("DELETE", path, nil).want(200)
			if a.str("video_id") != f.video || a.str("deletion_id") != event.DeletionOf(f.video) || a.str("status") != "deleting" || a.at("retry_after_seconds") != 1.0 || a.str("message") == "" {
				t.Errorf("%s", a.raw)
			}
		})
	}
	several.Wait()
	w.do("GET", path, nil).refused(404, "resource_video_not_found")
	w.do("GET", path+"/segments", nil).refused(404, "resource_video_not_found")
	if a := w.do("GET", "/indexes/"+f.index+"/videos", nil).want(200); len(a.at("data").([]any)) != 0 {
		t.Errorf("%s", a.raw)
	}
	asked := stored[event.DeletionRequested](w, topology.Deletions, "delete", f.video)
	if len(asked) != 1 || asked[0].Video != f.video || asked[0].Index != f.index {
		t.Errorf("requests: %+v", asked)
	}
	id, err := event.ParseMediumID(f.video)
	must(t, err)
	found, err := w.ledger.Get(t.Context(), f.index, id)
	must(t, err)
	if len(found) != 1 || found[0].State != event.MediumDeleted || found[0].URI == "" {
		t.Fatalf("the tombstone: %+v", found)
	}
	found[0].URI = "" // as the importer leaves it
	must(t, errors.Join(w.ledger.Write(t.Context(), found)...))
	for _, a := range []answer{w.do("GET", path+"/deletion", nil), w.do("DELETE", path, nil)} {
		if a.want(200).str("status") != "deleted" || a.at("retry_after_seconds") != nil || !strings.Contains(string(a.raw), `"retry_after_seconds":null`) {
			t.Errorf("%s", a.raw)
		}
	}
}

// An index is gone when its deletion is answered, and its deletion answers for it from then on.
func TestDeleteIndex(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.fixture()
	path := "/indexes/" + f.index
	w.do("GET", path+"/deletion", nil).refused(404, "resource_index_deletion_not_found")
	var several sync.WaitGroup
	for range 6 {
		several.Go(func() {
			a := w.do("DELETE", path, nil).want(200)
			if a.str("index_id") != f.index || a.str("deletion_id") != event.DeletionOf(f.index) || a.str("status") != "draining" || a.at("retry_after_seconds") != 1.0 {
				t.Errorf("%s", a.raw)
			}
		})
	}
	several.Wait()
	for _, below := range []string{"", "/videos", "/prompt-runs", "/automations/import"} {
		w.do("GET", path+below, nil).refused(404, "resource_index_not_found")
	}
	w.do("POST", "/import-jobs", obj{"connector_id": f.connector, "index_id": f.index}).refused(404, "resource_index_not_found")
	asked := stored[event.DeletionRequested](w, topology.Deletions, "delete", f.index)
	if len(asked) != 1 || asked[0].Video != "" || asked[0].Index != f.index {
		t.Errorf("requests: %+v", asked)
	}
	deletions := register[store.Deletion](w, topology.DeletionRecords)
	for _, status := range []store.DeletionStatus{store.Deleting, store.Gone} {
		_, _, err := deletions.Modify(t.Context(), f.index, func(d *store.Deletion) error { d.Status = status; return nil })
		must(t, err)
		for _, a := range []answer{w.do("GET", path+"/deletion", nil), w.do("DELETE", path, nil)} {
			if a.want(200).str("status") != string(status) || (a.at("retry_after_seconds") == nil) != (status == store.Gone) {
				t.Errorf("%s: %s", status, a.raw)
			}
		}
	}
}
