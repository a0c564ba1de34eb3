package connector

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"

	"millrace/shared/bucket"
	"millrace/shared/bucket/azure"
	"millrace/shared/store"
)

// azureConfig is how to get at the container of a connector. It has credentials of its own: those of this machine are for
// the operator to use.
func (o *Opener) azureConfig(c store.Connector) (azure.Config, error) {
	cfg := azure.Config{Account: c.StorageAccount, Container: c.Container, Endpoint: c.EndpointURL}
	sealed, err := o.Credentials(c)
	if err != nil {
		return cfg, err
	}
	var opened store.AzureCredentials
	if json.Unmarshal(sealed, &opened) != nil || opened == (store.AzureCredentials{}) {
		return cfg, fmt.Errorf("connector %s has no credentials: %w", c.ID, bucket.ErrCredentials)
	}
	cfg.Credentials = azure.Credentials{
		TenantID: opened.TenantID, ClientID: opened.ClientID, ClientSecret: opened.ClientSecret,
		SAS: opened.SAS, AccountKey: opened.AccountKey,
	}
	if c.EndpointURL != "" {
		cfg.Transport = o.raw
	}
	return cfg, nil
}

// openAzureLibrary opens az://ACCOUNT/CONTAINER/PREFIX with the machine's own credentials.
func openAzureLibrary(cfg LibraryConfig) (bucket.Library, error) {
	form := fmt.Errorf("library %q: want az://ACCOUNT/CONTAINER/PREFIX", cfg.Spec)
	u, err := url.Parse(cfg.Spec)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, form
	}
	name, prefix, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if name == "" {
		return nil, form
	}
	transport := azure.NewTransport()
	if transport.TLSClientConfig, err = trusting(cfg.CAFile); err != nil {
		return nil, err
	}
	return azure.NewLibrary(azure.Config{
		Account: u.Host, Container: name, Prefix: prefix, Endpoint: cfg.Endpoint, Transport: transport,
		Credentials: azure.Credentials{AccountKey: os.Getenv("AZURE_STORAGE_KEY")},
	})
}
