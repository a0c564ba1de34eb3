package admin

import (
	"testing"
	"time"
)

func TestLinksExpire(t *testing.T) {
	now := time.Now()
	s := newLinkSigner([]byte("a key"))
	token := s.sign("exp_1", now.Add(linkLife))
	for after, want := range map[time.Duration]bool{0: true, linkLife - 2*time.Second: true, linkLife + time.Second: false} {
		if s.good(token, "exp_1", now.Add(after)) != want {
			t.Errorf("after %s: want %t", after, want)
		}
	}
	if !newLinkSigner([]byte("a key")).good(token, "exp_1", now) || newLinkSigner(nil).good(token, "exp_1", now) {
		t.Error("another admin with the same key must take it, one with another key must not")
	}
}
