package admin

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limit is how many requests a key may make per minute and per hour. Zero: as many as it likes.
type Limit struct{ Minute, Hour int }

const noLimit = "none"

// UnmarshalText reads PER_MINUTE/PER_HOUR, or none.
func (l *Limit) UnmarshalText(text []byte) error {
	if *l = (Limit{}); string(text) == noLimit {
		return nil
	}
	minute, hour, _ := strings.Cut(string(text), "/")
	var errs [2]error
	l.Minute, errs[0] = strconv.Atoi(minute)
	l.Hour, errs[1] = strconv.Atoi(hour)
	if errs[0] != nil || errs[1] != nil || l.Minute < 1 || l.Hour < 1 {
		return fmt.Errorf("%q is not a limit: want PER_MINUTE/PER_HOUR such as 600/20000, or none", text)
	}
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (l Limit) MarshalText() ([]byte, error) {
	if l == (Limit{}) {
		return []byte(noLimit), nil
	}
	return fmt.Appendf(nil, "%d/%d", l.Minute, l.Hour), nil
}

// Limits are what each API key may ask of each admin process. Their defaults stop a client that runs wild, and nobody
// else. The tags make them flags.
type Limits struct {
	ReadLimit         Limit `help:"Reads per API key: PER_MINUTE/PER_HOUR, or none." default:"600000/12000000" placeholder:"N/N"`
	WriteLimit        Limit `help:"The same for everything that changes something." default:"60000/1200000" placeholder:"N/N"`
	NotificationLimit Limit `help:"The same for notifications that storage systems push." default:"600000/12000000" placeholder:"N/N"`
}

// category is what requests are counted as.
type category string

const (
	reading   category = "read"
	writing   category = "write"
	notifying category = "notification"
	uncounted category = ""
)

func categoryOf(s scope) category {
	switch s {
	case search, read:
		return reading
	case write, admin:
		return writing
	}
	return uncounted
}

// limiter counts the requests of each key in minutes and hours of the clock.
type limiter struct {
	limits map[category]Limit
	now    func() time.Time

	mu     sync.Mutex
	hourAt int64 // when the hour began in which all of used was used, in Unix seconds
	used   map[usedBy]*usedUp
}

type usedBy struct {
	key string // its hash
	category
}

type usedUp struct {
	hour     int64
	minute   int64
	minuteAt int64 // when that minute began
}

func newLimiter(l Limits) *limiter {
	limits := map[category]Limit{reading: l.ReadLimit, writing: l.WriteLimit, notifying: l.NotificationLimit}
	for c, limit := range limits {
		if limit == (Limit{}) {
			delete(limits, c)
		}
	}
	return &limiter{limits: limits, now: time.Now, used: make(map[usedBy]*usedUp)}
}

// counter returns what a key has used up in the hour and the minute of now. The mutex is held.
func (l *limiter) counter(by usedBy, now int64) *usedUp {
	if hourAt := now - now%3600; hourAt != l.hourAt {
		l.hourAt = hourAt
		clear(l.used)
	}
	u := l.used[by]
	if u == nil {
		u = new(usedUp)
		l.used[by] = u
	}
	if minuteAt := now - now%60; minuteAt != u.minuteAt {
		u.minuteAt, u.minute = minuteAt, 0
	}
	return u
}

// maxRetryAfter bounds what clients are told to wait, in seconds: some wait as long as they are told.
const maxRetryAfter = 300

// take counts one request, or refuses it. What is refused is not counted.
func (l *limiter) take(key string, c category) error {
	limit, limited := l.limits[c]
	if !limited {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now().Unix()
	u := l.counter(usedBy{key, c}, now)
	if u.minute < int64(limit.Minute) && u.hour < int64(limit.Hour) {
		u.minute++
		u.hour++
		return nil
	}
	window, allowed := "minute", limit.Minute
	if u.hour >= int64(limit.Hour) {
		window, allowed = "hour", limit.Hour
	}
	reset := l.resetAt(u, limit)
	p := newProblem(http.StatusTooManyRequests, "rate_limit_exceeded",
		"This API key has made its %d %s requests of this %s.", allowed, c, window).
		with("category", string(c)).with("window", window).with("limit", allowed).with("reset_at", reset)
	p.retryAfter = int(min(reset-now, maxRetryAfter))
	return p
}

// resetAt is when more may be used, in Unix seconds; always later than now.
func (l *limiter) resetAt(u *usedUp, limit Limit) int64 {
	if u.hour >= int64(limit.Hour) {
		return l.hourAt + 3600
	}
	return u.minuteAt + 60
}

// categoryUse is where a key stands (contract §4.2).
type categoryUse struct {
	MinuteUsed      int64 `json:"minute_used"`
	MinuteLimit     int64 `json:"minute_limit"`
	MinuteRemaining int64 `json:"minute_remaining"`
	HourUsed        int64 `json:"hour_used"`
	HourLimit       int64 `json:"hour_limit"`
	HourRemaining   int64 `json:"hour_remaining"`
	ResetAt         int64 `json:"reset_at" doc:"Unix seconds"`
}

// status returns where a key stands in each category that has a limit.
func (l *limiter) status(key string) map[category]categoryUse {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now().Unix()
	stands := make(map[category]categoryUse, len(l.limits))
	for c, limit := range l.limits {
		u := l.counter(usedBy{key, c}, now)
		minute, hour := int64(limit.Minute), int64(limit.Hour)
		stands[c] = categoryUse{
			MinuteUsed: u.minute, MinuteLimit: minute, MinuteRemaining: minute - u.minute,
			HourUsed: u.hour, HourLimit: hour, HourRemaining: hour - u.hour, ResetAt: l.resetAt(u, limit),
		}
	}
	return stands
}
