package importer

import (
	"fmt"
	"regexp"
	"strconv"

	"golang.org/x/time/rate"
)

// Bandwidth is a number of bytes per second, spelled as in 100MB/s.
type Bandwidth int64

var bandwidthForm = regexp.MustCompile(`^([0-9]{1,9}) ?(|[kKMG]i?)B?(?:/s)?$`)

// UnmarshalText implements encoding.TextUnmarshaler: 500kB/s, 100MB/s, 1GiB/s, or plain bytes.
func (b *Bandwidth) UnmarshalText(text []byte) error {
	m := bandwidthForm.FindStringSubmatch(string(text))
	if m == nil {
		return fmt.Errorf("%q: want a number of bytes per second, such as 500kB/s, 100MB/s or 1GiB/s", text)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return err
	}
	unit := map[string]int64{"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "ki": 1 << 10, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
	*b = Bandwidth(n * unit[m[2]])
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (b Bandwidth) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(b), 10), nil }

// limiter lets through a quarter of a second's bytes at a time, and no less than a decent read.
func (b Bandwidth) limiter() *rate.Limiter {
	if b <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(b), int(max(b/4, 64<<10)))
}
