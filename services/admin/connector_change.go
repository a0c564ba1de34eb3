package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	conn "millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/store"
)

type patchConnector struct {
	ID   string `path:"connector_id"`
	Body struct {
		Name           *string  `json:"name,omitempty" minLength:"1" maxLength:"100"`
		Scopes         []string `json:"scopes,omitempty" enum:"import,export" minItems:"1"`
		ImportMode     *string  `json:"import_mode,omitempty" enum:"all,new_only"`
		ExportBasePath *string  `json:"export_base_path,omitempty" maxLength:"1024" doc:"empty: none"`

		CredentialsFile json.RawMessage `json:"credentials_file,omitempty" doc:"gcs: the JSON key of a service account, as an object"`
		AccessKeyID     *string         `json:"aws_access_key_id,omitempty" minLength:"1" maxLength:"256" doc:"s3"`
		SecretKey       *string         `json:"aws_secret_access_key,omitempty" minLength:"1" maxLength:"1024" doc:"s3"`
		TenantID        *string         `json:"tenant_id,omitempty" minLength:"1" maxLength:"256" doc:"azure"`
		ClientID        *string         `json:"client_id,omitempty" minLength:"1" maxLength:"256" doc:"azure"`
		ClientSecret    *string         `json:"client_secret,omitempty" minLength:"1" maxLength:"1024" doc:"azure"`
		SAS             *string         `json:"sas_token,omitempty" minLength:"1" maxLength:"2048" doc:"azure"`
		AccountKey      *string         `json:"account_key,omitempty" minLength:"1" maxLength:"256" doc:"azure"`

		// Where the storage is. These are here to be refused, as to ignore them would look like success.
		Provider       any `json:"provider,omitempty" doc:"cannot be changed"`
		Path           any `json:"path,omitempty" doc:"cannot be changed"`
		Bucket         any `json:"bucket,omitempty" doc:"cannot be changed"`
		Region         any `json:"region,omitempty" doc:"cannot be changed"`
		Project        any `json:"gcp_project_id,omitempty" doc:"cannot be changed"`
		StorageAccount any `json:"storage_account,omitempty" doc:"cannot be changed"`
		Container      any `json:"container,omitempty" doc:"cannot be changed"`
		EndpointURL    any `json:"endpoint_url,omitempty" doc:"cannot be changed"`
		ForcePathStyle any `json:"force_path_style,omitempty" doc:"cannot be changed"`
		UserProject    any `json:"user_project,omitempty" doc:"cannot be changed"`
		Poll           any `json:"poll,omitempty" doc:"cannot be changed"`
		Subscription   any `json:"subscription,omitempty" doc:"cannot be changed here: notify does that"`
	}
}

// checkFixed refuses what says where the storage is.
func (in *patchConnector) checkFixed(f *fieldErrors) {
	b := in.Body
	for name, value := range map[string]any{
		"provider": b.Provider, "path": b.Path, "bucket": b.Bucket, "region": b.Region, "gcp_project_id": b.Project,
		"storage_account": b.StorageAccount, "container": b.Container, "endpoint_url": b.EndpointURL,
		"force_path_style": b.ForcePathStyle, "user_project": b.UserProject, "poll": b.Poll,
	} {
		if value != nil {
			f.add(name, "cannot be changed: make another connector")
		}
	}
	if b.Subscription != nil {
		f.add("subscription", "cannot be changed here: POST /connectors/{connector_id}/notify does that")
	}
}

// credentials returns what is to be sealed for a provider, nil when none are given.
func (in *patchConnector) credentials(provider string, f *fieldErrors) any {
	n := in.Body
	sets := map[string]map[string]*string{
		"s3": {"aws_access_key_id": n.AccessKeyID, "aws_secret_access_key": n.SecretKey},
		"azure": {
			"tenant_id": n.TenantID, "client_id": n.ClientID, "client_secret": n.ClientSecret,
			"sas_token": n.SAS, "account_key": n.AccountKey,
		},
	}
	given := 0
	for owner, set := range sets {
		for name, value := range set {
			switch {
			case value == nil:
			case owner != provider:
				f.add(name, "does not belong to a connector of the provider %s", provider)
			default:
				given++
			}
		}
	}
	if len(n.CredentialsFile) > 0 && provider != "gcs" {
		f.add("credentials_file", "does not belong to a connector of the provider %s", provider)
	}
	azure := store.AzureCredentials{
		TenantID: value(n.TenantID, ""), ClientID: value(n.ClientID, ""), ClientSecret: value(n.ClientSecret, ""),
		SAS: value(n.SAS, ""), AccountKey: value(n.AccountKey, ""),
	}
	if provider == "azure" && given > 0 {
		checkAzure(f, azure) // one of several sets
	} else if set := sets[provider]; given > 0 && given < len(set) {
		for name, value := range set {
			if value == nil {
				f.add(name, "is required: credentials are changed as a complete set")
			}
		}
	}
	switch {
	case len(*f) > 0:
		return nil
	case len(n.CredentialsFile) > 0:
		return n.CredentialsFile
	case given == 0:
		return nil
	case provider == "s3":
		return store.S3Credentials{AccessKeyID: *n.AccessKeyID, SecretAccessKey: *n.SecretKey}
	}
	return azure
}

func (a *Admin) patchConnector(ctx context.Context, in *patchConnector) (*body[connector], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.ID)
	if err != nil {
		return nil, err
	}
	b := in.Body
	var f fieldErrors
	in.checkFixed(&f)
	credentials := in.credentials(c.Provider, &f)
	slices.SortFunc(f, func(x, y fieldError) int { return strings.Compare(x.Field, y.Field) })
	if err := f.err(); err != nil {
		return nil, err
	}
	if account, ok := credentials.(json.RawMessage); ok {
		if err := checkServiceAccount(account); err != nil {
			return nil, err
		}
	}
	var sealed string
	if credentials != nil {
		if sealed, err = a.seal(c.ID, credentials); err != nil {
			return nil, err
		}
	}
	now := time.Now().UTC()
	c, _, err = a.connectors.Modify(ctx, c.ID, func(c *store.Connector) error {
		if c.ID == "" {
			return notFound("connector", in.ID) // deleted meanwhile
		}
		before := *c
		c.Name = value(b.Name, c.Name)
		c.ImportMode = event.ImportMode(value(b.ImportMode, string(c.ImportMode)))
		c.ExportBasePath = value(b.ExportBasePath, c.ExportBasePath)
		if len(b.Scopes) > 0 {
			c.Scopes = scopesOr(b.Scopes)
		}
		if _, err := conn.CheckExportPath(c.ExportBasePath); err != nil && c.HasScope(scopeExport) {
			return invalid("export_base_path", "%s", err)
		}
		if sealed != "" {
			c.Credentials, c.LastTestedAt, c.LastTestResult, c.LastTestError = sealed, time.Time{}, "", ""
			if c.Status == connectorFailed {
				c.Status = connectorActive
			}
		}
		if sealed == "" && c.Name == before.Name && c.ImportMode == before.ImportMode && c.ExportBasePath == before.ExportBasePath &&
			slices.Equal(c.Scopes, before.Scopes) {
			return store.ErrUnchanged
		}
		c.UpdatedAt = now
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &body[connector]{viewConnector(c)}, nil
}

func (a *Admin) deleteConnector(ctx context.Context, in *connectorPath) (*body[message], error) {
	done := &body[message]{message{"Connector deleted. Media that were imported through it stay."}}
	_, err := lookUp(ctx, a.connectors, "connector", in.ID)
	var p *problemError
	if errors.As(err, &p) && event.IsToken(in.ID) {
		if deleted, derr := a.connectors.Deleted(ctx, in.ID); deleted || derr != nil {
			return done, derr // a repetition is answered as the first was
		}
	}
	if err != nil {
		return nil, err
	}
	indexes, jobs, err := a.usersOf(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if len(indexes)+len(jobs) > 0 {
		return nil, newProblem(http.StatusConflict, "connector_in_use",
			"The connector %s is in use by %d enabled automations and %d jobs that have not ended. Disable or cancel these first.",
			in.ID, len(indexes), len(jobs)).
			with("connector_id", in.ID).with("index_ids", indexes).with("job_ids", jobs)
	}
	return done, a.connectors.Delete(ctx, in.ID)
}

// usersOf returns the indexes that have an enabled automation which imports or exports through a connector, and the
// jobs that have not ended and do.
//
// Somebody may begin to use it between this look and its deletion. That does no harm: the job fails and the automation
// says that its connector is gone.
func (a *Admin) usersOf(ctx context.Context, connectorID string) (indexes, jobs []string, err error) {
	indexes, jobs = make([]string, 0), make([]string, 0)
	for at, err := range a.automations.All(ctx) {
		if err != nil {
			return nil, nil, err
		}
		if at.Enabled && at.Connector == connectorID {
			indexes = append(indexes, at.Index)
		}
	}
	for at, err := range a.exportAutos.All(ctx) {
		if err != nil {
			return nil, nil, err
		}
		if at.Enabled && at.Connector == connectorID && !slices.Contains(indexes, at.Index) {
			indexes = append(indexes, at.Index)
		}
	}
	for j, err := range a.jobs.All(ctx) {
		if err != nil {
			return nil, nil, err
		}
		if !j.Status.Terminal() && j.Connector == connectorID {
			jobs = append(jobs, j.ID)
		}
	}
	return indexes, jobs, nil
}
