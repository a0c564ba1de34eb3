package egress_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"millrace/shared/egress"
)

func guard(t testing.TB, allow []string, opts ...egress.Option) *egress.Guard {
	t.Helper()
	g, err := egress.New(allow, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestAllowed(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "10.0.0.0/99", "https://x", "a b", "*.internal", "x:443"} {
		if _, err := egress.New([]string{bad}); err == nil || !strings.Contains(err.Error(), "--allow-endpoint") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	g := guard(t, []string{"10.1.0.0/16", "n8n.lan", "192.168.7.7", "fd00::5"})
	for raw, want := range map[string]string{
		"https://hooks.example.org/webhook/9d?x=%2F#y": "",
		"https://hooks.example.org:8443":               "",
		"https://8.8.8.8/":                             "",
		"https://[2606:4700::1111]/":                   "",
		"https://10.1.2.3/":                            "",
		"http://10.1.2.3:5678/":                        "",
		"http://N8N.lan./webhook":                      "",
		"http://[fd00::5]/":                            "",
		"https://10.2.2.3/":                            "not a public address",
		"https://127.0.0.1/":                           "--allow-endpoint",
		"https://[::1]/":                               "not a public address",
		"https://[::ffff:127.0.0.1]/":                  "not a public address",
		"https://[64:ff9b::7f00:1]/":                   "not a public address",
		"https://[fe80::1%25eth0]/":                    "not a public address",
		"https://169.254.169.254/latest/meta-data":     "not a public address",
		"http://hooks.example.org/":                    "must be https",
		"http://8.8.8.8/":                              "must be https",
		"ftp://hooks.example.org/":                     "must be https",
		"javascript:alert(1)":                          "must be a URL",
		"https:hooks.example.org":                      "must be a URL",
		"https://":                                     "must be a URL",
		"https://:443/":                                "must be a URL",
		"https://x\x00y/":                              "must be a URL",
		"hooks.example.org/x":                          "must be a URL",
		"":                                             "must be a URL",
		"https://user:pass@hooks.example.org/":         "password",
		"https://user@hooks.example.org/":              "user name",
		"https://x/" + strings.Repeat("a", 3000):       "2048",
	} {
		_, err := g.CheckURL(raw)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.60q: %v, want %q", raw, err, want)
		}
	}
}

// Nothing but public addresses can be dialled, however they are spelled; what is allowed can.
func TestDial(t *testing.T) {
	t.Parallel()
	l := listener(t)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, host := range []string{
		"127.0.0.1", "localhost", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
		"10.0.0.1", "172.31.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1", "224.0.0.1",
		"255.255.255.255", "ff02::1", "198.18.0.1", "2001:db8::1", "100::1", "fec0::1", "5f00::1",
	} {
		c, err := guard(t, nil).DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if !errors.Is(err, egress.ErrRefused) {
			t.Errorf("%s: %v %v", host, c, err)
		}
	}
	for _, allow := range []string{"127.0.0.0/8", "127.0.0.1", "::ffff:127.0.0.1"} {
		c, err := guard(t, []string{allow}).DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Errorf("%s: %v", allow, err)
			continue
		}
		_ = c.Close()
	}
}

func listener(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A name that has a public address when it is looked at and a private one when it is dialled gains nothing: what counts
// is the address that is connected to, each time. An allowed name may be anywhere.
func TestRebinding(t *testing.T) {
	t.Parallel()
	l := listener(t)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ns := nameserver(t)
	g := guard(t, []string{"friend.example"}, egress.Resolver(ns.resolver()))
	if _, err := g.CheckURL("https://rebind.example/"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"127.0.0.1", "169.254.169.254", "10.0.0.1"} {
		ns.answer.Store(&to)
		if _, err := g.DialContext(t.Context(), "tcp", "rebind.example:"+port); !errors.Is(err, egress.ErrRefused) {
			t.Errorf("to %s: %v", to, err)
		}
	}
	to := "127.0.0.1"
	ns.answer.Store(&to)
	c, err := g.DialContext(t.Context(), "tcp", "Friend.example:"+port)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if ns.asked.Load() < 4 {
		t.Error("the name was not looked up each time")
	}
}

// dns is a name server that says the same of every name.
type dns struct {
	conn   net.PacketConn
	answer atomic.Pointer[string]
	asked  atomic.Int32
}

func nameserver(t testing.TB) *dns {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s := &dns{conn: conn}
	go s.serve()
	return s
}

func (s *dns) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", s.conn.LocalAddr().String())
	}}
}

func (s *dns) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) == 0 {
			continue
		}
		m.Response, m.Additionals = true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			s.asked.Add(1)
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 0},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(*s.answer.Load()).As4()},
			}}
		}
		if out, err := m.Pack(); err == nil {
			_, _ = s.conn.WriteTo(out, from)
		}
	}
}

// Whatever is accepted is a URL that a request can be made of, with nothing in it that could turn it to this machine.
func FuzzCheckURL(f *testing.F) {
	for _, s := range []string{
		"https://hooks.example.org/webhook/9d", "http://x", "https://[::1]:443/", "https://127.1/", "https://0x7f000001/",
		"https://2130706433/", "https://a@b/", "https://例え.jp/ü?q=ä", "https://x:99999/", "https:///x", "https://x/%zz", "//x",
		"HTTPS://X/", "https://[fe80::1%25lo]/", "https://x\r\nHost: y/", "https://1.2.3.4.5/", "https://localhost./",
	} {
		f.Add(s)
	}
	l := listener(f)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ns := nameserver(f)
	to := "127.0.0.1"
	ns.answer.Store(&to)
	g := guard(f, nil, egress.Resolver(ns.resolver()))
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := g.CheckURL(raw)
		if err != nil {
			return
		}
		if !strings.EqualFold(u.Scheme, "https") || u.User != nil || u.Hostname() == "" {
			t.Errorf("%q was accepted as %v", raw, u)
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			if a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() {
				t.Errorf("%q was accepted", raw)
			}
			return // a public address is none to dial from a test
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond) // not every name can be asked for
		defer cancel()
		if c, err := g.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port)); err == nil {
			t.Errorf("%q led here: %v", raw, c.RemoteAddr())
		}
	})
}
