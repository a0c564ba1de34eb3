// Package egress guards requests whose target somebody else chose, such as webhooks: they must not reach what only this
// machine or its network can reach.
//
// The check that counts is made when a connection is opened, on the address that the name has turned out to be, so that
// a name which answers differently the second time gains nothing.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrRefused says that a target is not one that requests may go to.
var ErrRefused = errors.New("this address is not allowed")

// Guard knows where requests may go: to public addresses, and to what the operator allows. Its methods may be called
// concurrently.
type Guard struct {
	hosts    map[string]struct{} // names, in lower case: whatever they resolve to
	nets     []netip.Prefix
	resolver *net.Resolver // nil: the system's
}

// Option changes a Guard.
type Option func(*Guard)

// Resolver has names looked up by r.
func Resolver(r *net.Resolver) Option { return func(g *Guard) { g.resolver = r } }

// New returns a guard that lets requests through to public addresses and to those the operator allows: networks in CIDR
// form, addresses, and host names, whose addresses are not looked at then.
func New(allow []string, opts ...Option) (*Guard, error) {
	g := &Guard{hosts: make(map[string]struct{})}
	var errs []error
	for _, s := range allow {
		if p, err := netip.ParsePrefix(s); err == nil {
			g.nets = append(g.nets, p.Masked())
		} else if a, err := netip.ParseAddr(s); err == nil {
			a = plain(a)
			g.nets = append(g.nets, netip.PrefixFrom(a, a.BitLen()))
		} else if s != "" && !strings.ContainsAny(s, "/:@ ?#*") {
			g.hosts[canonicalHost(s)] = struct{}{}
		} else {
			errs = append(errs, fmt.Errorf("--allow-endpoint %q: want a network such as 10.0.0.0/8, an address, or a host name", s))
		}
	}
	for _, o := range opts {
		o(g)
	}
	return g, errors.Join(errs...)
}

func canonicalHost(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// plain is an address without what spells it differently: a zone, or IPv6 around IPv4.
func plain(a netip.Addr) netip.Addr { return a.WithZone("").Unmap() }

// maxURL bounds the length of a URL, in bytes.
const maxURL = 2048

// CheckURL says, in words for the one who gave the URL, why nothing can be sent there. What a name resolves to is not
// looked at: that is the dialer's business, each time.
func (g *Guard) CheckURL(raw string) (*url.URL, error) {
	if len(raw) > maxURL {
		return nil, fmt.Errorf("must have at most %d characters", maxURL)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "" {
		return nil, errors.New("must be a URL such as https://hooks.example.org/path")
	}
	if u.User != nil {
		return nil, errors.New("must not carry a user name or password")
	}
	_, allowed := g.hosts[canonicalHost(u.Hostname())]
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && !allowed {
		if err := g.check(a); err != nil {
			return nil, fmt.Errorf("%w; whoever runs this server can allow it with --allow-endpoint", err)
		}
		allowed = g.allows(plain(a))
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && allowed: // inside the operator's own network
	case u.Scheme == "http":
		return nil, errors.New("must be https; plain http is for hosts that whoever runs this server has allowed with --allow-endpoint")
	default:
		return nil, errors.New("must be https")
	}
	return u, nil
}

func (g *Guard) allows(a netip.Addr) bool { return within(a, g.nets) }

func within(a netip.Addr, nets []netip.Prefix) bool {
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// special are the networks that no request of somebody else's making should reach: this machine, private and shared
// networks, what is assigned to protocols and documentation, multicast, and the spellings of IPv4 inside IPv6.
var special = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

// globalIPv6 is all of IPv6 that is routed publicly; everything beside it is special too.
var globalIPv6 = netip.MustParsePrefix("2000::/3")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// check returns an ErrRefused when nothing may be sent to a.
func (g *Guard) check(a netip.Addr) error {
	a = plain(a)
	if g.allows(a) {
		return nil
	}
	if a.Is6() && !globalIPv6.Contains(a) || within(a, special) {
		return fmt.Errorf("%w: %s is not a public address", ErrRefused, a)
	}
	return nil
}

// dialTimeout bounds opening one connection.
const dialTimeout = 5 * time.Second

// DialContext opens a TCP connection to HOST:PORT, trying only addresses that requests may go to. It fails with
// ErrRefused when the host has no such address.
func (g *Guard) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout, Resolver: g.resolver}
	if _, allowed := g.hosts[canonicalHost(host)]; !allowed {
		d.Control = func(_, resolved string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(resolved)
			if err != nil {
				return fmt.Errorf("%w: %s", ErrRefused, resolved)
			}
			return g.check(ap.Addr())
		}
	}
	return d.DialContext(ctx, network, addr)
}
