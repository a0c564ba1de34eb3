package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"millrace/shared/event"
	"millrace/shared/store"
)

// Limits of the upload of a service account's key, in bytes.
const (
	maxCredentials = 64 << 10
	multipartSlack = 64 << 10 // the other parts and the boundaries
)

type newGCSConnector struct {
	ContentType string `header:"Content-Type" hidden:"true"`
	RawBody     []byte `contentType:"multipart/form-data"`
}

// gcsRoute describes the form; huma's own form parsing would spill credentials into temporary files.
func gcsRoute(tag string) route {
	text := func(doc string) *huma.Schema { return &huma.Schema{Type: "string", Description: doc} }
	return route{
		method: "POST", path: "/connectors/gcs", scope: write, status: http.StatusCreated, tag: tag,
		summary: "Connect a Google Cloud Storage bucket",
		about:   "The credentials are encrypted at rest and never shown again. The storage is not contacted; test does that.",
		raw:     maxCredentials + multipartSlack,
		content: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"multipart/form-data": {Schema: &huma.Schema{
			Type:     "object",
			Required: []string{"name", "bucket", "gcp_project_id"},
			Properties: map[string]*huma.Schema{
				"name":             text("1 to 100 characters"),
				"bucket":           text("the bucket's name"),
				"gcp_project_id":   text("the project the bucket is in"),
				"scopes":           {Type: "array", Items: &huma.Schema{Type: "string", Enum: []any{scopeImport, scopeExport}}, Description: "one part per value; default import"},
				"import_mode":      {Type: "string", Enum: []any{string(event.All), string(event.NewOnly)}, Description: "default all"},
				"export_base_path": text("prefix under which exports are written"),
				"endpoint_url":     text("a server other than Google's, such as an emulator"),
				"user_project":     text("the project that pays for requests, for a requester-pays bucket"),
				"subscription":     text("a Pub/Sub subscription to pull notifications from: projects/PROJECT/subscriptions/NAME"),
				"credentials_file": {Type: "string", Format: "binary", Description: "the JSON key of a service account, 1 to 65536 bytes; left out: the credentials of the machine, if its operator allows that"},
			},
		}}}},
	}
}

var subscriptionName = regexp.MustCompile(`^projects/[^/\s]+/subscriptions/[^/\s]+$`)

// CredentialsAAD is what the sealed credentials of a connector are bound to, for those who open them.
func CredentialsAAD(connectorID string) string { return connectorID + "/credentials" }

func (a *Admin) createGCS(ctx context.Context, in *newGCSConnector) (*body[connector], error) {
	form, err := parseForm(in.ContentType, in.RawBody)
	if err != nil {
		return nil, err
	}
	c := store.Connector{
		ID: newID(ctx, "conn"), Provider: "gcs",
		Name: form.text("name"), Bucket: form.text("bucket"), Project: form.text("gcp_project_id"),
		Scopes: scopesOr(form.values["scopes"]), ImportMode: event.ImportMode(form.text("import_mode")),
		ExportBasePath: form.text("export_base_path"), EndpointURL: form.text("endpoint_url"), UserProject: form.text("user_project"),
		Subscription: form.text("subscription"),
	}
	if c.ImportMode == "" {
		c.ImportMode = event.All
	}
	if err := checkGCS(c, form, a.cfg.MachineCredentials); err != nil {
		return nil, err
	}
	if form.credentials == nil {
		return a.createConnector(ctx, c)
	}
	if err := checkServiceAccount(form.credentials); err != nil {
		return nil, err
	}
	if c.Credentials, err = a.deps.Sealer.Seal(form.credentials, CredentialsAAD(c.ID)); err != nil {
		return nil, err
	}
	return a.createConnector(ctx, c)
}

// checkGCS wants a key, unless machine: then those of the machine will do, at Google's own servers.
func checkGCS(c store.Connector, form connectorForm, machine bool) error {
	var f fieldErrors
	if n := utf8.RuneCountInString(c.Name); n < 1 || n > 100 {
		f.add("name", "is required: 1 to 100 characters")
	}
	if c.Bucket == "" || len(c.Bucket) > 222 || strings.ContainsAny(c.Bucket, "/ \t\r\n") {
		f.add("bucket", "is required: the name of a bucket, without gs:// and slashes")
	}
	if c.Project == "" || len(c.Project) > 100 {
		f.add("gcp_project_id", "is required: the project the bucket is in")
	}
	for _, s := range c.Scopes {
		if s != scopeImport && s != scopeExport {
			f.add("scopes", "must be import or export, one part per value")
			break
		}
	}
	if c.ImportMode != event.All && c.ImportMode != event.NewOnly {
		f.add("import_mode", "must be all or new_only")
	}
	checkEndpoint(&f, c.EndpointURL)
	if len(c.UserProject) > 100 || strings.ContainsAny(c.UserProject, "/ \t\r\n") {
		f.add("user_project", "must be the id of a project")
	}
	checkSubscription(&f, c.Provider, c.Subscription)
	if form.credentials == nil && (!machine || c.EndpointURL != "") {
		f.add("credentials_file", "is required: the JSON key of a service account; without one, --machine-credentials has to allow that "+
			"the machine's own are used, and only at Google's")
	}
	return f.err()
}

// checkSubscription refuses what the storage of a provider cannot be heard by; none is fine.
func checkSubscription(f *fieldErrors, provider, name string) {
	switch {
	case name == "":
	case provider == "gcs":
		if !subscriptionName.MatchString(name) {
			f.add("subscription", "must be projects/PROJECT/subscriptions/NAME")
		}
	case provider == "s3":
		u, err := url.Parse(name)
		if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
			f.add("subscription", "must be the URL of an SQS queue, such as https://sqs.eu-central-1.amazonaws.com/123456789012/drops")
		}
	default:
		f.add("subscription", "is for connectors of gcs and s3: there is nothing to pull from elsewhere")
	}
}

// checkServiceAccount holds credentials against what the client libraries need. What it says never quotes them.
func checkServiceAccount(data []byte) error {
	refuse := func(format string, args ...any) error {
		p := newProblem(http.StatusUnprocessableEntity, "connector_credentials_invalid", "credentials_file "+format, args...)
		return p.with("fields", []fieldError{{Field: "credentials_file", Message: strings.TrimPrefix(p.message, "credentials_file ")}})
	}
	if len(data) > maxCredentials {
		return newProblem(http.StatusUnprocessableEntity, "connector_credentials_too_large",
			"credentials_file may have at most %d bytes.", maxCredentials).with("limit_bytes", maxCredentials)
	}
	var account map[string]any
	if err := json.Unmarshal(data, &account); err != nil || account == nil {
		return refuse("must be a JSON object: the key file of a service account.")
	}
	if account["type"] != "service_account" {
		return refuse(`must have the type "service_account".`)
	}
	for _, name := range []string{"project_id", "private_key_id", "private_key", "client_email", "token_uri"} {
		if s, _ := account[name].(string); s == "" {
			return refuse("must have a non-empty %s.", name)
		}
	}
	return nil
}

// connectorForm is a parsed multipart body.
type connectorForm struct {
	values      map[string][]string
	credentials []byte // nil: no such part
}

func (f connectorForm) text(name string) string {
	if v := f.values[name]; len(v) > 0 {
		return strings.TrimSpace(v[0])
	}
	return ""
}

// parseForm reads a multipart body that is already in memory, and bounded. Empty text parts count as absent.
func parseForm(contentType string, data []byte) (connectorForm, error) {
	form := connectorForm{values: make(map[string][]string)}
	parts, ok := formParts(contentType, data)
	if !ok {
		return form, newProblem(http.StatusBadRequest, "request_malformed", "The body is not multipart/form-data, or is cut off.")
	}
	for name, contents := range parts {
		for _, content := range contents {
			switch {
			case name == "credentials_file":
				form.credentials = append([]byte{}, content...) // not nil, also when it is empty
			case len(content) > 0 && utf8.Valid(content):
				form.values[name] = append(form.values[name], string(content))
			}
		}
	}
	return form, nil
}

// formParts reads a multipart body: contents by name, in order. It is false for what is no form, or cut off.
func formParts(contentType string, data []byte) (parts map[string][][]byte, ok bool) {
	t, params, err := mime.ParseMediaType(contentType)
	if err != nil || t != formType || params["boundary"] == "" {
		return nil, false
	}
	parts = make(map[string][][]byte)
	for r := multipart.NewReader(bytes.NewReader(data), params["boundary"]); ; {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return parts, true
		}
		if err != nil {
			return nil, false
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return nil, false
		}
		parts[part.FormName()] = append(parts[part.FormName()], content)
	}
}
