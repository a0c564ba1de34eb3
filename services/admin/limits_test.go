package admin

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	var l Limits
	for _, flag := range []struct {
		limit *Limit
		text  string
	}{{&l.ReadLimit, "none"}, {&l.WriteLimit, "2/3"}, {&l.NotificationLimit, "1/10"}} {
		if err := flag.limit.UnmarshalText([]byte(flag.text)); err != nil {
			t.Fatal(err)
		}
		if text, err := flag.limit.MarshalText(); err != nil || string(text) != flag.text {
			t.Errorf("%s comes back as %s, %v", flag.text, text, err)
		}
	}
	for _, bad := range []string{"", "5", "5/", "/5", "a/b", "0/5", "5/-1", "1/2/3"} {
		if err := new(Limit).UnmarshalText([]byte(bad)); err == nil || !strings.Contains(err.Error(), "PER_MINUTE/PER_HOUR") {
			t.Errorf("%q: %v", bad, err)
		}
	}

	lim := newLimiter(l)
	at := func(clock string) time.Time {
		now, err := time.Parse("15:04:05", clock)
		if err != nil {
			t.Fatal(err)
		}
		return now.AddDate(2026, 0, 0)
	}
	for _, step := range []struct {
		clock, key string
		category   category
		retryAfter int // 0: let through
	}{
		{"10:00:50", "a", writing, 0},
		{"10:00:51", "a", writing, 0},
		{"10:00:59", "a", writing, 1}, // two in this minute
		{"10:00:59", "b", writing, 0}, // another key
		{"10:00:59", "a", notifying, 0},
		{"10:00:59", "a", notifying, 1},
		{"10:00:59", "a", reading, 0}, // no limit
		{"10:00:59", "a", uncounted, 0},
		{"10:01:00", "a", writing, 0},   // a new minute; the refused one did not count
		{"10:01:01", "a", writing, 300}, // three in this hour: a bounded wait
		{"10:59:30", "a", writing, 30},
		{"11:00:00", "a", writing, 0},
		{"11:00:00", "a", writing, 0},
		{"11:00:00", "a", writing, 60},
	} {
		lim.now = func() time.Time { return at(step.clock) }
		err := lim.take(step.key, step.category)
		var p *problemError
		switch {
		case step.retryAfter == 0 && err != nil, step.retryAfter > 0 && !errors.As(err, &p):
			t.Fatalf("%+v: %v", step, err)
		case p != nil && (p.status != 429 || p.code != "rate_limit_exceeded" || p.retryAfter != step.retryAfter):
			t.Errorf("%+v: %+v", step, p)
		}
	}
	lim.now = func() time.Time { return at("11:00:10") }
	stands := lim.status("a")
	want := categoryUse{MinuteUsed: 2, MinuteLimit: 2, HourUsed: 2, HourLimit: 3, HourRemaining: 1, ResetAt: at("11:01:00").Unix()}
	if len(stands) != 2 || stands[writing] != want {
		t.Errorf("stands at %+v", stands)
	}
	lim.now = func() time.Time { return at("13:00:00") }
	if lim.status("c"); len(lim.used) != 2 {
		t.Errorf("keys that are not used any more are remembered: %v", lim.used)
	}
}
