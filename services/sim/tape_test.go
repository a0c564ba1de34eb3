package sim

import (
	"math/rand/v2"
	"time"
)

// tape is where all chance comes from: a seed, whose draws are remembered, or draws that were remembered, behind whose end
// everything is 0. Draws are made so that 0 is the dullest choice, so a history with less in it is a duller one.
type tape struct {
	rnd   *rand.Rand // nil: replay
	draws []uint16
	next  int
}

func newTape(seed uint64) *tape { return &tape{rnd: rand.New(rand.NewPCG(seed, 0))} }

func (t *tape) draw(n int) int {
	if n <= 1 {
		return 0
	}
	if t.rnd != nil {
		d := t.rnd.IntN(n)
		t.draws = append(t.draws, uint16(d))
		return d
	}
	if t.next >= len(t.draws) {
		return 0
	}
	t.next++
	return int(t.draws[t.next-1]) % n
}

// shrink returns fewer or duller draws that still fail, as far as it gets in half a minute.
func shrink(draws []uint16, fails func([]uint16) bool) []uint16 {
	enough := time.Now().Add(30 * time.Second)
	for smaller := true; smaller; {
		smaller = false
		for size := len(draws) / 2; size > 0; size /= 2 {
			for at := 0; at+size <= len(draws); {
				if time.Now().After(enough) {
					return draws
				}
				try := append(append([]uint16(nil), draws[:at]...), draws[at+size:]...)
				if fails(try) {
					draws, smaller = try, true
				} else {
					at += size
				}
			}
		}
		for i, d := range draws {
			for _, v := range []uint16{0, d / 2} {
				if v >= draws[i] {
					continue
				}
				if time.Now().After(enough) {
					return draws
				}
				try := append([]uint16(nil), draws...)
				try[i] = v
				if fails(try) {
					draws, smaller = try, true
					break
				}
			}
		}
	}
	return draws
}
