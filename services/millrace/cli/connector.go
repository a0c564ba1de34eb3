package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
)

type connectorCommand struct {
	Ls     connectorList   `cmd:"" help:"List connectors."`
	Get    connectorGet    `cmd:"" help:"Show a connector."`
	Create connectorCreate `cmd:"" help:"Connect a storage."`
	Test   connectorTest   `cmd:"" help:"Try whether the storage can be listed, and note the outcome."`
	Notify connectorNotify `cmd:"" help:"Have a storage tell of its changes, or print what to run for that."`
	Browse connectorBrowse `cmd:"" help:"List objects, with the matching that jobs and automations use."`
	Rm     connectorRemove `cmd:"" help:"Delete a connector that nothing uses. Imported media stay."`
}

var (
	connectorColumns = []column{
		{"CONNECTOR", "connector_id"}, {"NAME", "name"}, {"PROVIDER", "provider"}, {"STATUS", "status"}, {"LAST TEST", "last_test_result"},
	}
	connectorWide = []column{
		{"FOLDER", "path"}, {"BUCKET", "bucket"}, {"CONTAINER", "container"}, {"SCOPES", "scopes"}, {"MODE", "import_mode"}, {"LAST ERROR", "last_test_error"},
	}
	messageColumns = []column{{"MESSAGE", "message"}}
)

type connectorList struct {
	shown `embed:""`
}

// Run lists connectors.
func (c *connectorList) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/connectors", nil, connectorColumns, connectorWide)
}

type connectorCreate struct {
	Dir   connectorCreateDir   `cmd:"" help:"Connect a folder of the server's machine, inside one of its --allow-dir roots."`
	GCS   connectorCreateGCS   `cmd:"" name:"gcs" help:"Connect a Google Cloud Storage bucket."`
	S3    connectorCreateS3    `cmd:"" name:"s3" help:"Connect an S3 bucket."`
	Azure connectorCreateAzure `cmd:"" help:"Connect an Azure Blob container."`
}

// newConnector is what all connectors have.
type newConnector struct {
	shown      `embed:""`
	Name       string   `help:"What to call it (default: that of the folder, bucket or container)." placeholder:"NAME"`
	Scopes     []string `help:"import, export or both." default:"import" placeholder:"LIST"`
	Mode       string   `help:"all imports again what was imported before, new_only does not." enum:"all,new_only" default:"all"`
	ExportPath string   `name:"export-path" help:"Below this path exports are written." placeholder:"PATH"`
}

// body is the request for a connector at place, with what its provider needs.
func (c newConnector) body(place string, more map[string]any) map[string]any {
	body := map[string]any{"name": cmp.Or(c.Name, place), "scopes": c.Scopes, "import_mode": c.Mode}
	if c.ExportPath != "" {
		body["export_base_path"] = c.ExportPath
	}
	maps.Copy(body, more)
	return body
}

type connectorCreateDir struct {
	newConnector
	Path string `arg:"" help:"The folder, as the server sees it."`
	Poll bool   `help:"Walk the folder now and then, in place of waiting for events. Network mounts are recognised without it."`
}

// Run connects a folder.
func (c *connectorCreateDir) Run(ctx context.Context) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return err
	}
	return c.post(ctx, "/connectors/dir", c.body(filepath.Base(path), map[string]any{"path": path, "poll": c.Poll}), connectorColumns, connectorWide)
}

type connectorCreateGCS struct {
	newConnector
	Bucket       string `arg:"" help:"The bucket, without gs://."`
	Project      string `help:"The project it is in." required:"" placeholder:"ID"`
	Credentials  string `help:"JSON key file of a service account; without it the server uses its machine's own credentials, if it was started with --machine-credentials." type:"existingfile" placeholder:"FILE"`
	UserProject  string `help:"The project that pays, for a requester-pays bucket." placeholder:"ID"`
	Subscription string `help:"Pub/Sub subscription to pull notifications from: projects/PROJECT/subscriptions/NAME." placeholder:"NAME"`
	EndpointURL  string `name:"endpoint-url" help:"A server other than Google's, such as an emulator." placeholder:"URL"`
}

// Run connects a bucket.
func (c *connectorCreateGCS) Run(ctx context.Context) error {
	var key []byte
	if c.Credentials != "" {
		var err error
		if key, err = os.ReadFile(c.Credentials); err != nil {
			return fmt.Errorf("--credentials: %w", err)
		}
	}
	fields := map[string][]string{
		"name": {cmp.Or(c.Name, c.Bucket)}, "bucket": {c.Bucket}, "gcp_project_id": {c.Project}, "scopes": c.Scopes, "import_mode": {c.Mode},
	}
	for name, value := range map[string]string{
		"export_base_path": c.ExportPath, "user_project": c.UserProject, "subscription": c.Subscription, "endpoint_url": c.EndpointURL,
	} {
		if value != "" {
			fields[name] = []string{value}
		}
	}
	var raw json.RawMessage
	if err := c.dial().PostForm(ctx, "/connectors/gcs", fields, "credentials_file", key, &raw); err != nil {
		return err
	}
	return c.show(raw, connectorColumns, connectorWide)
}

type connectorCreateS3 struct {
	newConnector
	Bucket      string `arg:"" help:"The bucket, without s3://."`
	Region      string `help:"The region it is in, which a compatible store can do without." env:"AWS_REGION" placeholder:"NAME"`
	AccessKeyID string `name:"access-key-id" help:"Access key; without one the server uses its machine's own credentials, if it was started with --machine-credentials." env:"AWS_ACCESS_KEY_ID" placeholder:"ID"`
	SecretKey   string `name:"secret-access-key" help:"Its secret, better by the environment." env:"AWS_SECRET_ACCESS_KEY" placeholder:"KEY" secret:"yes"`
	EndpointURL string `name:"endpoint-url" help:"A compatible store other than Amazon's." placeholder:"URL"`
	PathStyle   bool   `help:"The bucket stands in the path and not in the host name."`

	Subscription string `help:"URL of the SQS queue to pull notifications from." placeholder:"URL"`
}

// Run connects a bucket.
func (c *connectorCreateS3) Run(ctx context.Context) error {
	body := c.body(c.Bucket, map[string]any{
		"bucket": c.Bucket, "region": c.Region, "endpoint_url": c.EndpointURL, "force_path_style": c.PathStyle, "subscription": c.Subscription,
	})
	if c.AccessKeyID != "" {
		body["aws_access_key_id"] = c.AccessKeyID
	}
	if c.SecretKey != "" {
		body["aws_secret_access_key"] = c.SecretKey
	}
	return c.post(ctx, "/connectors/s3", body, connectorColumns, connectorWide)
}

type connectorCreateAzure struct {
	newConnector
	Container    string `arg:"" help:"The container."`
	Account      string `help:"The storage account it is in." required:"" env:"AZURE_STORAGE_ACCOUNT" placeholder:"NAME"`
	TenantID     string `name:"tenant-id" help:"Tenant of a service principal." env:"AZURE_TENANT_ID" placeholder:"ID"`
	ClientID     string `name:"client-id" help:"The service principal." env:"AZURE_CLIENT_ID" placeholder:"ID"`
	ClientSecret string `name:"client-secret" help:"Its secret, better by the environment." env:"AZURE_CLIENT_SECRET" placeholder:"KEY" secret:"yes"`
	SAS          string `name:"sas-token" help:"A shared access signature, in place of a service principal." placeholder:"QUERY" secret:"yes"`
	AccountKey   string `help:"The key of the account, in place of a service principal." placeholder:"KEY" secret:"yes"`
	EndpointURL  string `name:"endpoint-url" help:"The root of the account at another place than ACCOUNT.blob.core.windows.net." placeholder:"URL"`
}

// Run connects a container.
func (c *connectorCreateAzure) Run(ctx context.Context) error {
	body := c.body(c.Container, map[string]any{"storage_account": c.Account, "container": c.Container})
	for name, value := range map[string]string{
		"tenant_id": c.TenantID, "client_id": c.ClientID, "client_secret": c.ClientSecret, "sas_token": c.SAS, "account_key": c.AccountKey,
		"endpoint_url": c.EndpointURL,
	} {
		if value != "" {
			body[name] = value
		}
	}
	return c.post(ctx, "/connectors/azure", body, connectorColumns, connectorWide)
}

type ofConnector struct {
	shown `embed:""`
	ID    string `arg:"" help:"The connector."`
}

func (c ofConnector) path(verb string) string { return "/connectors/" + url.PathEscape(c.ID) + verb }

type connectorGet struct{ ofConnector }

// Run shows a connector.
func (c *connectorGet) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, c.path(""), nil, connectorColumns, connectorWide)
}

type connectorTest struct{ ofConnector }

// Run tests a connector, and fails when the test does.
func (c *connectorTest) Run(ctx context.Context) error {
	var raw json.RawMessage
	if err := c.dial().Do(ctx, http.MethodPost, c.path("/test"), nil, &raw); err != nil {
		return err
	}
	var said struct {
		Success bool            `json:"success"`
		Error   *string         `json:"error_message"`
		Steps   json.RawMessage `json:"steps"`
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return err
	}
	if c.Output != "json" {
		raw = said.Steps
	}
	if err := c.show(raw, []column{{"TRIED", "what"}, {"OK", "ok"}, {"FOUND", "found"}}, nil); err != nil {
		return err
	}
	if !said.Success && said.Error != nil {
		return errors.New(*said.Error)
	}
	return nil
}

type connectorNotify struct {
	ofConnector
	Create       bool   `help:"Set it up with the connector's credentials, as far as they allow that and it can be done from here (Google Cloud)."`
	Name         string `help:"Name of what is made there (default: millrace- and the connector's id)." placeholder:"NAME"`
	Subscription string `help:"Pull from this Pub/Sub subscription or SQS queue, which is there." placeholder:"NAME|URL"`
}

// Run sets up notifications, and prints the commands for what is left to do by hand, such that a shell can take all of it.
func (c *connectorNotify) Run(ctx context.Context) error {
	var raw json.RawMessage
	want := map[string]any{"create": c.Create}
	for name, value := range map[string]string{"name": c.Name, "subscription": c.Subscription} {
		if value != "" {
			want[name] = value
		}
	}
	if err := c.dial().Do(ctx, http.MethodPost, c.path("/notify"), want, &raw); err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(raw)
	}
	return tellSteps(os.Stdout, raw, c.Create)
}

// tellSteps prints what is done and what is to be run. It fails when all should have been done and was not.
func tellSteps(w io.Writer, raw json.RawMessage, create bool) error {
	var said struct {
		Subscription *string
		Done         bool
		Steps        []struct {
			What, Command, Error string
			Done                 bool
		}
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return err
	}
	for _, s := range said.Steps {
		switch {
		case s.Done:
			fmt.Fprintf(w, "# done: %s\n", s.What)
		case s.Error != "":
			fmt.Fprintf(w, "# failed: %s: %q\n%s\n", s.What, s.Error, s.Command)
		default:
			fmt.Fprintf(w, "# %s\n%s\n", s.What, s.Command)
		}
	}
	switch {
	case said.Done && said.Subscription != nil:
		fmt.Fprintf(w, "# notifications are pulled from %s\n", *said.Subscription)
	case said.Done:
		fmt.Fprintln(w, "# nothing needs to be set up")
	case create:
		return errors.New("not everything can be set up from here: run what is printed above")
	}
	return nil
}

type connectorBrowse struct {
	ofConnector
	Prefix  string `help:"Beginning of the paths." placeholder:"PREFIX"`
	Pattern string `help:"Glob, such as '*.{mp4,mov}'." default:"*" placeholder:"GLOB"`
	Flat    bool   `help:"Leave out what lies in folders below the prefix."`
	Limit   int    `help:"The most to list, up to 1000." default:"1000" placeholder:"N"`
}

// Run lists objects.
func (c *connectorBrowse) Run(ctx context.Context) error {
	body := map[string]any{"prefix": c.Prefix, "pattern": c.Pattern, "recursive": !c.Flat, "limit": c.Limit}
	return c.post(ctx, c.path("/browse"), body, []column{{"PATH", "path"}, {"BYTES", "size_bytes"}, {"MODIFIED", "last_modified"}},
		[]column{{"TYPE", "content_type"}})
}

type connectorRemove struct{ ofConnector }

// Run deletes a connector.
func (c *connectorRemove) Run(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, c.path(""), nil, messageColumns, nil)
}
