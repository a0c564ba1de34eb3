package s3

import (
	"encoding/xml"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// answer is a listing as a server writes it that has names in XML's own encoding.
func answer(names ...string) string {
	var b strings.Builder
	b.WriteString(xml.Header + `<ListBucketResult xmlns="x"><Name>b</Name><IsTruncated>true</IsTruncated>`)
	for i, name := range names {
		b.WriteString("\n  <Contents><Key>")
		_ = xml.EscapeText(&b, []byte(name))
		fmt.Fprintf(&b, `</Key><ETag>&quot;%d&quot;</ETag><Owner><ID>me</ID><DisplayName/></Owner><Size>%d</Size>
			<LastModified>2026-03-01T12:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>`, i, i)
	}
	b.WriteString(`<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes><NextContinuationToken>t&amp;</NextContinuationToken></ListBucketResult>`)
	return b.String()
}

func TestTakeObjects(t *testing.T) {
	t.Parallel()
	names := []string{"a.mp4", "a&b<c>'\".mp4", "</Contents>", "<Contents>", "ä\u202e\u2028", "a\nb\rc\td", "%2F+ &amp; &#65;", strings.Repeat("&", 1000), " "}
	rest, objects, ok := takeObjects([]byte(answer(names...)))
	if !ok || len(objects) != len(names) {
		t.Fatalf("%d objects, %v", len(objects), ok)
	}
	for i, o := range objects {
		if *o.Key != names[i] || *o.ETag != fmt.Sprintf("%q", fmt.Sprint(i)) || aws.ToInt64(o.Size) != int64(i) ||
			!o.LastModified.Equal(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)) {
			t.Errorf("%q came out as %q, %s, %d bytes, of %s", names[i], *o.Key, *o.ETag, *o.Size, o.LastModified)
		}
	}
	var left struct {
		Contents              []string
		IsTruncated           bool
		NextContinuationToken string
		CommonPrefixes        []struct{ Prefix string }
	}
	if err := xml.Unmarshal(rest, &left); err != nil || len(left.Contents) > 0 || !left.IsTruncated || left.NextContinuationToken != "t&" ||
		len(left.CommonPrefixes) != 1 {
		t.Errorf("left is %+v, %v", left, err)
	}
	for name, body := range map[string]string{
		"a comment":     strings.Replace(answer("a"), "<Contents>", "<!-- <Contents> --><Contents>", 1),
		"CDATA":         strings.Replace(answer("a"), ">a<", "><![CDATA[a]]><", 1),
		"attributes":    strings.Replace(answer("a"), "<Contents>", `<Contents x="1">`, 1),
		"a name within": strings.Replace(answer("a"), ">a<", "><b>a</b><", 1),
		"no end":        strings.Replace(answer("a"), "</Contents>", "", 1),
		"no key":        strings.Replace(answer("a"), "<Key>a</Key>", "", 1),
		"no number":     strings.Replace(answer("a"), "<Size>0<", "<Size>many<", 1),
		"no time":       strings.Replace(answer("a"), "2026", "once", 1),
		"no UTF-8":      answer("a") + "\xff",
		"an entity":     strings.Replace(answer("a"), ">a<", ">&nbsp;<", 1),
	} {
		if _, got, ok := takeObjects([]byte(body)); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
