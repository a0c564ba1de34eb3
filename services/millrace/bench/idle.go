package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"millrace/shared/broker"
	"millrace/shared/bucket"
	"millrace/shared/bucket/dir"
	"millrace/shared/bus"
	"millrace/shared/event"
	"millrace/shared/media/samples"
	"millrace/shared/store"
	"millrace/shared/topology"
)

// sharedFolders is how many folders, each a connector, many automations share.
const sharedFolders = 100

// idle measures what automations cost that have nothing to do but to be listed once an hour.
func idle(ctx context.Context, l *lab) (_ []Row, err error) {
	root, data := filepath.Join(l.dir, "inbox"), filepath.Join(l.dir, "data")
	l.say("%d automations over %d folders", l.size.automations, sharedFolders)
	if err := onBroker(ctx, data, func(_ *broker.Broker, b *bus.Bus) error { return l.fillIdle(ctx, fill{b}, root) }); err != nil {
		return nil, err
	}
	used, err := l.idleProduct(ctx, data, root)
	if err != nil {
		return nil, err
	}
	var alone float64
	err = onBroker(ctx, data, func(*broker.Broker, *bus.Bus) error {
		alone, err = l.share(ctx, ownTime)
		return err
	})
	if err != nil {
		return nil, err
	}
	return []Row{{
		What:      digits(float64(l.size.automations)) + " idle automations",
		Measured:  Quantity{used, "% of a core"},
		Yardstick: Quantity{alone, "% of a core"},
		Beside:    "the broker alone, on the same store",
		Target:    Target{N: 2, Unit: "% of a core"},
		How: fmt.Sprintf("`millrace up` with %s automations over %d watched folders, each with a file that was imported before. CPU time of the process over %s, from %s after it has done its first listings, with the hourly listings that fall due in that time.",
			digits(float64(l.size.automations)), sharedFolders, l.size.idle, l.settle()),
	}}, nil
}

// settled waits until the product has listed what it lists when it starts.
func (l *lab) settled(ctx context.Context, up *product) error {
	start := time.Now()
	err := until(ctx, 250*time.Millisecond, func() (bool, error) {
		c, err := up.bus.Bind(ctx, up.bus.JetStream(), topology.ScannerDue)
		if err != nil {
			return false, err
		}
		info := c.CachedInfo()
		return info.NumPending == 0 && info.NumAckPending == 0, nil
	})
	l.say("first listings done after %s", time.Since(start).Round(100*time.Millisecond))
	return err
}

// settle is how long the product gets to come to rest after its first listings.
func (l *lab) settle() time.Duration { return l.size.idle / 3 }

func (l *lab) idleProduct(ctx context.Context, data, root string) (share float64, err error) {
	up, err := l.up(ctx, settings{data: data, allow: root, bus: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	if err := l.settled(ctx, up); err != nil {
		return 0, err
	}
	up.conn.Close()
	share, err = l.share(ctx, up.cpu)
	return share, errors.Join(err, ctx.Err())
}

// share waits for rest and then returns the CPU time that passes, in percent of a core.
func (l *lab) share(ctx context.Context, cpu func() (time.Duration, error)) (float64, error) {
	if err := sleep(ctx, l.settle()); err != nil {
		return 0, err
	}
	before, err := cpu()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := sleep(ctx, l.size.idle); err != nil {
		return 0, err
	}
	after, err := cpu()
	share := 100 * (after - before).Seconds() / time.Since(start).Seconds()
	l.say("%s %% of a core", digits(share))
	return share, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ownTime is the CPU time of this process.
func ownTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// fillIdle writes automations as they are after their first scan: each selects one file, and that is imported.
func (l *lab) fillIdle(ctx context.Context, f fill, root string) error {
	photo, err := samples.FS.ReadFile("photo.png")
	if err != nil {
		return err
	}
	folders := make([]string, min(sharedFolders, l.size.automations))
	for i := range folders {
		folders[i] = filepath.Join(root, fmt.Sprintf("team-%03d", i))
	}
	for i := range l.size.automations {
		sub := filepath.Join(folders[i%len(folders)], project(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(sub, "still.png"), photo, 0o600); err != nil {
			return err
		}
	}
	connectors, err := f.connectors(ctx, folders)
	if err != nil {
		return err
	}
	list, err := f.automations(ctx, l.size.automations, func(i int, a *store.Automation) {
		a.Connector, a.Prefix = connectors[i%len(connectors)], project(i)+"/"
	})
	if err != nil {
		return err
	}
	entries := make([]store.Entry, len(list))
	for i, a := range list {
		o, err := objectAt(ctx, folders[i%len(folders)], project(i)+"/still.png")
		if err != nil {
			return err
		}
		entries[i].Medium = medium(a.Index, a.Connector, o, event.JobOfWindow(a.ID, "first"))
	}
	if err := errors.Join(store.NewLedger(f.bus).Write(ctx, entries)...); err != nil {
		return err
	}
	return f.scans(ctx, list)
}

func project(i int) string { return fmt.Sprintf("project-%05d", i) }

// objectAt is a file as the product sees it.
func objectAt(ctx context.Context, folder, path string) (event.Object, error) {
	src, err := dir.NewSource(folder)
	if err != nil {
		return event.Object{}, err
	}
	defer func() { _ = src.Close() }()
	var o bucket.Object
	if o, err = src.Stat(ctx, path); err != nil {
		return event.Object{}, err
	}
	return event.Object{Path: o.Path, Version: o.Version, Order: o.Order, Size: o.Size, ModTime: o.ModTime, CRC32C: o.CRC32C}, nil
}

// medium is the ledger entry of an imported file.
func medium(index, connector string, o event.Object, job string) event.Medium {
	return event.Medium{
		ID: event.NewMediumID(index, connector, o.Path, o.Version, ""), Index: index, Connector: connector, Path: o.Path,
		Version: o.Version, Order: o.Order, State: event.MediumImported, Size: o.Size,
		CRC32C: "yZRlqg==", SHA256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		URI: "file:///srv/millrace/library/" + index + "/" + o.Path, MediaType: "video", ContentType: "video/mp4", Container: "mp4",
		VideoCodec: "h264", AudioCodec: "aac", Seconds: 12.5, Width: 1920, Height: 1080, Job: job, CreatedAt: o.ModTime,
	}
}
