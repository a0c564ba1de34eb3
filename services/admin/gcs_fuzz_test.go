package admin

import (
	"bytes"
	"mime/multipart"
	"testing"
	"time"
)

// FuzzForm: whatever is sent as a form is read within bounds or refused, and credentials are taken as they are.
func FuzzForm(f *testing.F) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	_ = w.WriteField("name", "Archive")
	_ = w.WriteField("scopes", "import")
	_ = w.WriteField("scopes", "export")
	part, err := w.CreateFormFile("credentials_file", "key.json")
	if err != nil {
		f.Fatal(err)
	}
	_, _ = part.Write([]byte(`{"type":"service_account"}`))
	_ = w.Close()
	f.Add(w.FormDataContentType(), b.Bytes())
	f.Add("multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n\xff\r\n--x--"))
	f.Add("multipart/form-data; boundary=\"\"", []byte("--"))
	f.Fuzz(func(t *testing.T, contentType string, data []byte) {
		form, err := parseForm(contentType, data)
		if err != nil {
			return
		}
		size := len(form.credentials)
		for name, values := range form.values {
			for _, v := range values {
				size += len(v)
				if v == "" {
					t.Errorf("an empty value of %q counts as given", name)
				}
			}
		}
		if size > len(data) {
			t.Errorf("%d bytes out of %d", size, len(data))
		}
		_ = checkServiceAccount(form.credentials)
	})
}

// FuzzPositions: what clients send back to say where to go on is ours or refused.
func FuzzPositions(f *testing.F) {
	f.Add(sealCursor("dead *", "1a"))
	f.Add(feedID(17, time.Unix(1, 2)))
	f.Add(deadID(17, []byte("x")))
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := openCursor("dead *", s); err == nil && s != "" && p == "" {
			t.Errorf("cursor %q is no position", s)
		}
		if seq, at, ok := parseFeedID(s); ok {
			if s2, at2, ok := parseFeedID(feedID(seq, at)); !ok || s2 != seq || !at2.Equal(at) {
				t.Errorf("%q comes back as %d %s", s, s2, at2)
			}
		}
		_ = needle(s)
	})
}
