package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"millrace/services/scanner"
	"millrace/shared/event"
	"millrace/shared/store"
)

// The configuration that notifications are matched with.
const (
	matchConnectors  = 100
	matchAutomations = 10_000
)

// matching measures what a notification costs before anybody is asked anything: to read it and to find who wants it.
func matching(ctx context.Context, l *lab) ([]Row, error) {
	connectors, automations := make([]store.Connector, matchConnectors), make([]store.Automation, matchAutomations)
	for i := range connectors {
		connectors[i] = store.Connector{ID: fmt.Sprintf("con_%03d", i), Provider: "gcs", Bucket: fmt.Sprintf("drop-%d", i), Status: "active"}
	}
	for i := range automations {
		automations[i] = store.Automation{
			ID: fmt.Sprintf("auto_%05d", i), Index: fmt.Sprintf("idx_%05d", i), Enabled: true, Connector: connectors[i%len(connectors)].ID,
			Prefix: fmt.Sprintf("team-%02d/", i%20) + project(i) + "/", Pattern: "*.{mp4,mov,mkv}", Recursive: true, Rev: 1,
		}
	}
	m := scanner.NewMatching(connectors, automations)
	var rows []Row
	for _, form := range []struct {
		what string
		body func(bucket string, n event.Notification) ([]byte, error)
	}{
		{"notifications of Google's Pub/Sub, with their object", pushed},
		{"notifications of our own form", func(_ string, n event.Notification) ([]byte, error) { return json.Marshal(n) }},
	} {
		bodies := make([][]byte, min(l.size.notifications, 10_000))
		of := make([]string, len(bodies))
		mod := time.Now().UTC()
		for i := range bodies {
			a, c := automations[i*7%len(automations)], connectors[i*7%len(automations)%len(connectors)]
			generation := mod.UnixMicro() + int64(i)
			var err error
			bodies[i], err = form.body(c.Bucket, event.Notification{
				Op: event.Created, Path: a.Prefix + fmt.Sprintf("rushes/camera-%d/clip-%07d.mp4", i%8, i), Version: fmt.Sprint(generation),
				Order: fmt.Sprintf("%020d", generation), Size: int64(1<<20 + i), ModTime: mod, CRC32C: "yZRlqg==",
			})
			if err != nil {
				return nil, err
			}
			of[i] = c.ID
		}
		p, err := l.alternate(
			func(int) (float64, error) {
				return l.perCore(func(i int) error {
					i %= len(bodies)
					wanted, err := m.Read(ctx, of[i], bodies[i])
					if err == nil && wanted != 1 {
						err = fmt.Errorf("%d automations want %s", wanted, bodies[i])
					}
					return err
				})
			},
			func(int) (float64, error) {
				return l.perCore(func(i int) error {
					var v any
					return json.Unmarshal(bodies[i%len(bodies)], &v)
				})
			})
		if err != nil {
			return nil, err
		}
		row := Row{
			What:   form.what + ": decoded and matched",
			Beside: "encoding/json alone, into any",
			Target: Target{AtLeast: true, N: 100_000, Unit: "/s"},
			How: fmt.Sprintf("%s automations on %d connectors; %s bodies over and over, of which each is wanted by one automation. Per second of CPU time of the process, in one goroutine. Median of %d rounds in turns.",
				digits(matchAutomations), matchConnectors, digits(float64(len(bodies))), len(p.ours)),
		}
		p.into(&row, "/s")
		rows = append(rows, row)
	}
	return rows, nil
}

// perCore does something as often as there are notifications and returns how often that was per second of CPU time,
// which others who use the machine take nothing of.
func (l *lab) perCore(do func(i int) error) (float64, error) {
	before, err := ownTime()
	if err != nil {
		return 0, err
	}
	for i := range l.size.notifications {
		if err := do(i); err != nil {
			return 0, err
		}
	}
	after, err := ownTime()
	return float64(l.size.notifications) / (after - before).Seconds(), err
}

// pushed is what Pub/Sub pushes for a new object of a bucket.
func pushed(bucket string, n event.Notification) ([]byte, error) {
	api := "https://www.googleapis.com/storage/v1/b/" + bucket + "/o/"
	object, err := json.Marshal(map[string]any{
		"kind": "storage#object", "id": bucket + "/" + n.Path + "/" + n.Version, "selfLink": api + n.Path, "name": n.Path, "bucket": bucket,
		"generation": n.Version, "metageneration": "1", "contentType": "video/mp4", "timeCreated": n.ModTime, "updated": n.ModTime,
		"storageClass": "STANDARD", "timeStorageClassUpdated": n.ModTime, "size": fmt.Sprint(n.Size), "md5Hash": "rL0Y20zC+Fzt72VPzMSk2A==",
		"mediaLink": api + n.Path + "?generation=" + n.Version + "&alt=media", "crc32c": n.CRC32C, "etag": "CL/Xq4nq9f8CEAE=",
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"message": map[string]any{
			"attributes": map[string]string{
				"eventType": "OBJECT_FINALIZE", "bucketId": bucket, "objectId": n.Path, "objectGeneration": n.Version,
				"eventTime": n.ModTime.Format(time.RFC3339Nano), "payloadFormat": "JSON_API_V1",
				"notificationConfig": "projects/_/buckets/" + bucket + "/notificationConfigs/1",
			},
			"data": object, "messageId": "2070443601311540", "message_id": "2070443601311540",
			"publishTime": n.ModTime, "publish_time": n.ModTime,
		},
		"subscription": "projects/studio/subscriptions/millrace",
	})
}
