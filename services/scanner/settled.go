package scanner

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"

	"millrace/shared/event"
	"millrace/shared/store"
)

// index is what a scan knows of the ledger of one index without asking: the hashes of the versions that need no more
// import, read in one go once that costs less than to ask for each page. What is not among them is asked for, so it may
// be incomplete, and old by as much as the scan takes: a version that is settled stays so, and if a person undoes that,
// the next scan finds it.
//
// It holds no object of which the ledger says that it is to be tried again.
type index struct {
	ledger *store.Ledger
	id     string
	likely int // objects that the scan will list
	seen   int
	loaded bool
	keys   []key // in order
	room   int   // taken of the process's share, given back by close
}

// key is a version of an object, of which its hashes leave no two alike: 16 bytes are the object, with the 10 of the
// version folded in.
type key [2]uint64

// askingCost is how many entries are read in a row for what asking for one costs.
const askingCost = 4

// maxKeys bounds the keys that all scans of this process hold together: 64 MB. What does not fit is asked for.
const maxKeys = 4 << 20

var keysHeld atomic.Int64

func newIndex(ledger *store.Ledger, id string, likely int) *index {
	return &index{ledger: ledger, id: id, likely: likely}
}

// expect is told of n more objects, and reads the ledger when that has become worth it.
func (x *index) expect(ctx context.Context, n int) error {
	x.seen += n
	if x.loaded || x.seen < pageSize {
		return nil
	}
	size, err := x.ledger.Size(ctx)
	if err != nil || size > askingCost*max(x.seen, x.likely) {
		return err
	}
	return x.load(ctx, size)
}

func (x *index) load(ctx context.Context, size int) error {
	x.loaded = true
	x.room = min(size, maxKeys)
	if keysHeld.Add(int64(x.room)) > maxKeys {
		x.close()
		return nil
	}
	for id, err := range x.ledger.Settled(ctx, x.id) {
		if err != nil {
			return err
		}
		if len(x.keys) == x.room {
			break
		}
		if k, ok := keyOf(id); ok {
			x.keys = append(x.keys, k)
		}
	}
	keysHeld.Add(int64(len(x.keys) - x.room))
	x.room = len(x.keys)
	slices.SortFunc(x.keys, compareKeys)
	return nil
}

func (x *index) close() {
	keysHeld.Add(-int64(x.room))
	x.keys, x.room = nil, 0
}

// settled reports whether a version is known to need no more import.
func (x *index) settled(id event.MediumID) bool {
	if len(x.keys) == 0 {
		return false
	}
	k, ok := keyOf(id)
	if !ok {
		return false
	}
	_, found := slices.BinarySearchFunc(x.keys, k, compareKeys)
	return found
}

func compareKeys(a, b key) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) }

func keyOf(id event.MediumID) (k key, ok bool) {
	object, version, ok := id.Sums()
	return key{object[0] ^ version[0], object[1] ^ version[1]}, ok
}
