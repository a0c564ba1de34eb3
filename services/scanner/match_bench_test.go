package scanner

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"millrace/shared/event"
	"millrace/shared/store"
)

// BenchmarkDecodeAndMatch measures what a notification costs before anybody is asked, with 10,000 automations on 100
// connectors.
func BenchmarkDecodeAndMatch(b *testing.B) {
	const connectors, automations = 100, 10_000
	var conns []store.Connector
	var autos []store.Automation
	for i := range connectors {
		conns = append(conns, store.Connector{ID: fmt.Sprintf("con_%03d", i), Provider: "gcs", Bucket: fmt.Sprintf("drop-%d", i)})
	}
	for i := range automations {
		autos = append(autos, store.Automation{
			ID: fmt.Sprintf("auto_%05d", i), Index: fmt.Sprintf("idx_%05d", i), Enabled: true, Connector: conns[i%connectors].ID,
			Prefix: fmt.Sprintf("team-%02d/project-%05d/", i%20, i), Pattern: "*.{mp4,mov,mkv}", Recursive: true, Rev: 1,
		})
	}
	m := NewMatching(conns, autos)
	mod := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, form := range []string{"own", "pubsub"} {
		var bodies [1000][]byte
		for i := range bodies {
			a := autos[i*7%automations]
			path := a.Prefix + fmt.Sprintf("rushes/camera-%d/clip-%07d.mp4", i%8, i)
			n := event.Notification{Op: event.Created, Path: path, Version: fmt.Sprint(1760000000000000 + i),
				Order: fmt.Sprintf("%020d", 1760000000000000+i), Size: int64(1<<20 + i), ModTime: mod, CRC32C: "yZRlqg=="}
			bodies[i] = encode(b, n)
			if form == "pubsub" {
				bodies[i] = pubSubPush(b, conns[i*7%connectors].Bucket, n)
			}
		}
		b.Run(form, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				at := i % len(bodies)
				wanted, err := m.Read(b.Context(), conns[at*7%connectors].ID, bodies[at])
				if err != nil || wanted != 1 {
					b.Fatalf("%d wanted it, %v", wanted, err)
				}
				i++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "notifications/s")
		})
	}
}

// pubSubPush is what Pub/Sub pushes for an object.
func pubSubPush(tb testing.TB, bucket string, n event.Notification) []byte {
	object := encode(tb, map[string]any{
		"kind": "storage#object", "id": bucket + "/" + n.Path + "/" + n.Version, "name": n.Path, "bucket": bucket,
		"selfLink": "https://www.googleapis.com/storage/v1/b/" + bucket + "/o/" + n.Path, "generation": n.Version, "metageneration": "1",
		"contentType": "video/mp4", "timeCreated": n.ModTime, "updated": n.ModTime, "storageClass": "STANDARD",
		"timeStorageClassUpdated": n.ModTime, "size": fmt.Sprint(n.Size), "md5Hash": "rL0Y20zC+Fzt72VPzMSk2A==",
		"mediaLink": "https://storage.googleapis.com/download/storage/v1/b/" + bucket + "/o/" + n.Path + "?generation=" + n.Version + "&alt=media",
		"crc32c":    n.CRC32C, "etag": "CL/Xq4nq9f8CEAE=",
	})
	data, err := json.Marshal(map[string]any{
		"message": map[string]any{
			"attributes": map[string]string{
				"eventType": "OBJECT_FINALIZE", "bucketId": bucket, "objectId": n.Path, "objectGeneration": n.Version,
				"eventTime": n.ModTime.Format(time.RFC3339Nano), "notificationConfig": "projects/_/buckets/" + bucket + "/notificationConfigs/1",
				"payloadFormat": "JSON_API_V1",
			},
			"data": object, "messageId": "2070443601311540", "message_id": "2070443601311540",
			"publishTime": n.ModTime, "publish_time": n.ModTime,
		},
		"subscription": "projects/myproject/subscriptions/mysubscription",
	})
	must(tb, err)
	return data
}
