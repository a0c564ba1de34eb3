package admin

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// LinkKey is the purpose of the key that signs download links, see secret.Keeper.Derive.
const LinkKey = "download links"

// linkLife is how long a download link is good. Whoever has it needs no key, so it is no longer than a download takes
// to begin; one that has begun goes on.
const linkLife = 15 * time.Minute

// linkSigner makes and checks tokens that allow downloading one export for a while: v1.<export and expiry>.<HMAC>.
type linkSigner struct{ key []byte }

func newLinkSigner(key []byte) linkSigner {
	if len(key) == 0 {
		key = make([]byte, sha256.Size)
		_, _ = rand.Read(key) // never fails
	}
	return linkSigner{key}
}

const linkVersion = "v1"

var linkText = base64.RawURLEncoding.Strict()

func (s linkSigner) sign(export string, until time.Time) string {
	said := linkVersion + "." + linkText.EncodeToString([]byte(export+":"+strconv.FormatInt(until.Unix(), 10)))
	return said + "." + linkText.EncodeToString(s.mac(said))
}

func (s linkSigner) mac(said string) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(said))
	return h.Sum(nil)
}

// good reports whether a token allows downloading export now.
func (s linkSigner) good(token, export string, now time.Time) bool {
	cut := strings.LastIndexByte(token, '.')
	if cut < 0 {
		return false
	}
	said := token[:cut]
	sum, err := linkText.DecodeString(token[cut+1:])
	if err != nil || !hmac.Equal(sum, s.mac(said)) {
		return false
	}
	// From here on it is something that was signed here.
	text, _ := strings.CutPrefix(said, linkVersion+".")
	payload, err := linkText.DecodeString(text)
	if err != nil {
		return false
	}
	id, expiry, ok := strings.Cut(string(payload), ":")
	until, err := strconv.ParseInt(expiry, 10, 64)
	return ok && err == nil && id == export && now.Unix() < until
}

// origin is an input that learns how the client reaches this server.
type origin struct {
	https string // https://host of the client's base URL, "" when that is not known to be https
}

var hostname = regexp.MustCompile(`^(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$`)

// Resolve implements huma.Resolver. A proxy in front tells by X-Forwarded-Proto and X-Forwarded-Host; whoever makes
// them up gets a link for nobody but themselves.
func (o *origin) Resolve(ctx huma.Context) []error {
	r, _ := humago.Unwrap(ctx)
	if r.TLS == nil && !strings.EqualFold(first(r, "X-Forwarded-Proto"), "https") {
		return nil
	}
	host := first(r, "X-Forwarded-Host")
	if host == "" {
		host = r.Host
	}
	if hostname.MatchString(host) {
		o.https = "https://" + strings.TrimSuffix(strings.ToLower(host), ":443")
	}
	return nil
}

// first is the value that the outermost of several proxies gave.
func first(r *http.Request, header string) string {
	v, _, _ := strings.Cut(r.Header.Get(header), ",")
	return strings.TrimSpace(v)
}
