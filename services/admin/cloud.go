package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"millrace/shared/event"
	"millrace/shared/store"
)

type newS3Connector struct {
	Body struct {
		Name           string   `json:"name" minLength:"1" maxLength:"100"`
		Scopes         []string `json:"scopes,omitempty" enum:"import,export" nullable:"true" doc:"default [\"import\"]"`
		ImportMode     string   `json:"import_mode,omitempty" enum:"all,new_only" default:"all"`
		ExportBasePath string   `json:"export_base_path,omitempty" maxLength:"1024" doc:"prefix under which exports are written"`
		Bucket         string   `json:"bucket" minLength:"1" maxLength:"222"`
		Region         string   `json:"region,omitempty" maxLength:"64" doc:"required without endpoint_url"`
		AccessKeyID    *string  `json:"aws_access_key_id,omitempty" minLength:"1" maxLength:"256" doc:"left out, as the secret: those of the machine, if its operator allows that"`
		SecretKey      *string  `json:"aws_secret_access_key,omitempty" minLength:"1" maxLength:"1024"`
		EndpointURL    string   `json:"endpoint_url,omitempty" maxLength:"1024" doc:"a compatible store other than Amazon's"`
		ForcePathStyle bool     `json:"force_path_style,omitempty" doc:"the bucket stands in the path and not in the host name"`
		Subscription   string   `json:"subscription,omitempty" maxLength:"1024" doc:"URL of the SQS queue that notifications are pulled from"`
	}
}

type newAzureConnector struct {
	Body struct {
		Name           string   `json:"name" minLength:"1" maxLength:"100"`
		Scopes         []string `json:"scopes,omitempty" enum:"import,export" nullable:"true" doc:"default [\"import\"]"`
		ImportMode     string   `json:"import_mode,omitempty" enum:"all,new_only" default:"all"`
		ExportBasePath string   `json:"export_base_path,omitempty" maxLength:"1024" doc:"prefix under which exports are written"`
		StorageAccount string   `json:"storage_account" minLength:"1" maxLength:"64"`
		Container      string   `json:"container" minLength:"1" maxLength:"63"`
		TenantID       string   `json:"tenant_id,omitempty" minLength:"1" maxLength:"256" doc:"of a service principal, with client_id and client_secret"`
		ClientID       string   `json:"client_id,omitempty" minLength:"1" maxLength:"256"`
		ClientSecret   string   `json:"client_secret,omitempty" minLength:"1" maxLength:"1024"`
		SAS            string   `json:"sas_token,omitempty" minLength:"1" maxLength:"2048" doc:"a shared access signature, in place of a service principal"`
		AccountKey     string   `json:"account_key,omitempty" minLength:"1" maxLength:"256" doc:"the key of the account, in place of a service principal"`
		EndpointURL    string   `json:"endpoint_url,omitempty" maxLength:"1024" doc:"the root of the account at another place than ACCOUNT.blob.core.windows.net"`
	}
}

func (a *Admin) cloudRoutes() {
	const tag = "Connectors"
	const about = "The credentials are encrypted at rest and never shown again. The storage is not contacted; test does that. "
	register(a, route{
		method: "POST", path: "/connectors/s3", scope: write, status: http.StatusCreated, tag: tag,
		summary: "Connect an S3 bucket", about: about,
	}, a.createS3)
	register(a, route{
		method: "POST", path: "/connectors/azure", scope: write, status: http.StatusCreated, tag: tag,
		summary: "Connect an Azure Blob container",
		about:   about + "Credentials are one of: tenant_id, client_id and client_secret of a service principal; sas_token; account_key.",
	}, a.createAzure)
	register(a, route{
		method: "PATCH", path: "/connectors/{connector_id}", scope: write, tag: tag, summary: "Change a connector",
		about: "What is left out stays. Credentials are given as the complete set of their provider, and forget what the last " +
			"test said. Where the storage is cannot be changed: make another connector.",
	}, a.patchConnector)
	register(a, route{
		method: "DELETE", path: "/connectors/{connector_id}", scope: admin, tag: tag, summary: "Delete a connector",
		about: "Media that were imported through it stay. 409 while an enabled automation or a job that has not ended uses it.",
	}, a.deleteConnector)
}

func (a *Admin) createS3(ctx context.Context, in *newS3Connector) (*body[connector], error) {
	b := in.Body
	var f fieldErrors
	plainName(&f, "bucket", b.Bucket)
	plainName(&f, "region", b.Region)
	checkEndpoint(&f, b.EndpointURL)
	a.checkS3(&f, in)
	if err := f.err(); err != nil {
		return nil, err
	}
	c := store.Connector{
		ID: newID(ctx, "conn"), Name: b.Name, Provider: "s3", Scopes: scopesOr(b.Scopes), ImportMode: event.ImportMode(b.ImportMode),
		ExportBasePath: b.ExportBasePath, Bucket: b.Bucket, Region: b.Region, EndpointURL: b.EndpointURL, ForcePathStyle: b.ForcePathStyle,
		Subscription: b.Subscription,
	}
	if b.AccessKeyID == nil {
		return a.createConnector(ctx, c)
	}
	return a.createSealed(ctx, c, store.S3Credentials{AccessKeyID: *b.AccessKeyID, SecretAccessKey: *b.SecretKey})
}

// checkS3 refuses what the members do not say together.
func (a *Admin) checkS3(f *fieldErrors, in *newS3Connector) {
	b := in.Body
	if b.Region == "" && b.EndpointURL == "" {
		f.add("region", "is required for a bucket of Amazon's")
	}
	checkSubscription(f, "s3", b.Subscription)
	if b.AccessKeyID != nil && b.SecretKey != nil || b.AccessKeyID == nil && b.SecretKey == nil && b.EndpointURL == "" && a.cfg.MachineCredentials {
		return
	}
	if b.AccessKeyID == nil {
		f.add("aws_access_key_id", "is required; without one, --machine-credentials has to allow that the machine's own are used, and only at Amazon's")
	}
	if b.SecretKey == nil {
		f.add("aws_secret_access_key", "is required with the access key id")
	}
}

func (a *Admin) createAzure(ctx context.Context, in *newAzureConnector) (*body[connector], error) {
	b := in.Body
	var f fieldErrors
	plainName(&f, "storage_account", b.StorageAccount)
	plainName(&f, "container", b.Container)
	checkEndpoint(&f, b.EndpointURL)
	credentials := store.AzureCredentials{
		TenantID: b.TenantID, ClientID: b.ClientID, ClientSecret: b.ClientSecret, SAS: b.SAS, AccountKey: b.AccountKey,
	}
	checkAzure(&f, credentials)
	if err := f.err(); err != nil {
		return nil, err
	}
	return a.createSealed(ctx, store.Connector{
		ID: newID(ctx, "conn"), Name: b.Name, Provider: "azure", Scopes: scopesOr(b.Scopes), ImportMode: event.ImportMode(b.ImportMode),
		ExportBasePath: b.ExportBasePath, StorageAccount: b.StorageAccount, Container: b.Container, EndpointURL: b.EndpointURL,
	}, credentials)
}

// checkAzure wants credentials of one kind, whole.
func checkAzure(f *fieldErrors, c store.AzureCredentials) {
	principal := c.TenantID != "" || c.ClientID != "" || c.ClientSecret != ""
	switch {
	case principal && c.SAS != "" || c.AccountKey != "" && (principal || c.SAS != ""):
		f.add("credentials", "must be of one kind: a service principal, sas_token or account_key")
	case c.SAS != "" || c.AccountKey != "":
		return
	}
	for name, value := range map[string]string{"tenant_id": c.TenantID, "client_id": c.ClientID, "client_secret": c.ClientSecret} {
		if value == "" {
			f.add(name, "is required: a service principal has tenant_id, client_id and client_secret")
		}
	}
	slices.SortFunc(*f, func(x, y fieldError) int { return strings.Compare(x.Field, y.Field) })
}

func (a *Admin) createSealed(ctx context.Context, c store.Connector, credentials any) (*body[connector], error) {
	var err error
	if c.Credentials, err = a.seal(c.ID, credentials); err != nil {
		return nil, err
	}
	return a.createConnector(ctx, c)
}

// seal encrypts credentials for the connector that they belong to.
func (a *Admin) seal(connectorID string, credentials any) (string, error) {
	plain, err := json.Marshal(credentials)
	if err != nil {
		return "", err
	}
	return a.deps.Sealer.Seal(plain, CredentialsAAD(connectorID))
}

// plainName refuses what a person pastes in place of a name: an address, or a name with a path.
func plainName(f *fieldErrors, field, name string) {
	if strings.ContainsAny(name, "/ \t\r\n") {
		f.add(field, "must be a name alone, without slashes and blanks")
	}
}

// checkEndpoint allows an http(s) address or none. A user in it would be a credential that is stored in the clear.
func checkEndpoint(f *fieldErrors, endpoint string) {
	if endpoint == "" {
		return
	}
	u, err := url.Parse(endpoint)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		f.add("endpoint_url", "must be an http or https URL without a user, such as https://storage.example.com/")
	}
}
