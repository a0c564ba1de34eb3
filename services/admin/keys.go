package admin

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"millrace/shared/bus"
	"millrace/shared/secret"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// API keys are the operator's to give, never a key's own: one that leaks must not be able to make others (contract
// §2.1, §18.1). An operator is who can reach the broker (Keys), or who can read the data folder of a server (Door).

// Keys makes, lists and revokes API keys. All servers of the deployment hear of a change at once.
type Keys struct{ reg *store.Register[store.Key] }

// OpenKeys binds the keys of a deployment. It fails with topology.ErrMissing when there is none on this broker.
func OpenKeys(ctx context.Context, b *bus.Bus) (*Keys, error) {
	reg, err := store.Open[store.Key](ctx, b, topology.Keys)
	if err != nil {
		return nil, err
	}
	return &Keys{reg}, nil
}

// KeyRequest says what a new key shall be.
type KeyRequest struct {
	Name      string    `json:"name"`
	Scopes    []string  `json:"scopes"`              // of search, read, write, admin; empty: read
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
}

// APIKey is a key as its operator sees it.
type APIKey struct {
	ID         string   `json:"key_id"`
	Key        string   `json:"key,omitempty"` // only when it was just made
	Prefix     string   `json:"key_prefix"`
	Name       string   `json:"name"`
	Scopes     []string `json:"scopes"`
	Active     bool     `json:"is_active"`
	CreatedAt  *string  `json:"created_at"`
	LastUsedAt *string  `json:"last_used_at"`
	RevokedAt  *string  `json:"revoked_at"`
	ExpiresAt  *string  `json:"expires_at"`
}

func viewKey(k store.Key) APIKey {
	return APIKey{
		ID: k.ID(), Prefix: k.Prefix, Name: k.Name, Scopes: append(make([]string, 0, len(k.Scopes)), k.Scopes...), Active: k.Active(time.Now()),
		CreatedAt: stampOrNull(k.CreatedAt), LastUsedAt: stampOrNull(k.LastUsedAt), RevokedAt: stampOrNull(k.RevokedAt), ExpiresAt: stampOrNull(k.ExpiresAt),
	}
}

// Create makes a key. The answer is the only one that has it.
func (k *Keys) Create(ctx context.Context, want KeyRequest) (APIKey, error) {
	var f fieldErrors
	if n := utf8.RuneCountInString(want.Name); n < 1 || n > 100 {
		f.add("name", "is required: 1 to 100 characters")
	}
	scopes := slices.Clone(want.Scopes)
	if len(scopes) == 0 {
		scopes = []string{read.String()}
	}
	slices.Sort(scopes)
	scopes = slices.Compact(scopes)
	for _, s := range scopes {
		if levelOf(store.Key{Scopes: []string{s}}) == anyKey {
			f.add("scopes", "must be of search, read, write, admin")
			break
		}
	}
	if !want.ExpiresAt.IsZero() && !want.ExpiresAt.After(time.Now()) {
		f.add("expires_at", "must be in the future")
	}
	if err := f.err(); err != nil {
		return APIKey{}, err
	}
	key := secret.NewKey()
	rec := newKey(key, want.Name, scopes, want.ExpiresAt)
	if err := k.reg.Create(ctx, rec.Hash, rec); err != nil {
		return APIKey{}, fmt.Errorf("store the API key: %w", err)
	}
	made := viewKey(rec)
	made.Key = key
	return made, nil
}

// List returns all keys, revoked and expired ones too, in order of creation.
func (k *Keys) List(ctx context.Context) ([]APIKey, error) {
	found, err := all(ctx, k.reg)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(x, y store.Key) int {
		return cmp.Or(x.CreatedAt.Compare(y.CreatedAt), cmp.Compare(x.Hash, y.Hash))
	})
	list := make([]APIKey, len(found))
	for i, key := range found {
		list[i] = viewKey(key)
	}
	return list, nil
}

// Revoke ends a key for ever. Revoking it twice is no error.
func (k *Keys) Revoke(ctx context.Context, id string) (APIKey, error) {
	found, err := all(ctx, k.reg)
	if err != nil {
		return APIKey{}, err
	}
	i := slices.IndexFunc(found, func(key store.Key) bool { return key.ID() == id })
	if i < 0 {
		return APIKey{}, notFound("api_key", id)
	}
	now := time.Now().UTC()
	key, _, err := k.reg.Modify(ctx, found[i].Hash, func(key *store.Key) error {
		switch {
		case key.Hash == "":
			return notFound("api_key", id)
		case !key.RevokedAt.IsZero():
			return store.ErrUnchanged
		}
		key.RevokedAt = now
		return nil
	})
	return viewKey(key), err
}

// Door is how `millrace key` gets into a server beside it: what Config.Door says, as JSON.
type Door struct {
	URL   string `json:"url"`
	Token string `json:"token"` // of this life of the server; presented like an API key
}

// DoorFile is the name of the door in a data folder.
const DoorFile = "operator.json"

// ErrNoDoor says that no server runs on a data folder.
var ErrNoDoor = errors.New("no server is running on this data folder")

// ReadDoor reads the door of a data folder.
func ReadDoor(dir string) (d Door, err error) {
	data, err := os.ReadFile(filepath.Join(dir, DoorFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d, fmt.Errorf("%s: %w", dir, ErrNoDoor)
	}
	if err == nil {
		err = json.Unmarshal(data, &d)
	}
	return d, err
}

// openDoor writes the door in one step, readable for nobody else from its first byte on.
func (a *Admin) openDoor(addr *net.TCPAddr) error {
	host := addr.IP
	if host.IsUnspecified() { // for IPv6, which then takes IPv4 as well
		host = net.IPv4(127, 0, 0, 1)
	}
	data, err := json.Marshal(Door{URL: "http://" + (&net.TCPAddr{IP: host, Port: addr.Port, Zone: addr.Zone}).String(), Token: a.operator})
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(a.cfg.Door), ".operator-*") // 0600
	if err != nil {
		return fmt.Errorf("write the operator's door: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), a.cfg.Door)
	}
	if err != nil {
		return fmt.Errorf("write the operator's door: %w", err)
	}
	return nil
}

// keyRoutes are not in the OpenAPI document: the public ones are refused, the operator's are for `millrace key` alone.
func (a *Admin) keyRoutes() {
	for _, r := range []string{
		"GET /api-keys", "POST /api-keys", "GET /api-keys/{id}", "DELETE /api-keys/{id}", "POST /api-keys/{id}/revoke", "POST /api-keys/{id}/rotate",
	} {
		a.handle(r, func(_ http.ResponseWriter, r *http.Request) (any, error) {
			if err := a.authorize(r, anyKey); err != nil {
				return nil, err
			}
			return nil, newProblem(http.StatusForbidden, "authorization_session_required",
				"API keys are not managed with an API key. The operator does that with `millrace key create|ls|revoke`.")
		})
	}
	if a.operator == "" {
		return
	}
	a.resealRoute()
	keys := &Keys{a.keys.reg}
	a.handle("GET /operator/keys", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return a.asOperator(r, func(ctx context.Context) (any, error) { return keys.List(ctx) })
	})
	a.handle("POST /operator/keys", func(w http.ResponseWriter, r *http.Request) (any, error) {
		return a.asOperator(r, func(ctx context.Context) (any, error) {
			data, err := readAll(w, r, a.cfg.MaxBody)
			if err != nil {
				return nil, err
			}
			var want KeyRequest
			if err := json.Unmarshal(data, &want); err != nil {
				return nil, newProblem(http.StatusBadRequest, "request_malformed", "The body does not describe a key.")
			}
			return keys.Create(ctx, want)
		})
	})
	a.handle("DELETE /operator/keys/{key_id}", func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return a.asOperator(r, func(ctx context.Context) (any, error) { return keys.Revoke(ctx, r.PathValue("key_id")) })
	})
}

// handle adds a route that is not in the OpenAPI document.
func (a *Admin) handle(pattern string, answer func(http.ResponseWriter, *http.Request) (any, error)) {
	method, path, _ := strings.Cut(pattern, " ")
	a.router.HandleFunc(method+" "+a.cfg.BasePath+path, func(w http.ResponseWriter, r *http.Request) {
		v, err := answer(w, r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = jsonFormat.Marshal(w, v) // a client that has gone away does not mind
	})
}

// asOperator lets whoever presents the operator's token do something.
func (a *Admin) asOperator(r *http.Request, do func(context.Context) (any, error)) (any, error) {
	if subtle.ConstantTimeCompare([]byte(credential(r)), []byte(a.operator)) != 1 {
		a.metrics.refused.WithLabelValues(refusedKey).Inc()
		return nil, newProblem(http.StatusUnauthorized, "authentication_invalid_api_key", "This needs the operator's token of this life of the server.")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestTimeout)
	defer cancel()
	return do(ctx)
}
