package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"millrace/shared/secret"
	"millrace/shared/store"
)

// scope is what a key allows. Each includes those below it.
type scope int

const (
	anyKey scope = iota // whatever a good key allows
	search
	read
	write
	admin
	public // no key at all
)

var scopeNames = map[scope]string{anyKey: "any key", search: "search", read: "read", write: "write", admin: "admin", public: "public"}

func (s scope) String() string { return scopeNames[s] }

// levelOf is the highest of the scopes a key carries.
func levelOf(k store.Key) scope {
	level := anyKey
	for _, name := range k.Scopes {
		for s, n := range scopeNames {
			if n == name && s <= admin {
				level = max(level, s)
			}
		}
	}
	return level
}

// keyring knows the keys. While it watches them it answers from memory, where a revocation arrives with the broker's
// next message; what it does not know, and everything while it does not watch, it asks the broker. A watch that has
// fallen silent is noticed within two checks, see checkEvery.
type keyring struct {
	reg *store.Register[store.Key]
	log *slog.Logger

	mu   sync.RWMutex
	live bool
	keys map[string]store.Key // by hash
	seen store.Revision       // the newest change
	used map[string]time.Time // by hash, when a use was noted
}

func newKeyring(reg *store.Register[store.Key], log *slog.Logger) *keyring {
	return &keyring{reg: reg, log: log, keys: make(map[string]store.Key), used: make(map[string]time.Time)}
}

func (k *keyring) fresh() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.live
}

// find returns the key whose hash is that of apiKey, or store.ErrNotFound when there is none that is active.
func (k *keyring) find(ctx context.Context, apiKey string) (store.Key, error) {
	hash := secret.HashKey(apiKey)
	k.mu.RLock()
	key, ok := k.keys[hash]
	ok = ok && k.live
	k.mu.RUnlock()
	if !ok {
		var err error
		if key, _, err = k.reg.Get(ctx, hash); err != nil {
			return store.Key{}, err
		}
	}
	// The map was asked for a digest, so its timing says nothing about keys; the comparison does not rely on that.
	now := time.Now()
	if !secret.KeyMatches(apiKey, key.Hash) || !key.Active(now) {
		return store.Key{}, store.ErrNotFound
	}
	if now.Sub(key.LastUsedAt) >= noteUseEvery {
		k.noteUse(key.Hash, now)
	}
	return key, nil
}

// noteUseEvery is how exact last_used_at is: each key costs at most one write in that time, per process.
const noteUseEvery = 10 * time.Minute

// noteUse records that a key was used, later: no request waits for it, and a note that fails is forgotten.
func (k *keyring) noteUse(hash string, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.used[hash]) < noteUseEvery {
		return
	}
	k.used[hash] = now
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		defer cancel()
		_, _, err := k.reg.Modify(ctx, hash, func(key *store.Key) error {
			if key.Hash == "" || now.Sub(key.LastUsedAt) < noteUseEvery { // deleted, or noted by another process
				return store.ErrUnchanged
			}
			key.LastUsedAt = now.UTC()
			return nil
		})
		if err != nil {
			k.log.Debug("the use of an API key was not noted", "error", err)
		}
	}()
}

// watch keeps the keys in memory until ctx ends.
func (k *keyring) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := k.watchOnce(ctx)
		k.setLive(false)
		if ctx.Err() != nil {
			return
		}
		k.log.Warn("watching API keys, will try again", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (k *keyring) watchOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var checking sync.WaitGroup
	defer checking.Wait()
	defer cancel(nil)
	err := k.reg.Watch(ctx, func() {
		k.setLive(true)
		checking.Go(func() { cancel(k.check(ctx)) })
	}, k.apply)
	return cmp.Or(err, context.Cause(ctx))
}

// checkEvery is how often a watch is held against what it should have seen. A subscription can be silent although
// there are changes: while the client reconnects, or on the wrong side of a partition.
const checkEvery = 2 * time.Second

// check returns why the watch cannot be trusted any more, or nil when ctx ends.
func (k *keyring) check(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for due := store.Revision(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if seen := k.newest(); seen < due {
			return fmt.Errorf("change %d has not come within %s", due, checkEvery)
		}
		bounded, cancel := context.WithTimeout(ctx, checkEvery)
		last, err := k.reg.Last(bounded)
		cancel()
		if err != nil {
			return err
		}
		due = last
	}
}

func (k *keyring) newest() store.Revision {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.seen
}

// setLive forgets everything when the watch has ended: what was revoked meanwhile would not be noticed.
func (k *keyring) setLive(live bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.live = live
	if !live {
		clear(k.keys)
		k.seen = 0
	}
}

func (k *keyring) apply(c store.Change[store.Key]) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = c.Revision
	if c.Value == nil {
		delete(k.keys, c.Key)
		return
	}
	k.keys[c.Key] = *c.Value
}

// Names of the keys that EnsureKey makes.
const (
	configuredKey = "configured"
	firstKey      = "first"
)

// minKey is the shortest key that may be given: shorter ones can be guessed.
const minKey = 16

// ErrKey says that a given key cannot be one.
var ErrKey = fmt.Errorf("an API key must be %d to 255 printable ASCII characters without blanks; official clients want one that matches %s", minKey, secret.KeyPattern)

// ErrKeyRevoked says that a given key was revoked: a restart must not bring it back.
var ErrKeyRevoked = errors.New("--api-key: this key was revoked; give another one")

// EnsureKey sees to it that somebody can get in. A given key (--api-key) is stored, hashed, with all scopes, and takes
// the place of the one that was given before; one that cannot be a key fails with ErrKey. Without one, and without any
// key stored yet, a key is generated and returned, to be shown once: nobody can read it again.
func (a *Admin) EnsureKey(ctx context.Context, given string) (shown string, err error) {
	stored := make(map[string]store.Key)
	for k, err := range a.keys.reg.All(ctx) {
		if err != nil {
			return "", fmt.Errorf("look for an API key: %w", err)
		}
		stored[k.Hash] = k
	}
	if k, known := stored[secret.HashKey(given)]; known && !k.Active(time.Now()) {
		return "", ErrKeyRevoked
	}
	if given == "" {
		if len(stored) > 0 {
			return "", nil
		}
		key := secret.NewKey()
		return key, a.storeKey(ctx, key, firstKey)
	}
	if !usableKey(given) {
		return "", ErrKey
	}
	hash := secret.HashKey(given)
	if _, known := stored[hash]; !known {
		if err := a.storeKey(ctx, given, configuredKey); err != nil {
			return "", err
		}
	}
	for _, k := range stored {
		if k.Name == configuredKey && k.Hash != hash {
			if err := a.keys.reg.Delete(ctx, k.Hash); err != nil {
				return "", fmt.Errorf("revoke the API key given before: %w", err)
			}
		}
	}
	return "", nil
}

// keyHead is how much of a generated key is kept readable: sk_live_ and four of its 48 digits.
const keyHead = 12

func usableKey(s string) bool {
	if len(s) < minKey || len(s) > 255 {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// storeKey keeps the hash of a key with all scopes. Of a key that is somebody's own, no part is kept readable.
func (a *Admin) storeKey(ctx context.Context, key, name string) error {
	k := newKey(key, name, []string{admin.String(), write.String(), read.String(), search.String()}, time.Time{})
	if err := a.keys.reg.Put(ctx, k.Hash, k); err != nil {
		return fmt.Errorf("store the API key: %w", err)
	}
	return nil
}

// newKey is the record of a key: its hash and, of a generated one, its head.
func newKey(key, name string, scopes []string, expires time.Time) store.Key {
	k := store.Key{Hash: secret.HashKey(key), Name: name, Scopes: scopes, CreatedAt: time.Now().UTC(), ExpiresAt: expires}
	if secret.ValidKey(key) {
		k.Prefix = key[:keyHead]
	}
	return k
}

// credential is the key of a request; X-API-Key wins.
func credential(r *http.Request) string {
	if key := strings.TrimSpace(r.Header.Get("X-API-Key")); key != "" {
		return key
	}
	return bearer(r)
}

func bearer(r *http.Request) string {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// authorize lets a request through whose key allows need, and has not been used too often. It comes before anything is
// looked up.
func (a *Admin) authorize(r *http.Request, need scope) error {
	return a.authorizeAs(r, need, categoryOf(need))
}

// authorizeAs is authorize for requests that are counted apart from others with the same scope.
func (a *Admin) authorizeAs(r *http.Request, need scope, c category) error {
	if need == public || isOperator(r.Context()) {
		return nil
	}
	apiKey := credential(r)
	var key store.Key
	err := store.ErrNotFound
	if apiKey != "" {
		key, err = a.keys.find(r.Context(), apiKey)
	}
	if errors.Is(err, store.ErrNotFound) {
		a.metrics.refused.WithLabelValues(refusedKey).Inc()
		return newProblem(http.StatusUnauthorized, "authentication_invalid_api_key",
			"The API key is missing or not valid. Send it as X-API-Key or as Authorization: Bearer.")
	}
	if err != nil {
		return err
	}
	if asked, ok := r.Context().Value(askedKey{}).(*asked); ok {
		asked.key = key.Hash
	}
	if err := a.limiter.take(key.Hash, c); err != nil {
		a.metrics.refused.WithLabelValues(refusedRate).Inc()
		return err
	}
	if levelOf(key) < need {
		a.metrics.refused.WithLabelValues(refusedScope).Inc()
		return newProblem(http.StatusForbidden, "authorization_insufficient_scope", "This needs a key with the scope %s.", need).
			with("required_scope", need.String())
	}
	return nil
}
