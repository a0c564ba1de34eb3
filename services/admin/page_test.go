package admin

import (
	"testing"
	"time"

	"millrace/shared/store"
)

// FuzzCursor: whatever a client sends as a cursor is a position of that very list, or refused; what we hand out comes
// back as it was.
func FuzzCursor(f *testing.F) {
	f.Add("videos of idx_1", "1z", "")
	f.Add("prompt runs of idx_1", positionOf(store.Run{ID: "run_1", CreatedAt: time.Unix(1, 2)}).String(), "AAAA")
	f.Add("results of run_1 * segment", "zzzzzzzzzzzzzzzzzzzz", "%%%")
	f.Add("", "", "\x00")
	f.Fuzz(func(t *testing.T, list, position, sent string) {
		sealed := sealCursor(list, position)
		if back, err := openCursor(list, sealed); back != position || err != nil {
			t.Errorf("%q came back as %q: %v", position, back, err)
		}
		if back, err := openCursor(list+"x", sealed); err == nil && back != "" {
			t.Errorf("the cursor of %q opened another list", list)
		}
		for _, p := range []string{position, sent} {
			if at, err := readRunPosition(p); err == nil && p != "" {
				if again, err := readRunPosition(at.String()); again != at || err != nil {
					t.Errorf("%q: %v, %v", p, again, err)
				}
			}
			_, _ = readSequence(p)
		}
		if opened, err := openCursor(list, sent); err == nil && (opened == "") != (sent == "") {
			t.Errorf("%q opened as %q", sent, opened)
		}
	})
}
